import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT, ZYGOTE } from './package-root.ts';

/** Where the built program lies that cells run, threads and processes of guests included. */
const DIRECTORIES = ['dist/src/cell', 'dist/chunks', 'dist/workers'];

/**
 * Names the program that cells run, by what it is on disk now: its files, what it depends on, and Node. A cell loads parts of
 * it for each guest, and is of no use to new ones once they are of another version than itself.
 */
export function cellBuild(): string {
  const programs = DIRECTORIES.flatMap((directory) => {
    const path = join(PACKAGE_ROOT, directory);
    const names = readdirSync(path).filter((name) => /\.c?js$/.test(name));
    return names.sort().map((name) => join(path, name));
  });
  const hash = createHash('sha256').update(process.version);
  for (const path of [join(PACKAGE_ROOT, 'package.json'), ZYGOTE, ...programs]) hash.update(readFileSync(path));
  return hash.digest('hex');
}
