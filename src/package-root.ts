import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The directory of this package: the same from source and from whatever file of `dist` this was built into. */
export const PACKAGE_ROOT = findRoot(import.meta.dirname);

/** What runs beside guest code is always the built program, also for a daemon that runs from source. */
export const CELL_MAIN = join(PACKAGE_ROOT, 'dist', 'src', 'cell', 'main.js');
export const JAVASCRIPT_WORKER = join(PACKAGE_ROOT, 'dist', 'workers', 'javascript.cjs');
export const JAVASCRIPT_PROCESS = join(PACKAGE_ROOT, 'dist', 'workers', 'process.cjs');
/** The thread that writes the journal. */
export const JOURNAL_THREAD = join(PACKAGE_ROOT, 'dist', 'src', 'journal', 'thread.js');
export const ZYGOTE = join(PACKAGE_ROOT, 'workers', 'zygote.py');
/** Descriptors of every proto file, built by buf. */
export const PROTO_IMAGE = join(PACKAGE_ROOT, 'proto', 'image.binpb');

function findRoot(directory: string): string {
  if (existsSync(join(directory, 'package.json'))) return directory;
  const parent = dirname(directory);
  if (parent === directory) throw new Error(`no package.json above ${import.meta.dirname}`);
  return findRoot(parent);
}
