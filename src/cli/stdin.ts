import { fstatSync, readFileSync, statSync } from 'node:fs';
import { isatty } from 'node:tty';
import { InvalidArgumentError } from '../errors.ts';

/** Whether there is anything to read on stdin: not when it is closed, /dev/null, or the terminal of another job. */
export function hasInput(): boolean {
  try {
    const { rdev } = fstatSync(0);
    if (rdev !== 0 && rdev === statSync('/dev/null').rdev) return false;
    return !isatty(0) || inForeground();
  } catch {
    return false;
  }
}

/** Reading the terminal from a background job would stop the job (SIGTTIN). */
function inForeground(): boolean {
  try {
    // proc_pid_stat(5), after the name: state ppid pgrp session tty_nr tpgid
    const fields = readFileSync('/proc/self/stat', 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    return fields[2] === fields[5];
  } catch {
    return true;
  }
}

/** All of stdin. */
export async function readInput(): Promise<Buffer> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
  } catch (error) {
    throw new InvalidArgumentError(`cannot read stdin: ${(error as Error).message}`, { cause: error });
  }
  return Buffer.concat(chunks);
}
