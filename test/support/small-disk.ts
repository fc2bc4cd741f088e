import { execFileSync } from 'node:child_process';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { temporaryDirectory } from './daemon.ts';

/** Only root may mount a file system. */
export const MAY_MOUNT = process.getuid?.() === 0;

/** A disk of its own of so many KiB, what fills all that is left of it, and what makes room again. */
export function smallDisk(kib: number): { directory: string; fill: () => void; free: () => void } {
  const directory = temporaryDirectory();
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${kib}k`, 'elide-test', directory]);
  onTestFinished(() => void execFileSync('umount', ['-l', directory]));
  const ballast = join(directory, 'ballast');
  const fill = () => {
    const file = openSync(ballast, 'a');
    try {
      for (;;) if (writeSync(file, Buffer.alloc(4096)) < 4096) break;
    } catch {
      // It is full.
    }
    closeSync(file);
  };
  return { directory, fill, free: () => rmSync(ballast) };
}
