import { closeSync, fstatSync, ftruncateSync, lstatSync, readlinkSync, type Stats, truncateSync } from 'node:fs';
import { withDescriptor } from '../spare-descriptor.ts';

/**
 * A file that is open here, and that a guest which is a thread can close: its number may be another file's then, and it is
 * found by the path that it had.
 */
export class OwnFile {
  readonly #fd: number;
  readonly #path: string;
  readonly #opened: Stats;

  constructor(fd: number) {
    this.#fd = fd;
    this.#path = pathOf(fd);
    this.#opened = fstatSync(fd);
  }

  get isOpen(): boolean {
    return this.#seen(() => fstatSync(this.#fd)) !== undefined;
  }

  /** As the kernel shows it to whoever has it open. */
  get path(): string {
    return this.isOpen ? pathOf(this.#fd) : this.#path;
  }

  /** How many bytes are in it; undefined for one that is not found. */
  get size(): number | undefined {
    return (this.#seen(() => fstatSync(this.#fd)) ?? this.#seen(() => lstatSync(this.#path)))?.size;
  }

  is({ dev, ino }: Stats): boolean {
    return ino === this.#opened.ino && dev === this.#opened.dev;
  }

  truncate(bytes: number): void {
    if (this.isOpen) ftruncateSync(this.#fd, bytes);
    else if (this.size !== undefined) withDescriptor(() => truncateSync(this.#path, bytes));
  }

  close(): void {
    if (this.isOpen) closeSync(this.#fd);
  }

  #seen(look: () => Stats): Stats | undefined {
    try {
      const seen = look();
      return this.is(seen) ? seen : undefined;
    } catch {
      return undefined;
    }
  }
}

function pathOf(fd: number): string {
  return readlinkSync(`/proc/self/fd/${fd}`);
}
