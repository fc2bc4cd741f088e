import { cpSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { temporaryDirectory } from '../support/daemon.ts';

const PARTS = ['dist', 'workers', 'proto', 'package.json'];

/** This program in a directory of its own; what puts the next version in its place, garbage, or nothing at all. */
export function installed(): { main: string; replace(): void; spoil(): void; remove(): void } {
  const source = fileURLToPath(new URL('../..', import.meta.url));
  const root = temporaryDirectory();
  for (const name of PARTS) cpSync(join(source, name), join(root, name), { recursive: true });
  symlinkSync(join(source, 'node_modules'), join(root, 'node_modules'));
  const insert = (path: string, text: string) => {
    const file = join(root, path);
    writeFileSync(file, `${text}\n${readFileSync(file, 'utf8')}`);
  };
  const replace = () => {
    // Its threads start in cells of its own only.
    const mark = `'${join(root, 'cell-')}' + process.pid`;
    insert('dist/src/cell/main.js', `import { writeFileSync as mark } from 'node:fs'; mark(${mark}, '');`);
    insert(
      'dist/workers/javascript.cjs',
      `if (!require('node:fs').existsSync(${mark})) throw new Error('of another version');`,
    );
  };
  const spoil = () => {
    for (const part of ['dist', 'workers', 'package.json']) {
      const path = join(root, part);
      const files = part === 'package.json' ? [path] : filesBelow(path);
      for (const file of files) writeFileSync(file, 'garbage (');
    }
  };
  const remove = () => {
    for (const name of [...PARTS, 'node_modules']) rmSync(join(root, name), { recursive: true });
  };
  return { main: join(root, 'dist', 'src', 'main.js'), replace, spoil, remove };
}

function filesBelow(directory: string): string[] {
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true });
  return entries.flatMap((entry) => (entry.isFile() ? [join(entry.parentPath, entry.name)] : []));
}
