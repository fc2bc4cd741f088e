import fs from 'node:fs';
import { join } from 'node:path';
import { outputDescriptor, standardFile } from './descriptors.ts';
import { absolute, define, program, standIn } from './program.ts';

/**
 * What a function of `fs` or `fs.promises` takes that depends on the working directory:
 * `path` first argument, `paths` first and second, `link` the second only (a symbolic link's target is text),
 * `file` a path or a descriptor that may be one of the standard streams, `glob` the `cwd` of its options,
 * `made` first argument, and it gives back a path below that, `copied` first and second, of which it asks a filter.
 * The working directory belongs to the process and a cell runs many programs, so each gets its own by these stand-ins.
 */
export type PathKind = 'path' | 'paths' | 'link' | 'file' | 'glob' | 'made' | 'copied';

const BOTH: Record<string, PathKind> = {
  access: 'path',
  appendFile: 'file',
  chmod: 'path',
  chown: 'path',
  copyFile: 'paths',
  cp: 'copied',
  glob: 'glob',
  lchmod: 'path',
  lchown: 'path',
  link: 'paths',
  lstat: 'path',
  lutimes: 'path',
  mkdir: 'made',
  mkdtemp: 'made',
  open: 'file',
  opendir: 'path',
  readFile: 'file',
  readdir: 'path',
  readlink: 'path',
  realpath: 'path',
  rename: 'paths',
  rm: 'path',
  rmdir: 'path',
  stat: 'path',
  statfs: 'path',
  symlink: 'link',
  truncate: 'path',
  unlink: 'path',
  utimes: 'path',
  writeFile: 'file',
};

/** Functions of `fs.promises` by what they take. */
export const PROMISES_PATHS: Record<string, PathKind> = { ...BOTH, mkdtempDisposable: 'made', watch: 'path' };

/** Functions of `fs` by what they take: each of {@link BOTH} with its `Sync` form, and those that have one form. */
export const FS_PATHS: Record<string, PathKind> = {
  ...BOTH,
  ...Object.fromEntries(Object.entries(BOTH).map(([name, kind]) => [`${name}Sync`, kind])),
  exists: 'path',
  existsSync: 'path',
  mkdtempDisposableSync: 'made',
  openAsBlob: 'path',
  openAsBlobSync: 'path',
  unwatchFile: 'path',
  watch: 'path',
  watchFile: 'path',
};

/** Functions of `fs` that take no path, or reach the disk only through a function above. */
export const FS_WITHOUT_PATH = new Set([
  // Descriptors: the standard ones are mapped in descriptors.ts.
  ...[
    'close',
    'fchmod',
    'fchown',
    'fdatasync',
    'fstat',
    'fsync',
    'ftruncate',
    'futimes',
    'read',
    'readv',
    'write',
    'writev',
  ].flatMap((name) => [name, `${name}Sync`]),
  // Streams open their file with `fs.open`.
  'createReadStream',
  'createWriteStream',
  'ReadStream',
  'WriteStream',
  'FileReadStream',
  'FileWriteStream',
  'Utf8Stream',
  'Dir',
  'Dirent',
  'Stats',
  '_toUnixTimestamp',
]);

/** Functions of `fs.promises` that take no path. */
export const PROMISES_WITHOUT_PATH = new Set<string>([]);

type AnyFunction = (...args: unknown[]) => unknown;
const { apply } = Reflect;

/** Puts stand-ins with the program's working directory in the place of all of `fs` and `fs.promises` that takes paths. */
export function replaceFileFunctions(): void {
  replaceAll(fs, FS_PATHS);
  replaceAll(fs.promises, PROMISES_PATHS);
}

function replaceAll(owner: object, kinds: Record<string, PathKind>): void {
  const functions = owner as Record<string, AnyFunction | undefined>;
  for (const [name, kind] of Object.entries(kinds)) {
    const original = functions[name];
    // In a process of its own the working directory is the program's.
    if (original === undefined || (program.ownsProcess && kind !== 'file')) continue;
    const replacement = standIn(original, replace(original, kind));
    Object.defineProperty(owner, name, { ...Object.getOwnPropertyDescriptor(owner, name), value: replacement });
    const native = (original as { native?: AnyFunction }).native;
    if (native !== undefined) define(replacement, 'native', standIn(native, replace(native, 'path')));
  }
}

function replace(original: AnyFunction, kind: PathKind): AnyFunction {
  switch (kind) {
    case 'path':
      return function path(this: unknown, ...args: unknown[]) {
        args[0] = absolute(args[0]);
        return apply(original, this, args);
      };
    case 'paths':
      return function paths(this: unknown, ...args: unknown[]) {
        args[0] = absolute(args[0]);
        args[1] = absolute(args[1]);
        return apply(original, this, args);
      };
    case 'link':
      return function link(this: unknown, ...args: unknown[]) {
        args[1] = absolute(args[1]);
        return apply(original, this, args);
      };
    case 'file':
      return function file(this: unknown, ...args: unknown[]) {
        const path = args[0];
        if (typeof path === 'number') args[0] = outputDescriptor(path);
        else if (standardFile(original.name, path, args) === undefined) args[0] = absolute(path);
        return apply(original, this, args);
      };
    case 'glob':
      return function glob(this: unknown, pattern: unknown, ...rest: unknown[]) {
        const options = typeof rest[0] === 'object' && rest[0] !== null ? (rest[0] as { cwd?: unknown }) : undefined;
        const located = { ...options, cwd: absolute(options?.cwd ?? program.cwd) };
        return apply(original, this, [pattern, located, ...(options === undefined ? rest : rest.slice(1))]);
      };
    case 'made':
      return function made(this: unknown, ...args: unknown[]) {
        const [path, options] = args;
        const prefix = Buffer.from(program.cwdPrefix);
        args[0] = absolute(path);
        // Of a directory `mkdir` always tells as text.
        const encoding = original.name.startsWith('mkdtemp') ? encodingOf(options) : undefined;
        const asGiven = (made: unknown) => (args[0] === path ? made : behind(prefix, made, encoding));
        const last = args.length - 1;
        const callback = args[last];
        if (typeof callback === 'function')
          args[last] = (error: unknown, ...made: unknown[]) => callback(error, ...made.map(asGiven));
        const result = apply(original, this, args);
        return result instanceof Promise ? result.then(asGiven) : asGiven(result);
      };
    case 'copied':
      return function copied(this: unknown, from: unknown, to: unknown, options: unknown, ...rest: unknown[]) {
        const filter = (options as { filter?: unknown } | null | undefined)?.filter;
        const asked = typeof filter === 'function' ? { ...(options as object), filter: asGiven } : options;
        const [source, destination] = [givenBy(from), givenBy(to)];
        function asGiven(this: unknown, ...paths: [string, string]) {
          return apply(filter as AnyFunction, this, [source(paths[0]), destination(paths[1])]);
        }
        return apply(original, this, [absolute(from), absolute(to), asked, ...rest]);
      };
  }
}

function encodingOf(options: unknown): BufferEncoding | undefined {
  if (typeof options === 'string') return options as BufferEncoding;
  return (options as { encoding?: BufferEncoding } | null | undefined)?.encoding;
}

/** Of a path that was made, text in `encoding` or bytes, what comes behind `prefix`; of what is disposable, its `path`. */
function behind(prefix: Buffer, made: unknown, encoding: BufferEncoding | undefined): unknown {
  if (typeof made === 'string' || made instanceof Uint8Array) {
    const bytes = typeof made === 'string' ? Buffer.from(made, encoding) : Buffer.from(made);
    if (!prefix.equals(bytes.subarray(0, prefix.length))) return made;
    const rest = bytes.subarray(prefix.length);
    return typeof made === 'string' ? rest.toString(encoding) : rest;
  }
  if (typeof made === 'object' && made !== null) {
    define(made, 'path', behind(prefix, (made as { path: unknown }).path, encoding));
  }
  return made;
}

function isRelative(path: unknown): path is string {
  return typeof path === 'string' && absolute(path) !== path;
}

/** Of a path that is copied: from what it is called below here to what it is called below `path`. */
function givenBy(path: unknown): (located: string) => string {
  if (!isRelative(path)) return (located) => located;
  const root = absolute(path) as string;
  // What is below it, Node makes of it and a name.
  const below = join(root, '/');
  return (located) => (located === root ? path : join(path, located.slice(below.length)));
}
