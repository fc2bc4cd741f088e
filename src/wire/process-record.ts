import { openSync, writeSync } from 'node:fs';
import { readPlainFile } from '../plain-file.ts';

/**
 * Of one line: the longest name has 36 for the boot, 7 for the process, 20 for its start and 41 for the namespace, with
 * blanks between.
 */
const LINE_BYTES = 112;
/** How much is read: more than the lines of the 10,000 guests that a cell has at most. */
const MOST_BYTES = 2 * 1024 * 1024;

/**
 * The processes a cell has given its executions to, on disk before any of them begins: whoever finds the cell dead finds
 * them by their names (see `processName`), also when nobody was told that they started. Each has a line of its own, which is
 * blank and used again once it is gone.
 */
export class ProcessRecord {
  readonly #fd: number;
  readonly #lines: (string | undefined)[] = [];

  /** Begins an empty record. */
  constructor(path: string) {
    this.#fd = openSync(path, 'w', 0o600);
  }

  /** Throws the file system's error where it cannot be written down; then it must not begin. */
  add(executionKey: string, name: string): void {
    const known = this.#lines.indexOf(executionKey);
    const free = known === -1 ? this.#lines.indexOf(undefined) : known;
    const line = free === -1 ? this.#lines.length : free;
    this.#write(line, name);
    this.#lines[line] = executionKey;
  }

  remove(executionKey: string): void {
    const line = this.#lines.indexOf(executionKey);
    if (line === -1) return;
    this.#lines[line] = undefined;
    try {
      this.#write(line, '');
    } catch {
      // The name of a process that is gone names nobody any more.
    }
  }

  #write(line: number, name: string): void {
    const text = `${name.padEnd(LINE_BYTES - 1)}\n`;
    const count = writeSync(this.#fd, text, line * LINE_BYTES, 'latin1');
    if (count < LINE_BYTES)
      throw new Error(`${count} of ${LINE_BYTES} bytes could be written to the record of processes`);
  }
}

/** The names in a record; none where there is no record. */
export function readProcessRecord(path: string): string[] {
  const lines = (readPlainFile(path, MOST_BYTES)?.toString('latin1') ?? '').split('\n');
  return lines.map((line) => line.trim()).filter(Boolean);
}
