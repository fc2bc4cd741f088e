import { createHash } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  renameSync,
  symlinkSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { StartupError } from './errors.ts';
import { CELL_MAIN, PACKAGE_ROOT, ZYGOTE } from './package-root.ts';
import { removeTree } from './remove-tree.ts';

/** Where the built program lies that cells run, threads and processes of guests included. */
const DIRECTORIES = ['dist/src/cell', 'dist/chunks', 'dist/workers'];
/** How much of a build is in a path. */
const NAME_CHARS = 16;
const PIECE_BYTES = 64 * 1024;
/** Of a file that is read: memory for all of it at once would stay with the daemon. */
const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
/** What was put there is no link, and opening it waits for nobody. */
const READ_PUT = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** The program that cells run. */
export interface CellProgram {
  /**
   * Names it: its files, where they lie, what it depends on, and Node. A cell loads parts of it for each guest, and is of no
   * use to new ones once they are of another program than itself.
   */
  build: string;
  /** What a cell is started with. */
  main: string;
  zygote: string;
}

/** A file that is installed, with the SHA-256 of what is in it; or where a link leads. */
type ProgramPart = { source: string; bytes: number; digest: string } | string;

/** All of it, by paths below its directory. */
export type ProgramParts = Map<string, ProgramPart>;

/** Reads what is installed. Throws when that is not whole. */
export function readProgram(): ProgramParts {
  const parts: ProgramParts = new Map();
  const read = (root: string, names: string[], below = '') => {
    for (const name of names) {
      const source = join(root, name);
      parts.set(join(below, name), { source, ...digestOf(source, constants.O_RDONLY) });
    }
  };
  read(PACKAGE_ROOT, [...filesOf(PACKAGE_ROOT, DIRECTORIES), relative(PACKAGE_ROOT, ZYGOTE)]);
  // What is not built into it: see `rolldown.config.ts`.
  const piscina = placeOf('piscina');
  read(piscina, filesOf(piscina, ['dist']), 'node_modules/piscina');
  // Native code, which is large; and a disk for state may be one to run nothing from.
  parts.set('node_modules/oxc-transform', placeOf('oxc-transform'));
  return parts;
}

/** The program as it is installed: it lasts until that is replaced. */
export function installedProgram(parts: ProgramParts): CellProgram {
  return programAt(PACKAGE_ROOT, buildOf(parts, PACKAGE_ROOT));
}

/**
 * Puts the program below this directory, where it lasts while cells live that run it; what is there, and whole, is left as
 * it is. Rejects when the disk does not take it, with nothing of it left behind.
 */
export async function putProgram(parts: ProgramParts, directory: string): Promise<CellProgram> {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const home = realpathSync(directory);
  const build = buildOf(parts, home);
  const root = join(home, nameOf(build));
  if (!isWhole(root, parts)) await make(root, parts);
  return programAt(root, build);
}

/** The paths of what lies below that directory, other than the programs of these builds. */
export function otherPrograms(directory: string, builds: string[]): string[] {
  if (!existsSync(directory)) return [];
  const kept = new Set(builds.map(nameOf));
  const others = readdirSync(directory).filter((name) => !kept.has(name));
  return others.map((name) => join(directory, name));
}

/** The files of a package that run, and what says how. */
function filesOf(root: string, directories: string[]): string[] {
  const built = directories.flatMap((directory) => {
    const names = readdirSync(join(root, directory), { recursive: true, encoding: 'utf8' });
    const programs = names.filter((name) => /\.[cm]?js$/.test(name));
    return programs.sort().map((name) => join(directory, name));
  });
  return ['package.json', ...built];
}

/** Where a package lies that this one depends on: that may be below it, or beside it. */
function placeOf(name: string): string {
  const { resolve } = createRequire(join(PACKAGE_ROOT, 'package.json'));
  const place = resolve.paths(name)?.find((directory) => existsSync(join(directory, name)));
  if (place === undefined) throw new StartupError(`the package ${name} is not found from ${PACKAGE_ROOT}`);
  return realpathSync(join(place, name));
}

function programAt(root: string, build: string): CellProgram {
  const at = (path: string) => join(root, relative(PACKAGE_ROOT, path));
  return { build, main: at(CELL_MAIN), zygote: at(ZYGOTE) };
}

/** With where it lies: a cell of a directory that was moved finds nothing of it any more. */
function buildOf(parts: ProgramParts, home: string): string {
  const hash = createHash('sha256').update(`${process.version} ${home}`);
  for (const [name, part] of parts) hash.update(name).update(typeof part === 'string' ? part : part.digest);
  return hash.digest('hex');
}

function nameOf(build: string): string {
  return build.slice(0, NAME_CHARS);
}

/** Whether it is there, and nothing else: a disk may have lost some of it, and a guest can reach it. */
function isWhole(root: string, parts: ProgramParts): boolean {
  try {
    let found = 0;
    for (const name of filesBelow(root)) {
      if (!isPart(join(root, name), parts.get(name))) return false;
      found += 1;
    }
    return found === parts.size;
  } catch {
    return false;
  }
}

/** Follows no link. */
function* filesBelow(root: string, directory = ''): Generator<string> {
  for (const entry of readdirSync(join(root, directory), { withFileTypes: true })) {
    const name = join(directory, entry.name);
    if (entry.isDirectory()) yield* filesBelow(root, name);
    else yield name;
  }
}

function isPart(path: string, part: ProgramPart | undefined): boolean {
  if (part === undefined) return false;
  if (typeof part === 'string') return readlinkSync(path) === part;
  const found = lstatSync(path);
  return found.isFile() && found.size === part.bytes && digestOf(path, READ_PUT).digest === part.digest;
}

function digestOf(path: string, flags: number): { bytes: number; digest: string } {
  const hash = createHash('sha256');
  const fd = openSync(path, flags);
  try {
    let bytes = 0;
    for (let read = readSync(fd, piece); read > 0; read = readSync(fd, piece)) {
      hash.update(piece.subarray(0, read));
      bytes += read;
    }
    return { bytes, digest: hash.digest('hex') };
  } finally {
    closeSync(fd);
  }
}

/** With a mode of its own: a copy has that of what was copied. */
function copyPrivately(source: string, path: string): void {
  copyFileSync(source, path);
  chmodSync(path, 0o600);
}

/** Written beside its place: nothing half is ever there. */
async function make(root: string, parts: ProgramParts): Promise<void> {
  const fresh = `${root}.new`;
  await removeTree(fresh);
  try {
    for (const [name, part] of parts) {
      const path = join(fresh, name);
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      if (typeof part === 'string') symlinkSync(part, path);
      else copyPrivately(part.source, path);
    }
    if (!isWhole(fresh, parts)) throw new Error('the installed files were replaced meanwhile');
    await removeTree(root);
    renameSync(fresh, root);
  } catch (error) {
    await removeTree(fresh);
    throw error;
  }
}
