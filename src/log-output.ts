import { writeSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Writable } from 'node:stream';

const STDERR = 2;

/** What may wait for a reader of the log that is slow, in bytes. */
const MOST_WAITING = 1024 * 1024;

/**
 * Lines of JSON for a stream, or for a file by its descriptor. Nobody waits for whoever reads them, and no call fails: a
 * line that finds no room is dropped, and how many those were is the next thing said.
 */
export class LogOutput {
  readonly #target: Writable | number;
  #dropped = 0;

  constructor(target: Writable | number) {
    this.#target = target;
    if (typeof target === 'number') return;
    // The reader is gone: for good.
    target.on('error', () => {});
    target.on('drain', () => this.#tellDropped());
  }

  write(line: string): void {
    this.#tellDropped();
    if (this.#dropped > 0 || !this.#send(line)) this.#dropped += 1;
  }

  #tellDropped(): void {
    if (this.#dropped === 0) return;
    const notice = { level: 40, time: Date.now(), dropped: this.#dropped, msg: 'lines of the log were dropped' };
    if (this.#send(`${JSON.stringify(notice)}\n`)) this.#dropped = 0;
  }

  /** False where there is no room, in memory or on the disk. */
  #send(line: string): boolean {
    const target = this.#target;
    if (typeof target !== 'number') {
      if (target.writableLength >= MOST_WAITING) return false;
      if (!target.errored) target.write(line);
      return true;
    }
    try {
      writeSync(target, line);
      return true;
    } catch {
      return false;
    }
  }
}

let standardError: LogOutput | undefined;

/** Standard error, one for all daemons of this process. */
export function standardErrorLog(): LogOutput {
  // Node's stream of a file is of no use any more once the disk was full.
  standardError ??= new LogOutput(process.stderr instanceof Socket ? process.stderr : STDERR);
  return standardError;
}
