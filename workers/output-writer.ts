import fs from 'node:fs';

// Taken once: a guest may replace any of them, and its output must not end with that.
const { closeSync, constants, fchmodSync, fstatSync, ftruncateSync, openSync, unlinkSync, writeSync } = fs;
const { now } = Date;
const { max } = Math;
const { compareExchange, load, wait } = Atomics;
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
  /** Present: the streams are files that are rotated, without marks; each writer opens its own. */
  rotation?: OutputRotation;
}

/** Files that follow one another: `PATH.0`, `PATH.1` and so on, of which the newest are kept. */
export interface OutputRotation {
  paths: Record<OutputStream, string>;
  maxFiles: number;
  /** A file has no more than this; what does not fit goes to the next. */
  maxFileBytes: number;
  /** The number of the current file: of stdout, of stderr. Shared by all threads that write. */
  current: Int32Array;
  /** Where this execution began: in which file, behind how many bytes. */
  start: Record<OutputStream, { file: number; bytes: number }>;
}

/**
 * Opens a file to append to it and to read it, and makes it if need be. Throws for a pipe: a guest may have put one there,
 * and whoever opens that waits for its other end. `flags` are added, such as O_NOFOLLOW.
 */
export function openToAppend(path: string, mode: number, flags = 0): number {
  const { O_RDWR, O_APPEND, O_CREAT, O_NONBLOCK, S_IFMT, S_IFIFO } = constants;
  const fd = openSync(path, O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | flags, mode);
  if ((fstatSync(fd).mode & S_IFMT) !== S_IFIFO) return fd;
  closeSync(fd);
  throw new Error(`${path} is a pipe`);
}

/** Opens the file of that number to append to it and to read it, for everyone to read. Throws for a symbolic link. */
export function openRotated(path: string, number: number): number {
  const fd = openToAppend(`${path}.${number}`, 0o644, constants.O_NOFOLLOW);
  fchmodSync(fd, 0o644);
  return fd;
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
  /**
   * Takes room for so many bytes, or gives it back (negative), and returns how much was taken before by all who write at
   * the same time. Absent: nobody else does.
   */
  take?(count: number): number;
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
  /** The numbers of the rotated files that are open here. */
  readonly #open: Record<OutputStream, number> = { stdout: -1, stderr: -1 };

  constructor(fds: OutputDescriptors, limit?: OutputLimit) {
    this.#fds = fds;
    this.#limit = limit;
    if (fds.rotation === undefined) return;
    try {
      this.#followRotation('stdout', fds.rotation);
      this.#followRotation('stderr', fds.rotation);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Closes what this writer has opened itself. */
  close(): void {
    for (const stream of ['stdout', 'stderr'] as const) if (this.#open[stream] >= 0) closeSync(this.#fds[stream]);
  }

  /**
   * Appends all of `bytes`, or what of them the limit leaves room for. Throws the file system's error (`ENOSPC`, `EIO`)
   * when it cannot.
   */
  write(stream: OutputStream, bytes: Uint8Array): void {
    const kept = this.#limit === undefined ? bytes : this.#keep(bytes, this.#limit);
    try {
      if (lengthOf(kept) > 0) this.#append(stream, kept);
    } catch (error) {
      this.#limit?.take?.(-lengthOf(kept));
      throw error;
    }
    // Told only now: whoever hears of it may end the guest at once.
    if (lengthOf(kept) < lengthOf(bytes)) this.#limit?.onDropped(lengthOf(bytes) - lengthOf(kept));
  }

  /**
   * The files themselves say how much there is: a child process of the guest may write to them as well. What other threads
   * are about to write is not there yet.
   */
  #keep(bytes: Uint8Array, limit: OutputLimit): Uint8Array {
    const taken = limit.take?.(lengthOf(bytes)) ?? 0;
    const room = max(0, limit.bytes - max(taken, this.#written('stdout') + this.#written('stderr')));
    if (lengthOf(bytes) <= room) return bytes;
    limit.take?.(room - lengthOf(bytes));
    return apply(subarray, bytes, [0, room]) as Uint8Array;
  }

  #written(stream: OutputStream): number {
    const { rotation } = this.#fds;
    if (rotation === undefined) return fstatSync(this.#fds[stream]).size;
    this.#followRotation(stream, rotation);
    const { file, bytes } = rotation.start[stream];
    return (this.#open[stream] - file) * rotation.maxFileBytes + fstatSync(this.#fds[stream]).size - bytes;
  }

  /** Has the current file of a stream open. False where there is no descriptor for it: then it is the one before still. */
  #followRotation(stream: OutputStream, rotation: OutputRotation): boolean {
    return this.#goTo(stream, rotation, load(rotation.current, STREAM_NUMBER[stream] - 1));
  }

  #goTo(stream: OutputStream, rotation: OutputRotation, number: number): boolean {
    if (number === this.#open[stream]) return true;
    const before = this.#open[stream] >= 0 ? this.#fds[stream] : undefined;
    try {
      this.#fds[stream] = openRotated(rotation.paths[stream], number);
    } catch (error) {
      if (before !== undefined && isShortage(error)) return false;
      throw error;
    }
    this.#open[stream] = number;
    if (before !== undefined) closeSync(before);
    return true;
  }

  /** Fills one file after another; past the limit of one as long as there is no descriptor for the next. */
  #appendRotated(stream: OutputStream, bytes: Uint8Array, rotation: OutputRotation): void {
    for (let offset = 0; offset < lengthOf(bytes); ) {
      const follows = this.#followRotation(stream, rotation);
      const number = this.#open[stream];
      const room = rotation.maxFileBytes - fstatSync(this.#fds[stream]).size;
      if (room > 0 || !follows || !this.#goTo(stream, rotation, number + 1)) {
        const part = apply(subarray, bytes, [offset, room > 0 ? offset + room : lengthOf(bytes)]) as Uint8Array;
        writeAll(this.#fds[stream], part);
        offset += lengthOf(part);
        continue;
      }
      // Another thread may have been first.
      if (compareExchange(rotation.current, STREAM_NUMBER[stream] - 1, number, number + 1) !== number) continue;
      removeIfThere(`${rotation.paths[stream]}.${number + 1 - rotation.maxFiles}`);
    }
  }

  #append(stream: OutputStream, bytes: Uint8Array): void {
    const { rotation } = this.#fds;
    if (rotation !== undefined) {
      this.#appendRotated(stream, bytes, rotation);
      return;
    }
    const fd = this.#fds[stream];
    const nowMs = now();
    if (stream !== this.#lastStream || nowMs - this.#lastMarkMs >= MARK_INTERVAL_MS || nowMs < this.#lastMarkMs) {
      this.#mark[0] = nowMs;
      this.#mark[1] = STREAM_NUMBER[stream];
      this.#mark[2] = fstatSync(fd).size;
      this.#writeMark();
      this.#lastStream = stream;
      this.#lastMarkMs = nowMs;
    }
    writeAll(fd, bytes);
  }

  #writeMark(): void {
    const { marks } = this.#fds;
    try {
      writeAll(marks, this.#markBytes);
    } catch (error) {
      // What a full disk took of it would keep all later ones from being read.
      const { size } = fstatSync(marks);
      ftruncateSync(marks, size - (size % MARK_BYTES));
      throw error;
    }
  }
}

/** This process, or the system, has no descriptor left. */
function isShortage(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'EMFILE' || code === 'ENFILE';
}

function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // There are not that many yet, or somebody else cleans up here.
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
