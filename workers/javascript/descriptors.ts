import fs from 'node:fs';
import { format, promisify } from 'node:util';
import type { OutputStream } from '../output-writer.ts';
import { readAllInputSync, readInputSync } from './input.ts';
import { announceOutput } from './output-limit.ts';
import { program, standIn } from './program.ts';
import { OUTPUT } from './shared.ts';

const OUTPUTS: (OutputStream | undefined)[] = [undefined, 'stdout', 'stderr'];
const PATHS = new Map(
  ['stdin', 'stdout', 'stderr'].flatMap((name, fd) =>
    [`/dev/${name}`, `/dev/fd/${fd}`, `/proc/self/fd/${fd}`].map((path): [string, number] => [path, fd]),
  ),
);

type AnyFunction = (...args: unknown[]) => unknown;
type Callback = (error: unknown, ...results: unknown[]) => void;
const { nextTick } = process;
const { apply } = Reflect;

/** For what writes to a program's output files itself: the cell is to look at their sizes. */
export function outputDescriptor(fd: unknown): unknown {
  if (fd === 1 || fd === 2) announceOutput(program.shared, OUTPUT.direct);
  return mapDescriptor(fd);
}

/** The descriptor a program means by 1 and 2: its own output files, not what the cell has there. */
export function mapDescriptor(fd: unknown): unknown {
  return fd === 1 ? program.descriptors.stdout : fd === 2 ? program.descriptors.stderr : fd;
}

/**
 * For a function that opens `path`: when that is a program's way to name its own output (`/dev/stdout`), points `args` at
 * the output file, to append: a program that opens its standard output must not truncate what it wrote before.
 */
export function standardFile(name: string, path: unknown, args: unknown[]): number | undefined {
  const fd = typeof path === 'string' && path.charCodeAt(0) === 47 ? PATHS.get(path) : undefined;
  const stream = fd === undefined ? undefined : OUTPUTS[fd];
  if (stream === undefined) return undefined;
  announceOutput(program.shared, OUTPUT.direct);
  args[0] = program.outputPaths[stream];
  if (name.startsWith('open')) args.splice(1, typeof args[1] === 'function' ? 0 : 1, 'a');
  else if (!name.startsWith('readFile')) {
    const options = args[2];
    const given = typeof options === 'string' ? { encoding: options } : typeof options === 'object' ? options : {};
    args.splice(2, typeof options === 'function' ? 0 : 1, { ...given, flag: 'a' });
  }
  return fd;
}

/** Makes the descriptors 1 and 2 and paths such as `/dev/stdout` mean the program's own output throughout `fs`. */
export function replaceDescriptorFunctions(): void {
  for (const name of ['fstat', 'fsync', 'fdatasync']) {
    for (const form of [name, `${name}Sync`])
      replace(form, (original) => (...args) => {
        args[0] = mapDescriptor(args[0]);
        return apply(original, fs, args);
      });
  }
  for (const name of ['write', 'writev']) replaceWrite(name);
  for (const name of ['writeFile', 'appendFile']) replaceWriteFile(name);
  // Node writes to the process's own.
  const { writeSync } = fs;
  replace(
    '_rawDebug',
    () =>
      (...words) =>
        void writeSync(2, `${format(...words)}\n`),
    process,
  );
}

/** And 0 and `/dev/stdin` its input, where these descriptors are the cell's. */
export function replaceForeignDescriptors(): void {
  // A program that closes its standard output must not close a descriptor of its cell.
  replace('closeSync', (original) => (fd) => (isStandard(fd) ? undefined : original(fd)));
  replace('close', (original) => (fd, callback) => {
    if (!isStandard(fd)) return original(fd, callback);
    return typeof callback === 'function' ? nextTick(callback as Callback, null) : undefined;
  });
  replaceReads();
}

function replace(name: string, make: (original: AnyFunction) => AnyFunction, owner: object = fs): void {
  const functions = owner as Record<string, AnyFunction>;
  const original = functions[name] as AnyFunction;
  functions[name] = standIn(original, make(original));
}

function isStandard(fd: unknown): boolean {
  return fd === 0 || fd === 1 || fd === 2;
}

function replaceWrite(name: string): void {
  replace(`${name}Sync`, (original) => (...args) => {
    const bytes = ownBytes(args);
    if (bytes === undefined) return apply(original, fs, args);
    program.writer?.write(OUTPUTS[args[0] as number] as OutputStream, bytes);
    return bytes.byteLength;
  });
  replace(name, (original) => (...args) => {
    const bytes = ownBytes(args);
    const callback = args.at(-1);
    if (bytes === undefined || typeof callback !== 'function') return apply(original, fs, args);
    try {
      program.writer?.write(OUTPUTS[args[0] as number] as OutputStream, bytes);
    } catch (error) {
      return nextTick(callback as Callback, error);
    }
    return nextTick(callback as Callback, null, bytes.byteLength, args[1]);
  });
}

/** What is written as a whole, to descriptor 1 or 2 or to a path that means them, passes by the writer too. */
function replaceWriteFile(name: string): void {
  const written = (args: unknown[]) => {
    const bytes = fileBytes(args);
    if (bytes !== undefined) program.writer?.write(OUTPUTS[standardOf(args[0]) as number] as OutputStream, bytes);
    return bytes !== undefined;
  };
  replace(
    `${name}Sync`,
    (original) =>
      (...args) =>
        written(args) ? undefined : apply(original, fs, args),
  );
  replace(name, (original) => (...args) => {
    const callback = args.at(-1);
    if (typeof callback !== 'function') return apply(original, fs, args);
    try {
      return written(args) ? nextTick(callback as Callback, null) : apply(original, fs, args);
    } catch (error) {
      return nextTick(callback as Callback, error);
    }
  });
  replace(
    name,
    (original) =>
      async (...args) =>
        written(args) ? undefined : apply(original, fs.promises, args),
    fs.promises,
  );
}

/** 0, 1 or 2 for a descriptor or a path that means a standard stream. */
function standardOf(file: unknown): number | undefined {
  return isStandard(file) ? (file as number) : typeof file === 'string' ? PATHS.get(file) : undefined;
}

/** What a `writeFile` writes to standard output or error; undefined for anything else. */
function fileBytes(args: unknown[]): Uint8Array | undefined {
  const data = args[1];
  const options = args[2];
  if (!standardOf(args[0]) || program.writer === undefined) return undefined;
  if (ArrayBuffer.isView(data)) return view(data);
  if (typeof data !== 'string') return undefined;
  const encoding = typeof options === 'string' ? options : (options as { encoding?: string } | undefined)?.encoding;
  return Buffer.from(data, (encoding ?? 'utf8') as BufferEncoding);
}

/** The bytes of a write to descriptor 1 or 2; undefined for anything else, and for arguments Node is to complain about. */
function ownBytes(args: unknown[]): Uint8Array | undefined {
  // By index, as below: a program may have done away with the iterator of arrays.
  const fd = args[0];
  const data = args[1];
  const third = args[2];
  const fourth = args[3];
  if ((fd !== 1 && fd !== 2) || program.writer === undefined) return undefined;
  if (typeof data === 'string')
    return Buffer.from(data, typeof fourth === 'string' ? (fourth as BufferEncoding) : 'utf8');
  if (Array.isArray(data)) return data.every(ArrayBuffer.isView) ? Buffer.concat(data.map(view)) : undefined;
  if (!ArrayBuffer.isView(data)) return undefined;
  const options =
    typeof third === 'object' && third !== null ? (third as { offset?: number; length?: number }) : undefined;
  const offset = options?.offset ?? (typeof third === 'number' ? third : 0);
  const length = options?.length ?? (typeof fourth === 'number' ? fourth : data.byteLength - offset);
  if (offset < 0 || length < 0 || offset + length > data.byteLength) return undefined;
  return view(data).subarray(offset, offset + length);
}

function view(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function replaceReads(): void {
  const isInput = (path: unknown) => path === 0 || (typeof path === 'string' && PATHS.get(path) === 0);
  const encoded = (bytes: Buffer, options: unknown) => {
    const encoding =
      typeof options === 'string' ? options : (options as { encoding?: string } | null | undefined)?.encoding;
    return encoding ? bytes.toString(encoding as BufferEncoding) : bytes;
  };
  const opened = (path: unknown) => (typeof path === 'string' ? PATHS.get(path) : undefined);
  replace(
    'openSync',
    (original) =>
      (...args) =>
        opened(args[0]) ?? apply(original, fs, args),
  );
  replace('open', (original) => (...args) => {
    const fd = opened(args[0]);
    if (fd === undefined) return apply(original, fs, args);
    return nextTick(args.at(-1) as Callback, null, fd);
  });
  replace(
    'readFileSync',
    (original) =>
      (...args) =>
        isInput(args[0]) ? encoded(readAllInputSync(), args[1]) : apply(original, fs, args),
  );
  replace('readFile', (original) => (...args) => {
    if (!isInput(args[0])) return apply(original, fs, args);
    return nextTick(args.at(-1) as Callback, null, encoded(readAllInputSync(), args.length > 2 ? args[1] : undefined));
  });
  replace(
    'readFile',
    (original) =>
      (...args) => {
        if (!isInput(args[0])) return apply(original, fs.promises, args);
        return Promise.resolve(encoded(readAllInputSync(), args[1]));
      },
    fs.promises,
  );
  replace(
    'readSync',
    (original) =>
      (...args) =>
        args[0] === 0 ? readInto(args) : apply(original, fs, args),
  );
  replace('read', (original) => (...args) => {
    if (args[0] !== 0) return apply(original, fs, args);
    const callback = args.at(-1) as Callback;
    // Waits in the thread: rare beside `process.stdin`, and a program that reads descriptor 0 has nothing else to do.
    const given = args[1];
    const isView = ArrayBuffer.isView(given);
    const target = isView ? given : ((given as { buffer?: unknown }).buffer ?? Buffer.alloc(16_384));
    const rest = isView ? args.slice(2, -1) : [given];
    return setImmediate(() => callback(null, readInto([0, target, ...rest]), target));
  });
}

/** Makes `/dev/stdin` mean descriptor 0 where that may be a socket, which has no path to be opened by. */
export function replaceInputPaths(): void {
  const inputOf = (path: unknown) => (typeof path === 'string' && PATHS.get(path) === 0 ? 0 : path);
  replace(
    'openSync',
    (original) =>
      (...args) =>
        inputOf(args[0]) === 0 ? 0 : apply(original, fs, args),
  );
  replace('open', (original) => (...args) => {
    if (inputOf(args[0]) !== 0) return apply(original, fs, args);
    return nextTick(args.at(-1) as Callback, null, 0);
  });
  for (const name of ['readFile', 'readFileSync']) {
    replace(
      name,
      (original) =>
        (path, ...rest) =>
          apply(original, fs, [inputOf(path), ...rest]),
    );
  }
  const readFile = promisify(fs.readFile) as AnyFunction;
  replace(
    'readFile',
    (original) =>
      (path, ...rest) =>
        inputOf(path) === 0 ? readFile(0, ...rest) : apply(original, fs.promises, [path, ...rest]),
    fs.promises,
  );
}

function readInto(args: unknown[]): number {
  const into = view(args[1] as ArrayBufferView);
  const third = args[2];
  const fourth = args[3];
  const options =
    typeof third === 'object' && third !== null ? (third as { offset?: number; length?: number }) : undefined;
  const offset = options?.offset ?? (typeof third === 'number' ? third : 0);
  const length = options?.length ?? (typeof fourth === 'number' ? fourth : into.byteLength - offset);
  const bytes = readInputSync(length);
  into.set(bytes, offset);
  return bytes.byteLength;
}
