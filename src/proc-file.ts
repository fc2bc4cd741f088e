import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { isShortage, withDescriptor } from './spare-descriptor.ts';

/** Of Linux on every machine Node runs on, except a few ARM ones, where it counts too little. */
export const PAGE_BYTES = 4096;

let text = Buffer.alloc(2 * PAGE_BYTES);

/**
 * A file of proc(5) that is read again and again. It stays open: opening and closing one takes four times as long as
 * reading it. An open one tells of the process or thread it was opened for, never of a later one with the same id.
 */
export class ProcFile {
  readonly #path: string;
  #fd: number | undefined;
  #closed = false;

  constructor(path: string) {
    this.#path = path;
  }

  /** Its text now; undefined once what it tells of is gone, or was never there, and after {@link close}. */
  read(): string | undefined {
    if (this.#closed) return undefined;
    try {
      this.#fd ??= openSync(this.#path, 'r');
      return text.toString('latin1', 0, readAll(this.#fd));
    } catch (error) {
      return isShortage(error) ? readKernelFile(this.#path) : undefined;
    }
  }

  close(): void {
    this.#closed = true;
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** The text of a small file that the kernel makes (proc, cgroup), read once; undefined when there is none, or it is another user's. */
export function readKernelFile(path: string): string | undefined {
  try {
    return withDescriptor(() => readFileSync(path, 'latin1'));
  } catch {
    return undefined;
  }
}

/** Reads it from its beginning into {@link text}; returns how many bytes. */
function readAll(fd: number): number {
  for (let length = 0; ; ) {
    const count = readSync(fd, text, length, text.byteLength - length, length);
    length += count;
    // The kernel gives as many whole lines or figures as fit a page: less than half of one is the rest.
    if (count < PAGE_BYTES / 2) return length;
    if (length === text.byteLength) text = Buffer.concat([text], 2 * length);
  }
}

/** What of proc_pid_statm(5) is resident and belongs to no file, in bytes. */
export function anonymousBytesOf(statm: string | undefined): number {
  const [, resident = 0, shared = 0] = (statm ?? '').split(' ').map(Number);
  return (resident - shared) * PAGE_BYTES;
}

/** The fields of proc_pid_stat(5) from the state on. The name before them may hold anything, parentheses too. */
export function statFields(stat: string): string[] {
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}
