import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { chmod, lstat, opendir, rm, rmdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { spawnChild } from './spawn-child.ts';

/** More files than so many are worth a program to remove them, of which so many run at a time. */
const MOST_FILES = 200;
const MOST_PROGRAMS = 2;

let programs = 0;
const waiting: (() => void)[] = [];

/** Removes a file of our own, if it is there. On a disk that cannot be written it stays, and harms nothing. */
export function removeFile(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // The next daemon removes it.
  }
}

/**
 * Removes a directory that a guest has filled as it liked. What is large, or deeper than any path can say, is left to a
 * program, so that it holds nothing up here. Resolves with whether it is gone.
 */
export async function removeTree(path: string): Promise<boolean> {
  try {
    await removeFew(path, { left: MOST_FILES });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EROFS') return false;
  }
  if (await removeByProgram(path)) return true;
  await unlock(path);
  return removeByProgram(path);
}

/** Removes one after the other what is there. Rejects where that is more than `budget` has left. */
async function removeFew(path: string, budget: { left: number }): Promise<void> {
  try {
    await unlink(path);
    return;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return;
    if (code !== 'EISDIR') throw error;
  }
  // One directory is open at a time, however deep they are.
  const names: string[] = [];
  for await (const { name } of await opendir(path)) {
    budget.left -= 1;
    if (budget.left < 0) throw new RangeError(`too many files in ${path}`);
    names.push(name);
  }
  for (const name of names) await removeFew(join(path, name), budget);
  await rmdir(path);
}

/** Lets a daemon without rights into the directories that a guest has locked, but follows no link. */
async function unlock(path: string): Promise<void> {
  try {
    if (!(await lstat(path)).isDirectory()) return;
    await chmod(path, 0o700);
    const within: string[] = [];
    for await (const entry of await opendir(path)) if (entry.isDirectory()) within.push(join(path, entry.name));
    for (const directory of within) await unlock(directory);
  } catch {
    // Another user's, or deeper than any path can say.
  }
}

async function removeByProgram(path: string): Promise<boolean> {
  if (programs < MOST_PROGRAMS) programs += 1;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  try {
    const [code] = await once(spawnChild('rm', ['-rf', '--', path], { stdio: 'ignore' }), 'exit');
    return code === 0;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' && removeWithoutProgram(path);
  } finally {
    // Its place is the next one's.
    const next = waiting.shift();
    if (next === undefined) programs -= 1;
    else next();
  }
}

/** Where there is no program for it, as on a system that has none but what it is for. */
async function removeWithoutProgram(path: string): Promise<boolean> {
  try {
    await rm(path, { recursive: true, force: true });
    return true;
  } catch {
    return false;
  }
}
