import { once } from 'node:events';
import { constants, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { OutputStream } from '../../workers/output-writer.ts';
import type { OutputFiles as Destination } from '../gen/elide/cell/v1/cell.ts';
import { OutputFiles } from '../output/output-files.ts';

/** How often a pipe is tried that nobody reads from. */
const RETRY_MS = 50;
/** How long a reader that is away may hold up the end of an execution. */
const END_LIMIT_MS = 2_000;

/** Copies what a guest has in its output files into the caller's pipes: a reader that is slow or away stalls no guest. */
export class OutputPipes {
  readonly #ended = Promise.withResolvers<void>();
  readonly #given = new AbortController();
  readonly #copied: Promise<unknown>;

  constructor(directory: string, { stdout, stderr }: Destination) {
    const files = new OutputFiles(directory);
    this.#copied = Promise.all([this.#copy(files, 'stdout', stdout), this.#copy(files, 'stderr', stderr)]);
  }

  /** To be called when all is written; resolves when all is copied, or nobody has read for a while. */
  async end(): Promise<void> {
    this.#ended.resolve();
    await Promise.race([this.#copied, sleep(END_LIMIT_MS)]);
    this.#given.abort();
  }

  async #copy(files: OutputFiles, stream: OutputStream, path: string): Promise<void> {
    const { signal } = this.#given;
    // Opened also when there is nothing to write: a reader waits for each of its pipes.
    let pipe = await openPipe(path, signal);
    const range = { streams: new Set([stream]), from: { stdout: 0, stderr: 0 }, follow: true };
    for await (const { data } of files.read(range, this.#ended.promise, signal)) {
      while (pipe !== undefined && !(await written(pipe, data))) pipe = await openPipe(path, signal);
    }
    pipe?.destroy();
  }
}

/** Resolves once somebody reads from the pipe; with undefined when that is given up, or there is none. */
async function openPipe(path: string, signal: AbortSignal): Promise<Socket | undefined> {
  const flags = constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;
  while (!signal.aborted) {
    try {
      const socket = new Socket({ fd: openSync(path, flags), readable: false, writable: true });
      return socket.on('error', () => {});
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') return undefined;
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}

/** False when the reader has gone. */
async function written(pipe: Socket, data: Buffer): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  pipe.write(data, (error) => resolve(!error));
  return Promise.race([promise, once(pipe, 'close').then(() => false)]);
}
