import { fstatSync, writeSync } from 'node:fs';

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

/**
 * Writes guest output to the execution's files, synchronously: what `write` has returned from is in the file, whatever
 * is killed next. A mark is a fact «from this position on, stream S was written at or after time T»; marks stand in the
 * order of the writes, so a reader can restore both the times and the interleaving of the two streams.
 */
export class OutputWriter {
  readonly #fds: OutputDescriptors;
  readonly #mark = new Float64Array(3);
  #lastStream: OutputStream | undefined;
  #lastMarkMs = 0;

  constructor(fds: OutputDescriptors) {
    this.#fds = fds;
  }

  /** Appends all of `bytes`. Throws the file system's error (`ENOSPC`, `EIO`) when it cannot. */
  write(stream: OutputStream, bytes: Uint8Array): void {
    if (bytes.byteLength === 0) return;
    const fd = this.#fds[stream];
    const nowMs = Date.now();
    if (stream !== this.#lastStream || nowMs - this.#lastMarkMs >= MARK_INTERVAL_MS || nowMs < this.#lastMarkMs) {
      this.#mark[0] = nowMs;
      this.#mark[1] = STREAM_NUMBER[stream];
      this.#mark[2] = fstatSync(fd).size;
      writeAll(this.#fds.marks, new Uint8Array(this.#mark.buffer));
      this.#lastStream = stream;
      this.#lastMarkMs = nowMs;
    }
    writeAll(fd, bytes);
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  let offset = 0;
  while (offset < bytes.byteLength) {
    try {
      offset += writeSync(fd, bytes, offset);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(sleeper, 0, 0, RETRY_WAIT_MS);
    }
  }
}
