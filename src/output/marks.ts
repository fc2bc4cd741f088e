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

  constructor(stream: OutputStream) {
    this.#stream = stream;
  }

  /** The next of those that end before a position in their file; undefined where there is none yet. */
  async next(file: OutputFile | undefined, end: number): Promise<Mark | undefined> {
    for (;;) {
      while (this.#offset < this.#block.byteLength) {
        const mark = this.#trusted(this.#offset);
        this.#offset += MARK_BYTES;
        if (mark !== undefined) return mark;
      }
      this.#position += this.#block.byteLength;
      const length = Math.max(0, Math.min(BLOCK_BYTES, end - this.#position));
      const { buffer, byteOffset, byteLength } = (await file?.read(this.#position, length)) ?? new Uint8Array();
      this.#block = new DataView(buffer, byteOffset, wholeMarks(byteLength));
      this.#offset = 0;
      if (this.#block.byteLength === 0) return undefined;
    }
  }

  /** Undefined for one of the other stream, and for what no writer of ours wrote: a guest can reach its own files. */
  #trusted(offset: number): Mark | undefined {
    if (this.#block.getFloat64(offset + 8, true) !== STREAM_NUMBER[this.#stream]) return undefined;
    const atMs = this.#block.getFloat64(offset, true);
    const start = this.#block.getFloat64(offset + 16, true);
    if (!(atMs >= 0 && atMs <= LATEST_MS) || !Number.isSafeInteger(start) || start < this.#start) return undefined;
    this.#start = start;
    return { stream: this.#stream, start, atMs, place: this.#position + offset };
  }
}

/** How many bytes of that many are whole marks. */
export function wholeMarks(bytes: number): number {
  return bytes - (bytes % MARK_BYTES);
}
