import type { MessagePort } from 'node:worker_threads';
import type { CellMessage, ThreadMessage } from '../../src/cell/messages.ts';
import type { OutputDescriptors, OutputWriter } from '../output-writer.ts';
import { figuresOf, REAPED_BYTES, SHARED, SHARED_BYTES } from './shared.ts';

/**
 * What this thread knows of the one program it runs. The parts of the guest's surface are put in place while the thread
 * boots, before there is a program; each looks here when it is used.
 */
export interface Program {
  /** It runs in a process of its own, not in a thread of a cell. */
  ownsProcess: boolean;
  /** Of a thread: the process is in the cell's. */
  cwd: string;
  /** `cwd` and a slash: a relative path behind it is absolute, and `..` means what the kernel takes it for. */
  cwdPrefix: string;
  tmpDir: string;
  /** Of a thread that the program has started: what `HOME` was to the program then. */
  home: string | undefined;
  /** Undefined in a spare thread and in a thread the guest started itself. */
  writer: OutputWriter | undefined;
  descriptors: OutputDescriptors;
  outputPaths: { stdout: string; stderr: string };
  /** Whether anything can arrive on standard input. */
  stdin: boolean;
  /** The code as the user wrote it, when it does not lie at its path: for the line shown with an uncaught error. */
  mainSource: { path: string; code: string } | undefined;
  control: MessagePort | undefined;
  shared: Int32Array;
  /** Where this thread notes which one of the kernel's it is; undefined where there are too many, in a process of its own. */
  slot: number | undefined;
  /** The part of `shared` that `FIGURE` lays out. */
  figures: BigInt64Array;
  /** See `REAPED_BYTES`. */
  reaped: BigInt64Array;
  /** Of both output streams together; undefined: no limit. */
  outputBytes: number | undefined;
  /** How many child processes may run at one time; undefined: no limit. */
  maxChildren: number | undefined;
  /** Tells of each child process, 0 for one that is waited for synchronously, where nobody else would know. */
  noteChild: ((pid: number) => void) | undefined;
  /** Of a process: it uses what ends well only where Node frees it, a database or an add-on. */
  needsTeardown: boolean;
}

const noProgram = new Int32Array(new SharedArrayBuffer(SHARED_BYTES));

/** This thread's program. */
export const program: Program = {
  ownsProcess: false,
  cwd: '/',
  cwdPrefix: '/',
  tmpDir: '/tmp',
  home: undefined,
  writer: undefined,
  descriptors: { stdout: 1, stderr: 2, marks: -1 },
  outputPaths: { stdout: '/dev/null', stderr: '/dev/null' },
  stdin: false,
  mainSource: undefined,
  control: undefined,
  shared: noProgram,
  slot: SHARED.threads,
  figures: figuresOf(noProgram),
  reaped: new BigInt64Array(REAPED_BYTES / BigInt64Array.BYTES_PER_ELEMENT),
  outputBytes: undefined,
  maxChildren: undefined,
  noteChild: undefined,
  needsTeardown: false,
};

/** Changes the working directory. `path` is absolute. */
export function setWorkingDirectory(path: string): void {
  program.cwd = path;
  program.cwdPrefix = path.endsWith('/') ? path : `${path}/`;
}

/** A path as the program means it: relative ones are below its own working directory, not the cell's. */
export function absolute(path: unknown): unknown {
  if (program.ownsProcess) return path;
  if (typeof path === 'string') {
    return path.length === 0 || path.charCodeAt(0) === 47 ? path : program.cwdPrefix + path;
  }
  if (path instanceof Uint8Array && path.byteLength > 0 && path[0] !== 47) {
    const prefix = Buffer.from(program.cwdPrefix);
    const joined = Buffer.allocUnsafe(prefix.byteLength + path.byteLength);
    joined.set(prefix);
    joined.set(path, prefix.byteLength);
    return joined;
  }
  return path;
}

/** Tells the cell. */
export function tell(message: ThreadMessage): void {
  program.control?.postMessage(message);
}

/** Puts `value` in the place of a method or property, replaceable, and enumerable where that is: Node exports what is. */
export function define(object: object, name: string, value: unknown): void {
  const enumerable = Object.getOwnPropertyDescriptor(object, name)?.enumerable ?? false;
  Object.defineProperty(object, name, { value, configurable: true, writable: true, enumerable });
}

/** A function that stands in for `original`, with its name and its properties such as `util.promisify.custom`. */
export function standIn<F extends (...args: never[]) => unknown>(original: F, replacement: F): F {
  Object.defineProperty(replacement, 'name', { value: original.name, configurable: true });
  for (const key of Reflect.ownKeys(original)) {
    if (typeof key === 'string') continue;
    const descriptor = Object.getOwnPropertyDescriptor(original, key);
    if (descriptor !== undefined) Object.defineProperty(replacement, key, descriptor);
  }
  return replacement;
}

export type { CellMessage };
