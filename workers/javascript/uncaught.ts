import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { define, program } from './program.ts';
import { SHARED } from './shared.ts';
import { isExiting } from './usage.ts';

const { exchange, store: atomicStore } = Atomics;

/** Node's exit code for a program that still awaits at its top level when there is nothing left to wait for. */
const UNSETTLED = 13;

const emit = process.emit as (...args: unknown[]) => boolean;
const { apply } = Reflect;
const hasCapture = process.hasUncaughtExceptionCaptureCallback;

/** Stack frames of the files that run beside a guest: not the guest's business. All of ours are built into one directory. */
const OWN_FRAME = new RegExp(
  `^ +at .*(?:${quote(fileURLToPath(new URL('.', import.meta.url)))}|/piscina/dist/).*\n?`,
  'gm',
);
const FRAME = /^ +at (?:.*\()?((?:file:\/\/)?\/[^\n]*?):(\d+):(\d+)\)?$/m;

function quote(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

/**
 * Writes the error that ends the program, as Node does for a program's main thread. Node's own way for a worker sends a
 * copy of the error to the parent thread: it arrives later, without the error's class, and not at all for some.
 * `process.emit` is replaced rather than a listener added: a listener would be seen, and could be removed. With `leave`,
 * that ends the program then: in a process Node would write the error once more.
 */
export function reportUncaught(leave: (code: number) => void = () => {}): void {
  define(process, 'emit', function emitWatched(this: NodeJS.Process, ...args: unknown[]) {
    // Node says where it comes from; one that a program emits itself ends nothing.
    if (args[0] !== 'uncaughtException' || this !== process || args[2] === undefined) return apply(emit, this, args);
    let handled: boolean;
    try {
      handled = apply(emit, this, args);
    } catch (error) {
      atomicStore(program.shared, SHARED.handlerThrew, 1);
      report(error);
      leave(7);
      throw error;
    }
    if (!handled && !apply(hasCapture, process, [])) {
      report(args[1]);
      leave(1);
    }
    return handled;
  });
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
    text = inspect(error);
  } catch {
    return `Uncaught error that cannot be shown${version}`;
  }
  if (!(error instanceof Error)) return `Uncaught:\n${text}${version}`;
  text = text.replace(OWN_FRAME, '');
  return `${codeFrame(text)}${text}${version}`;
}

/** `file:line`, that line, a caret. Empty when the stack starts with it already, as a SyntaxError's does. */
function codeFrame(stack: string): string {
  const match = FRAME.exec(stack);
  if (match === null || stack.startsWith('/') || stack.startsWith('file:')) return '';
  const [, file = '', line = '', column = ''] = match;
  try {
    const path = file.startsWith('file:') ? fileURLToPath(file) : file;
    const source = program.mainSource?.path === path ? program.mainSource.code : readFileSync(path, 'utf8');
    const text = source.split('\n')[Number(line) - 1];
    if (text === undefined) return '';
    return `${file}:${line}\n${text}\n${' '.repeat(Number(column) - 1)}^\n\n`;
  } catch {
    return '';
  }
}
