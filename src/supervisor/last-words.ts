import { readPlainFile } from '../plain-file.ts';

/** The most that is told of a cell's last words. */
const WORDS_CHARS = 400;
/** What V8 says before it aborts a process. */
const FATAL_ERROR = /^FATAL ERROR: .*/gm;
/** How much is read of what a cell has left: a guest may have written there as much as it likes. */
const TAIL_BYTES = 4 * 1024 * 1024;

/** The thread that a report of a fatal error is about; 0 for one that names none. */
export function threadOf(report: string): number {
  return Number(/"threadId":(\d+)/.exec(report)?.[1] ?? 0);
}

/** One line of it for people: behind V8's own is nothing but a stack. */
export function lastWordsOf(log: string): string {
  const line = log.match(FATAL_ERROR)?.at(-1) ?? log.trimEnd().split('\n').at(-1) ?? '';
  return line.trim().slice(0, WORDS_CHARS);
}

export function readTail(path: string): string {
  return readPlainFile(path, TAIL_BYTES)?.toString() ?? '';
}
