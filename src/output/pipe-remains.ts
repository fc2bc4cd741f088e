import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { type OutputStream, OutputWriter } from '../../workers/output-writer.ts';
import type { OutputFiles } from '../gen/elide/cell/v1/cell.ts';
import { closeDestination, openDestination } from './output-destination.ts';

/** Most that is read at the end: more than a pipe holds, unless its writer made it larger. */
const MOST_BYTES = 2 ** 20;
const CHUNK_BYTES = 65_536;

/** A pipe as a cell has it open. */
export interface PipeOfCell {
  fd: number;
  /** Tells it from another file that has the number by now. */
  inode: number;
}

/**
 * The pipes that a guest writes its output to, held open beside its cell: what the cell has not read when it dies is
 * still there.
 */
export class PipeRemains {
  readonly #fds = new Map<OutputStream, number>();

  /** Opens them as the process `cellPid` has them; one that it has no more is left out. */
  constructor(cellPid: number, pipes: Record<OutputStream, PipeOfCell>) {
    for (const [stream, { fd, inode }] of Object.entries(pipes) as [OutputStream, PipeOfCell][]) {
      const own = openPipe(`/proc/${cellPid}/fd/${fd}`, inode);
      if (own !== undefined) this.#fds.set(stream, own);
    }
  }

  /** Appends what is left to where the guest's output went, as far as that is possible. Nobody writes any more. */
  save(directory: string, files: OutputFiles | undefined): void {
    try {
      const destination = openDestination(directory, files, constants.O_NOFOLLOW);
      const writer = new OutputWriter(destination);
      try {
        for (const [stream, fd] of this.#fds) for (const chunk of readAll(fd)) writer.write(stream, chunk);
      } finally {
        writer.close();
        closeDestination(destination);
      }
    } catch {
      // No room, or no such directory: what is in the files stays without a gap.
    }
  }

  close(): void {
    for (const fd of this.#fds.values()) closeSync(fd);
    this.#fds.clear();
  }
}

function openPipe(path: string, inode: number): number | undefined {
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    if (fstatSync(fd).ino === inode) return fd;
  } catch {
    // The guest has ended, or the cell.
  }
  if (fd !== undefined) closeSync(fd);
  return undefined;
}

function* readAll(fd: number): Generator<Buffer> {
  const chunk = Buffer.alloc(CHUNK_BYTES);
  for (let length = 0; length < MOST_BYTES; ) {
    let count: number;
    try {
      count = readSync(fd, chunk);
    } catch {
      // EAGAIN: somebody got hold of the other end, and there is nothing more.
      return;
    }
    if (count === 0) return;
    length += count;
    yield chunk.subarray(0, count);
  }
}
