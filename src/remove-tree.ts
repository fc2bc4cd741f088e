import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { promisify } from 'node:util';

/** Removes a file of our own, if it is there. On a disk that cannot be written it stays, and harms nothing. */
export function removeFile(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // The next daemon removes it.
  }
}

/**
 * Removes a directory that a guest has filled as it liked; one deeper than any path can say, by a program that climbs down.
 * Resolves with whether it is gone.
 */
export async function removeTree(path: string): Promise<boolean> {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 3 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EROFS') return false;
    return promisify(execFile)('rm', ['-rf', '--', path]).then(
      () => true,
      () => false,
    );
  }
}
