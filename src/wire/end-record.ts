import { constants, ftruncateSync, openSync, writeSync } from 'node:fs';
import { Exited } from '../gen/elide/cell/v1/cell.ts';
import { readPlainFile } from '../plain-file.ts';

/** A record that grew beyond this is emptied once nothing in it is needed, in bytes. */
const LARGEST_BYTES = 64 * 1024;
/** One that grew beyond this begins anew with what is needed: less than that, as a cell has 10,000 guests at most. */
const MOST_BYTES = 8 * 1024 * 1024;
const HEADER_BYTES = 4;

/**
 * The ends of a cell's executions, on disk until the daemon has them: each an `Exited` message behind its 4-byte
 * big-endian length. The cell writes it, and a daemon that finds the cell dead reads it.
 */
export class EndRecord {
  readonly #fd: number;
  readonly #kept = new Map<string, Exited>();
  /** Those of them that are in memory only. */
  #unwritten = new Map<string, Exited>();
  /** Of whole ends in the file. */
  #bytes = 0;
  /** There may be a part of an end behind them, behind which nothing could be read. */
  #isTorn = false;

  /** Begins an empty record. */
  constructor(path: string) {
    const { O_WRONLY, O_CREAT, O_TRUNC, O_APPEND } = constants;
    this.#fd = openSync(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0o600);
  }

  /** Ends that nobody has acknowledged, oldest first. */
  kept(): Exited[] {
    return [...this.#kept.values()];
  }

  has(executionKey: string): boolean {
    return this.#kept.has(executionKey);
  }

  /** Writes an end down. Where the disk is full only memory has it, until there is room for the next one. */
  keep(exited: Exited): void {
    this.#kept.set(exited.executionKey, exited);
    this.#unwritten.set(exited.executionKey, exited);
    // Where nothing in the file is needed, what it takes up is room.
    if (!this.#write() && this.#unwritten.size === this.#kept.size) this.#beginAnew();
  }

  forget(executionKey: string): void {
    this.#unwritten.delete(executionKey);
    if (!this.#kept.delete(executionKey)) return;
    if (this.#bytes > (this.#kept.size > 0 ? MOST_BYTES : LARGEST_BYTES)) this.#beginAnew();
  }

  #beginAnew(): void {
    this.#unwritten = new Map(this.#kept);
    this.#bytes = 0;
    this.#isTorn = true;
    this.#write();
  }

  /** False when not all that memory has could be written. What is in the file is never given up for it. */
  #write(): boolean {
    try {
      if (this.#isTorn) ftruncateSync(this.#fd, this.#bytes);
      this.#isTorn = false;
      for (const [executionKey, exited] of this.#unwritten) {
        const frame = frameOf(exited);
        this.#isTorn = true;
        if (writeSync(this.#fd, frame) < frame.byteLength) return false;
        this.#isTorn = false;
        this.#bytes += frame.byteLength;
        this.#unwritten.delete(executionKey);
      }
      return true;
    } catch {
      return false;
    }
  }
}

function frameOf(exited: Exited): Buffer {
  const body = Exited.encode(exited).finish();
  const frame = Buffer.allocUnsafe(HEADER_BYTES + body.byteLength);
  frame.writeUInt32BE(body.byteLength);
  frame.set(body, HEADER_BYTES);
  return frame;
}

/**
 * What a record says, oldest first; nothing when there is none. It ends with what is no end: a half-written one, or whatever
 * a guest has put there.
 */
export function readEndRecord(path: string): Exited[] {
  // No cell makes one that is larger.
  const bytes = readPlainFile(path, 2 * MOST_BYTES);
  if (bytes === undefined) return [];
  const ends: Exited[] = [];
  for (let at = 0; at + HEADER_BYTES <= bytes.byteLength; ) {
    const end = at + HEADER_BYTES + bytes.readUInt32BE(at);
    if (end > bytes.byteLength) break;
    try {
      const exited = Exited.decode(bytes.subarray(at + HEADER_BYTES, end));
      if (exited.executionKey === '') break;
      ends.push(exited);
    } catch {
      break;
    }
    at = end;
  }
  return ends;
}
