import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { brokenModule } from './modules.ts';
import { OWN_FRAME } from './own-frame.ts';
import { define, program, standIn } from './program.ts';
import { SHARED } from './shared.ts';
import { isExiting, noteEarlyEnd } from './usage.ts';

const { exchange } = Atomics;
const { max } = Math;
const toNumber = Number;

/** Node's exit code for a program that still awaits at its top level when there is nothing left to wait for. */
const UNSETTLED = 13;

/** Node's exit codes for a program that fails, and for one of which that fails what handles its errors. */
const FAILED = 1;
const HANDLER_THREW = 7;

/** How deep Node shows such an error at least. */
const DEPTH = 5;

/** What Node calls that. */
const EMITTER = 'kEnhanceStackBeforeInspector';

const emit = process.emit as (...args: unknown[]) => boolean;
const reallyExit = (process as unknown as { reallyExit(code: number): never }).reallyExit.bind(process);
const { apply } = Reflect;
const { getOwnPropertySymbols } = Object;
const hasCapture = process.hasUncaughtExceptionCaptureCallback;

/** What is given a function that handles errors before any listener hears of them. */
const CAPTURING = ['setUncaughtExceptionCaptureCallback', 'addUncaughtExceptionCaptureCallback'] as const;

/** Of what compiles modules. */
const MODULE_FRAME = /^ +at .*\(node:internal\/modules\/esm\//m;
/** The last one is followed by what else the error holds. */
const FRAME = /^ +at (?:.*\()?((?:file:\/\/)?\/[^\n]*?):(\d+):(\d+)\)?(?: \{)?$/m;

/**
 * Writes the error that ends the program, and ends it, as Node does for a program's main thread. Node's own way for a
 * worker sends a copy of the error to the parent thread: it arrives later, without the error's class, and not at all for
 * some; and the worker's exit code is another one than a process has after an error in an `exit` listener, or in one for
 * errors. `process.emit` is replaced rather than a listener added: a listener would be seen, and could be removed.
 */
export function reportUncaught(): void {
  define(process, 'emit', function emitWatched(this: NodeJS.Process, ...args: unknown[]) {
    const [name, error, origin] = args;
    const tells = name === 'uncaughtException' || name === 'uncaughtExceptionMonitor';
    // Node says where it comes from; one that a program emits itself ends nothing.
    if (!tells || this !== process || origin === undefined) return apply(emit, this, args);
    const handled = orEnd(() => apply(emit, this, args));
    if (name === 'uncaughtException' && !handled && !apply(hasCapture, process, [])) leave(tellExit, error);
    return handled;
  });
  // The errors of a domain come by here as well.
  for (const name of CAPTURING) {
    const original = process[name] as ((callback: unknown) => void) | undefined;
    // Not every Node has the second.
    if (original === undefined) continue;
    const replacement = (callback: unknown) => {
      if (typeof callback !== 'function') return apply(original, process, [callback]);
      return apply(original, process, [(error: unknown) => orEnd(() => apply(callback, undefined, [error]))]);
    };
    define(process, name, standIn(original, replacement));
  }
}

/** Ends the program with the error of what handles its errors. */
function orEnd<T>(handle: () => T): T {
  try {
    return handle();
  } catch (error) {
    leave(() => HANDLER_THREW, error);
    throw error;
  }
}

/**
 * Writes `error` and ends this thread, or process, at once. Before there is a program, it is Node that tells who waits for it
 * of the error.
 */
function leave(codeOf: () => typeof process.exitCode, error: unknown): void {
  if (program.writer === undefined) return;
  const code = codeOf();
  report(error);
  noteEarlyEnd();
  reallyExit(toNumber(code) || 0);
}

let failing = false;

/** Whether the program has failed: its error is still to be written when its `exit` listeners have run. */
export function isFailing(): boolean {
  return failing;
}

/** Tells `exit` listeners that the program fails, unless the error is one of theirs; returns the code they leave it with. */
function tellExit(): typeof process.exitCode {
  failing = true;
  if (!isExiting()) {
    (process as unknown as { _exiting: boolean })._exiting = true;
    process.exitCode = FAILED;
    try {
      process.emit('exit', FAILED);
    } catch {
      // The error before is the one that counts.
    }
  }
  return process.exitCode ?? FAILED;
}

/**
 * Says that the program ends while it awaits at its top level, as Node does for a main thread. What Node says for a worker
 * goes past the program, to the standard error of the process.
 */
export function reportUnsettled(): void {
  const before = process.emit as typeof emit;
  let isUndecided = false;
  define(process, 'emit', function emitDecided(this: NodeJS.Process, ...args: unknown[]) {
    // Between the two Node decides on the exit code of such a program, which has none.
    if (args[0] === 'exit' && args[1] === UNSETTLED && isUndecided && this === process && isExiting()) {
      say('Warning: Detected unsettled top-level await\n');
    }
    const result = apply(before, this, args);
    if (args[0] === 'beforeExit') isUndecided = process.exitCode === undefined;
    return result;
  });
}

function report(error: unknown): void {
  if (exchange(program.shared, SHARED.reported, 1) === 1) return;
  say(describe(error));
}

function say(text: string): void {
  try {
    program.writer?.write('stderr', Buffer.from(text));
  } catch {
    // Standard error is full or gone: there is nowhere left to say so.
  }
}

function describe(error: unknown): string {
  const version = `\n\nNode.js ${process.version}\n`;
  let text: string;
  try {
    addEmitter(error);
    // Nobody else's view of it: an error's own inspection may show anything, or fail.
    text = inspect(error, { depth: max(inspect.defaultOptions.depth ?? Infinity, DEPTH), customInspect: false });
  } catch {
    return `Uncaught error that cannot be shown${version}`;
  }
  if (!(error instanceof Error)) return `Uncaught:\n${text}${version}`;
  text = text.replace(OWN_FRAME, '');
  return `${codeFrame(text) || (error instanceof SyntaxError ? moduleFrame(text) : '')}${text}${version}`;
}

/** Node keeps with an error that nobody listened for how to add to its stack who emitted it, and adds it before it shows it. */
function addEmitter(error: unknown): void {
  try {
    if (!(error instanceof Error)) return;
    const key = getOwnPropertySymbols(error).find(({ description }) => description === EMITTER);
    const enhanced = key && (error as unknown as Record<symbol, () => unknown>)[key]?.();
    if (typeof enhanced === 'string') error.stack = enhanced;
  } catch {
    // It may be frozen.
  }
}

/** The same for a SyntaxError of a module, whose stack does not say where it is. */
function moduleFrame(stack: string): string {
  if (/^(?:\/|file:)/.test(stack) || FRAME.test(stack) || !MODULE_FRAME.test(stack)) return '';
  try {
    const broken = brokenModule();
    return broken ? frameOf(broken.url, broken.code, broken.line, broken.column) : '';
  } catch {
    return '';
  }
}

function frameOf(file: string, source: string, line: number, column: number): string {
  const text = source.split('\n')[line - 1];
  return text === undefined ? '' : `${file}:${line}\n${text}\n${' '.repeat(column - 1)}^\n\n`;
}

/** `file:line`, that line, a caret. Empty when the stack starts with it already, as a SyntaxError's does. */
function codeFrame(stack: string): string {
  const match = FRAME.exec(stack);
  if (match === null || stack.startsWith('/') || stack.startsWith('file:')) return '';
  const [, file = '', line = '', column = ''] = match;
  try {
    const path = file.startsWith('file:') ? fileURLToPath(file) : file;
    const source = program.mainSource?.path === path ? program.mainSource.code : readFileSync(path, 'utf8');
    return frameOf(file, source, Number(line), Number(column));
  } catch {
    return '';
  }
}
