import { closeSync, constants, fstatSync, openSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { OutputFiles as Destination } from '../gen/elide/cell/v1/cell.ts';
import { Spool, spoolFiles } from '../output/spool.ts';
import { within } from '../within.ts';

/**
 * How often a pipe is tried that nobody reads from, or that cannot be opened for now. One that is full is tried sooner at
 * first: its reader may be at work.
 */
const RETRY_MS = 50;
const FIRST_RETRY_MS = 1;
/** The system's words for a path where no pipe is, or none any more. */
const NO_PIPE = new Set(['ENOENT', 'ENOTDIR', 'EISDIR', 'ELOOP']);
/** How long a reader that is away may hold up the end of an execution. */
const END_LIMIT_MS = 2_000;

/** Brings what a guest writes into the caller's pipes, by way of a spool: a reader that is slow or away stalls no guest. */
export class OutputPipes {
  readonly #ended = Promise.withResolvers<void>();
  readonly #given = new AbortController();
  readonly #brought: Promise<unknown>;
  /** How often a reader has taken something. */
  #taken = 0;
  #isDone = false;

  /** `keepsFirst`: see {@link Spool}. */
  constructor(directory: string, { stdout, stderr }: Destination, keepsFirst: boolean) {
    const from = spoolFiles(directory);
    const streams = [
      this.#bring(new Spool(from.stdout, keepsFirst), stdout),
      this.#bring(new Spool(from.stderr, keepsFirst), stderr),
    ];
    this.#brought = Promise.allSettled(streams).then(() => {
      this.#isDone = true;
    });
  }

  /** To be called when all is written; resolves when all is in the pipes, or nobody has read for a while. */
  async end(): Promise<void> {
    this.#ended.resolve();
    for (let before = -1; !this.#isDone && this.#taken > before; ) {
      before = this.#taken;
      await within(END_LIMIT_MS, this.#brought);
    }
    this.#given.abort();
  }

  async #bring(from: Spool, path: string): Promise<void> {
    const { signal } = this.#given;
    // Opened also when there is nothing to write: a reader waits for each of its pipes.
    let pipe = await openPipe(path, signal);
    let isWritten = false;
    try {
      for await (const data of from.read(this.#ended.promise, signal)) {
        for (let rest = data; pipe !== undefined && rest.byteLength > 0; isWritten = true) {
          rest = await this.#write(pipe, rest);
          if (rest.byteLength > 0) pipe = await openAgain(pipe, path, signal);
        }
      }
      // Its last reader may have left something in it, of which no write tells any more.
      if (pipe !== undefined && isWritten) pipe = await openAgain(pipe, path, signal);
    } finally {
      if (pipe !== undefined) closeSync(pipe);
    }
  }

  /** Resolves when all is in the pipe, or with what is not when its reader has gone. */
  async #write(pipe: number, data: Buffer): Promise<Buffer> {
    const { signal } = this.#given;
    let rest = data;
    for (let waitMs = FIRST_RETRY_MS; rest.byteLength > 0 && !signal.aborted; ) {
      try {
        rest = rest.subarray(writeSync(pipe, rest));
        this.#taken += 1;
        waitMs = FIRST_RETRY_MS;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') break;
        await sleep(waitMs, undefined, { signal }).catch(() => {});
        waitMs = Math.min(2 * waitMs, RETRY_MS);
      }
    }
    return rest;
  }
}

/** Resolves once somebody reads from the pipe; with undefined when that is given up, or it is none (`/dev/null`). */
async function openPipe(path: string, signal: AbortSignal): Promise<number | undefined> {
  const flags = constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;
  while (!signal.aborted) {
    try {
      const fd = openSync(path, flags);
      if (fstatSync(fd).isFIFO()) return fd;
      closeSync(fd);
      return undefined;
    } catch (error) {
      if (NO_PIPE.has((error as NodeJS.ErrnoException).code as string)) return undefined;
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}

/** What lies in a pipe is lost once nobody has it open, so it stays open until there is another reader. */
async function openAgain(pipe: number, path: string, signal: AbortSignal): Promise<number | undefined> {
  const opened = await openPipe(path, signal);
  closeSync(pipe);
  return opened;
}
