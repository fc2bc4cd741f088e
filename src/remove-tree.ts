import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { promisify } from 'node:util';

/** Removes a directory that a guest has filled as it liked; one deeper than any path can say, by a program that climbs down. */
export async function removeTree(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 3 });
  } catch {
    await promisify(execFile)('rm', ['-rf', '--', path]).catch(() => {});
  }
}
