import type * as NetModule from 'node:net';
import os from 'node:os';
import { outputDescriptor } from './descriptors.ts';
import { absolute, define, program, standIn } from './program.ts';
import { SHARED } from './shared.ts';

type AnyFunction = (...args: unknown[]) => unknown;
const { apply } = Reflect;

/** A URI of SQLite with a relative path, and one of a database that lies in memory. */
const RELATIVE_URI = /^file:(?!\/|%2f)[^?#]/i;
const MEMORY_URI = /^file::memory:(?:[?#]|$)|^[^?#]*\?(?:[^#]*&)?mode=memory(?:[&#]|$)/;

/** What depends on the working or temporary directory and is there without being imported, or loaded anyway. */
export function replacePlaces(): void {
  replace(os, 'tmpdir', () => () => {
    const directory = process.env.TMPDIR || process.env.TMP || process.env.TEMP || program.tmpDir;
    return directory.length > 1 && directory.endsWith('/') ? directory.slice(0, -1) : directory;
  });
  // Node asks the environment of the whole process: of a thread's that is the cell's.
  if (!program.ownsProcess) replace(os, 'homedir', (original) => () => homeOfProgram() ?? original());
  replace(
    process,
    'loadEnvFile',
    (original) =>
      (path = '.env') =>
        original(absolute(path)),
  );
}

/** What `HOME` is to the program itself: a thread that it has started may have another environment. */
export function homeOfProgram(): string | undefined {
  return program.slot === SHARED.threads ? process.env.HOME : program.home;
}

/** Heap snapshots go to the program's directory. */
export function replaceHeapSnapshot(v8: object): void {
  replace(
    v8,
    'writeHeapSnapshot',
    (original) =>
      (file, ...rest) =>
        original(absolute(file ?? defaultSnapshotName()), ...rest),
  );
}

/** The path of a unix socket may come as a string, in options, or in the list net itself makes of either. */
export function replaceSocketPaths(net: typeof NetModule): void {
  replace(net.Socket.prototype, 'connect', connectable);
  replace(net.Server.prototype, 'listen', connectable);
}

function replace(owner: object, name: string, make: (original: AnyFunction) => AnyFunction): void {
  const original = (owner as Record<string, AnyFunction>)[name] as AnyFunction;
  define(owner, name, standIn(original, make(original)));
}

function defaultSnapshotName(): string {
  return `Heap.${Date.now()}.${process.pid}.heapsnapshot`;
}

function connectable(original: AnyFunction): AnyFunction {
  return function locate(this: unknown, ...args: unknown[]) {
    const [first] = args;
    if (Array.isArray(first)) first[0] = located(first[0]);
    else args[0] = located(first);
    return apply(original, this, args);
  };
}

function located(target: unknown): unknown {
  if (typeof target === 'string') return isPort(target) ? target : socketPath(target);
  if (typeof target !== 'object' || target === null) return target;
  const { path } = target as { path?: unknown };
  if (typeof path !== 'string' || socketPath(path) === path) return target;
  return Object.assign(Object.create(Object.getPrototypeOf(target)), target, { path: socketPath(path) });
}

function isPort(text: string): boolean {
  return text.trim() !== '' && Number(text) >= 0;
}

/** A name that starts with NUL is an abstract socket: no file. */
function socketPath(path: string): unknown {
  return path.charCodeAt(0) === 0 ? path : absolute(path);
}

/**
 * A WebAssembly program writes to the output of the program that runs it, and finds the directories it was given. It writes
 * by itself: what is too much is cut off, as of a child process.
 */
export function replaceWasi(wasi: Record<string, unknown>): void {
  const construct: ProxyHandler<typeof Object> = {
    construct: (target, [options, ...rest], newTarget) =>
      Reflect.construct(target, [ownPlaces(options), ...rest], newTarget),
  };
  wasi.WASI = new Proxy(wasi.WASI as typeof Object, construct);
}

function ownPlaces(options: unknown): unknown {
  if (typeof options !== 'object' || options === null) return options;
  const { stdout = 1, stderr = 2, preopens } = options as Record<string, unknown>;
  const directories =
    typeof preopens === 'object' && preopens !== null
      ? Object.fromEntries(Object.entries(preopens).map(([name, path]) => [name, absolute(path)]))
      : preopens;
  const streams = { stdout: outputDescriptor(stdout), stderr: outputDescriptor(stderr) };
  return { ...options, ...streams, preopens: directories };
}

/** Database files lie where the program means them. SQL that names a file itself (`ATTACH`) does not come by here. */
export function replaceDatabase(sqlite: Record<string, unknown>): void {
  const filePath = (path: unknown) => {
    if (typeof path !== 'string') return absolute(path);
    if (path.startsWith('file:')) return absoluteUri(path);
    return path === ':memory:' ? path : absolute(path);
  };
  const construct: ProxyHandler<typeof Object> = {
    construct: (target, [path, ...rest], newTarget) => Reflect.construct(target, [filePath(path), ...rest], newTarget),
  };
  sqlite.DatabaseSync = new Proxy(sqlite.DatabaseSync as typeof Object, construct);
  const backup = sqlite.backup as AnyFunction | undefined;
  if (backup === undefined) return;
  sqlite.backup = standIn(backup, (source, path, ...rest) => backup(source, filePath(path), ...rest));
}

/** As SQLite reads it (https://sqlite.org/uri.html). One that names no file, or an absolute one, stays as it is. */
function absoluteUri(uri: string): string {
  if (program.ownsProcess || !RELATIVE_URI.test(uri) || MEMORY_URI.test(uri)) return uri;
  return `file://${program.cwdPrefix.replace(/[%?#]/g, encodeURIComponent)}${uri.slice('file:'.length)}`;
}
