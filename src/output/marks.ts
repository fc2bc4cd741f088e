import { MARK_BYTES, type OutputStream, STREAM_NUMBER } from '../../workers/output-writer.ts';
import type { OutputFile } from './output-file.ts';

/** What is read at once, in bytes: there may be any number of marks, and others wait for as long as a block takes. */
const BLOCK_BYTES = 2_730 * MARK_BYTES;

/** The latest time that a `Date` knows; a message holds it too. */
const LATEST_MS = 8.64e15;

/** That a stream was written to at a time: see `OutputWriter`. */
export interface Mark {
  stream: OutputStream;
  /** Of the first byte that was written then, in its stream. */
  start: number;
  /** In Unix ms. */
  atMs: number;
  /** Where it stands among all marks, of the other stream too. */
  place: number;
}

/** The marks of one stream, one after another, a block of the file at a time. */
export class Marks {
  readonly #stream: OutputStream;
  #block: DataView = new DataView(new ArrayBuffer(0));
  /** Of the block, in the file. */
  #position = 0;
  /** Of the next mark, in the block. */
  #offset = 0;
  /** Of the last mark. */
  #start = 0;
  /** There is a mark in the block, of whichever stream. */
  #hasMarks = false;

  constructor(stream: OutputStream) {
    this.#stream = stream;
  }

  /** The next of those that end before a position in their file; undefined where there is none yet, or `signal` aborts. */
  async next(file: OutputFile | undefined, end: number, signal: AbortSignal): Promise<Mark | undefined> {
    for (;;) {
      while (this.#offset < this.#block.byteLength) {
        const mark = this.#trusted(this.#offset);
        this.#offset += MARK_BYTES;
        if (mark !== undefined) return mark;
      }
      // A file that takes no room can be of any length. Behind a block without a mark only times are lost.
      const isOver = this.#block.byteLength === BLOCK_BYTES && !this.#hasMarks;
      if (isOver || signal.aborted) return undefined;
      this.#position += this.#block.byteLength;
      const length = Math.max(0, Math.min(BLOCK_BYTES, end - this.#position));
      const { buffer, byteOffset, byteLength } = (await file?.read(this.#position, length)) ?? new Uint8Array();
      this.#block = new DataView(buffer, byteOffset, wholeMarks(byteLength));
      this.#offset = 0;
      this.#hasMarks = false;
      if (this.#block.byteLength === 0) return undefined;
    }
  }

  /** Undefined for one of the other stream, and for what no writer of ours wrote: a guest can reach its own files. */
  #trusted(offset: number): Mark | undefined {
    const atMs = this.#block.getFloat64(offset, true);
    const number = this.#block.getFloat64(offset + 8, true);
    const start = this.#block.getFloat64(offset + 16, true);
    if (number !== STREAM_NUMBER.stdout && number !== STREAM_NUMBER.stderr) return undefined;
    if (!(atMs >= 0 && atMs <= LATEST_MS) || !Number.isSafeInteger(start)) return undefined;
    this.#hasMarks = true;
    if (number !== STREAM_NUMBER[this.#stream] || start < this.#start) return undefined;
    this.#start = start;
    return { stream: this.#stream, start, atMs, place: this.#position + offset };
  }
}

/** How many bytes of that many are whole marks. */
export function wholeMarks(bytes: number): number {
  return bytes - (bytes % MARK_BYTES);
}
