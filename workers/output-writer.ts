import fs from 'node:fs';

// Taken once: a guest may replace any of them, and its output must not end with that.
const { fstatSync, writeSync } = fs;
const { now } = Date;
const { max } = Math;
const { wait } = Atomics;
const { apply } = Reflect;
const { subarray } = Uint8Array.prototype;
const lengthGetter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'byteLength')?.get;
const lengthOf = (bytes: Uint8Array): number => apply(lengthGetter as () => number, bytes, []);

/** Which of the two output streams. The number is what a mark stores. */
export const STREAM_NUMBER = { stdout: 1, stderr: 2 } as const;
export type OutputStream = keyof typeof STREAM_NUMBER;

/** Descriptors of one execution's three output files, each opened for appending. */
export interface OutputDescriptors {
  stdout: number;
  stderr: number;
  /** Where {@link OutputWriter} notes when bytes were written and in which order. */
  marks: number;
}

/** Bytes of one mark: three little-endian float64: time (ms since the epoch), stream number, position in that stream. */
export const MARK_BYTES = 24;

/** Writes closer together than this share a mark as long as they are to the same stream. */
const MARK_INTERVAL_MS = 10;

/** How often a write that finds no room (`EAGAIN`, a full pipe) is tried again, and how long it waits in between. */
const RETRY_WAIT_MS = 1;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** How much may be written, to both streams together. */
export interface OutputLimit {
  bytes: number;
  /** So many bytes more were dropped. */
  onDropped(count: number): void;
}

/**
 * Writes guest output to the execution's files, synchronously: what `write` has returned from is in the file, whatever
 * is killed next. A mark is a fact «from this position on, stream S was written at or after time T»; marks stand in the
 * order of the writes, so a reader can restore both the times and the interleaving of the two streams.
 */
export class OutputWriter {
  readonly #fds: OutputDescriptors;
  readonly #limit: OutputLimit | undefined;
  readonly #mark = new Float64Array(3);
  readonly #markBytes = new Uint8Array(this.#mark.buffer);
  #lastStream: OutputStream | undefined;
  #lastMarkMs = 0;

  constructor(fds: OutputDescriptors, limit?: OutputLimit) {
    this.#fds = fds;
    this.#limit = limit;
  }

  /**
   * Appends all of `bytes`, or what of them the limit leaves room for. Throws the file system's error (`ENOSPC`, `EIO`)
   * when it cannot.
   */
  write(stream: OutputStream, bytes: Uint8Array): void {
    const kept = this.#limit === undefined ? bytes : this.#keep(bytes, this.#limit);
    if (lengthOf(kept) > 0) this.#append(stream, kept);
    // Told only now: whoever hears of it may end the guest at once.
    if (lengthOf(kept) < lengthOf(bytes)) this.#limit?.onDropped(lengthOf(bytes) - lengthOf(kept));
  }

  /** The files themselves say how much there is: a child process of the guest may write to them as well. */
  #keep(bytes: Uint8Array, limit: OutputLimit): Uint8Array {
    const room = max(0, limit.bytes - fstatSync(this.#fds.stdout).size - fstatSync(this.#fds.stderr).size);
    if (lengthOf(bytes) <= room) return bytes;
    return apply(subarray, bytes, [0, room]) as Uint8Array;
  }

  #append(stream: OutputStream, bytes: Uint8Array): void {
    const fd = this.#fds[stream];
    const nowMs = now();
    if (stream !== this.#lastStream || nowMs - this.#lastMarkMs >= MARK_INTERVAL_MS || nowMs < this.#lastMarkMs) {
      this.#mark[0] = nowMs;
      this.#mark[1] = STREAM_NUMBER[stream];
      this.#mark[2] = fstatSync(fd).size;
      writeAll(this.#fds.marks, this.#markBytes);
      this.#lastStream = stream;
      this.#lastMarkMs = nowMs;
    }
    writeAll(fd, bytes);
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  let offset = 0;
  while (offset < lengthOf(bytes)) {
    try {
      offset += writeSync(fd, bytes, offset);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      wait(sleeper, 0, 0, RETRY_WAIT_MS);
    }
  }
}
