import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';

/** A spawn opens two descriptors for each of its streams and two more, and closes most of them. */
const MOST_DESCRIPTORS = 16;

/**
 * As `spawn` of `node:child_process`, but throws EMFILE or ENFILE where too few descriptors are left. Node would tell of it
 * later, give a child without any streams, and never close those it had made.
 */
export function spawnChild(file: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  const opened: number[] = [];
  try {
    while (opened.length < MOST_DESCRIPTORS) opened.push(openSync('/dev/null', 'r'));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw Object.assign(new Error(`${code}: no descriptors left to spawn ${file}`, { cause }), { code });
  } finally {
    for (const fd of opened) closeSync(fd);
  }
  return spawn(file, args, options);
}
