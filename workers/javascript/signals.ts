import { EventEmitter } from 'node:events';
import fs, { realpathSync, statSync } from 'node:fs';
import { constants } from 'node:os';
import { type Context, callIn, currentContext } from './context.ts';
import { absolute, define, program, setWorkingDirectory } from './program.ts';
import { HARMLESS_SIGNALS, SHARED, signalName, signalNumber } from './shared.ts';
import { noteEarlyEnd } from './usage.ts';

const { apply } = Reflect;
const { readFileSync } = fs;
const { and: atomicAnd, compareExchange, exchange, load: atomicLoad, notify, or: atomicOr, wait, waitAsync } = Atomics;

const numbers = constants.signals as Record<string, number>;

const { listenerCount } = EventEmitter.prototype;
const reallyExit = (process as unknown as { reallyExit(code: number): never }).reallyExit.bind(process);
const emit = process.emit;
const nativeKill = process.kill;
const ownPid = process.pid;
const later = setImmediate;

/** Publishes which signals the guest listens for, so that the cell can act while this thread is busy. */
export function watchListeners(): void {
  const adding = ['on', 'addListener', 'once', 'prependListener', 'prependOnceListener'] as const;
  for (const method of [...adding, 'off', 'removeListener', 'removeAllListeners'] as const) {
    const adds = (adding as readonly string[]).includes(method);
    const original = process[method] as (...args: unknown[]) => unknown;
    define(process, method, function listen(this: NodeJS.Process, ...args: unknown[]) {
      if (adds) requireHearable(args[0]);
      const result = apply(original, this, args);
      if (args.length === 0) for (const name of Object.keys(numbers)) publish(name);
      else publish(args[0]);
      return result;
    });
  }
}

/** No process hears these; Node says so in these words. */
function requireHearable(name: unknown): void {
  if (name !== 'SIGKILL' && name !== 'SIGSTOP') return;
  const syscall = 'uv_signal_start';
  throw Object.assign(new Error(`${syscall} EINVAL`), { errno: -constants.errno.EINVAL, code: 'EINVAL', syscall });
}

/** In what asynchronous context each signal is heard: its first listener's. */
const contexts: Record<string, Context> = Object.create(null);

function publish(name: unknown): void {
  if (typeof name !== 'string') return;
  const number = signalNumber(name);
  if (number === undefined || number > 31) return;
  if (apply(listenerCount, process, [name]) > 0) {
    contexts[name] ??= currentContext();
    atomicOr(program.shared, SHARED.listened, 1 << number);
  } else {
    contexts[name] = undefined;
    atomicAnd(program.shared, SHARED.listened, ~(1 << number));
  }
}

/** Gives a signal to the guest's listener; without one, takes the default action. */
export function deliver(name: string, number: number): void {
  const hear = () => {
    apply(emit as never, process, [name, name, number]);
  };
  if (apply(listenerCount, process, [name]) > 0) callIn(contexts[name], hear);
  else if (!HARMLESS_SIGNALS.has(name)) endBySignal(number);
}

/** Ends this thread as the kernel ends a process by signal `number`: at once, no `exit` event. */
export function endBySignal(number: number): never {
  compareExchange(program.shared, SHARED.endedBy, 0, number);
  noteEarlyEnd();
  return reallyExit(128 + number);
}

let hears = false;

/** Has the program's own thread hear the signals that those it starts send to the process. */
export function hearThreads(): void {
  if (hears || program.slot !== SHARED.threads) return;
  hears = true;
  void deliverSent();
}

async function deliverSent(): Promise<never> {
  for (;;) {
    const sent = waitAsync(program.shared, SHARED.sent, 0);
    if (sent.async) await sent.value;
    const bits = exchange(program.shared, SHARED.sent, 0);
    for (let number = 1; number < 32; number += 1) {
      if ((bits & (1 << number)) !== 0) later(deliver, signalName(number) as string, number);
    }
  }
}

/** Sends a signal from a thread that the program has started: its own thread hears it, or all of the program ends. */
function sendFromThread(name: string, number: number): void {
  const { shared } = program;
  if (number !== constants.signals.SIGKILL && (atomicLoad(shared, SHARED.listened) & (1 << number)) !== 0) {
    atomicOr(shared, SHARED.sent, 1 << number);
    notify(shared, SHARED.sent);
  } else if (!HARMLESS_SIGNALS.has(name)) {
    compareExchange(shared, SHARED.endedBy, 0, number);
    notify(shared, SHARED.endedBy);
    // Nothing comes after such a signal: its end is all there is to wait for.
    wait(shared, SHARED.closing, atomicLoad(shared, SHARED.closing));
  }
}

/**
 * To read the mask, Node sets it to nothing for a moment, in which all threads of the cell would make files that everybody
 * may write to.
 */
function maskOfCell(): number {
  const [, mask = '022'] = /^Umask:\s*(\d+)$/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? [];
  return Number.parseInt(mask, 8);
}

/** Makes what concerns the whole process concern this program only. */
export function confineProcess(): void {
  const isOwnThread = program.slot === SHARED.threads;
  define(process, 'kill', function kill(given: number, signal?: string | number) {
    const pid = given | 0;
    // As Node tells what is a process, which text may be as well; of what is none it says so.
    // biome-ignore lint/suspicious/noDoubleEquals: the same comparison
    if (given != pid) return apply(nativeKill, process, [given, signal]);
    // A guest's own process is this thread: 0 and -pid mean its group, which is itself.
    if (pid !== 0 && Math.abs(pid) !== ownPid) {
      // -1 is every process the user has: the daemon, the cell and their neighbours.
      if (pid !== -1) return apply(nativeKill, process, [pid, signal]);
      throw Object.assign(new Error('kill EPERM'), { errno: -1, code: 'EPERM', syscall: 'kill' });
    }
    const isNumber = typeof signal === 'number' && signal === (signal | 0);
    const text = isNumber ? '' : String(signal || 'SIGTERM');
    const number = isNumber ? signal : signalNumber(text);
    // An unknown name gets Node's own error.
    if (number === undefined) return apply(nativeKill, process, [pid, signal]);
    if (number === 0) return true;
    const name = isNumber ? signalName(number) : text;
    // The kernel has more of them, without names, and would send them to the cell.
    if (name === undefined)
      throw Object.assign(new Error('kill EINVAL'), { errno: -22, code: 'EINVAL', syscall: 'kill' });
    if (!isOwnThread) sendFromThread(name, number);
    else if (number === 9 || apply(listenerCount, process, [name]) === 0) deliver(name, number);
    else later(deliver, name, number);
    return true;
  });
  define(process, 'cwd', () => program.cwd);
  // The mask belongs to the whole cell, so setting it is only remembered.
  let mask: number | undefined;
  define(process, 'umask', (next?: string | number) => {
    const before = mask ?? maskOfCell();
    mask = before;
    if (next !== undefined) mask = (typeof next === 'string' ? Number.parseInt(next, 8) : next) & 0o777;
    return before;
  });
  let title = process.title;
  Object.defineProperty(process, 'title', {
    configurable: true,
    enumerable: true,
    get: () => title,
    set: (next) => {
      title = String(next);
    },
  });
  // Node lets only the main thread do these.
  if (!isOwnThread) return;
  define(process, 'abort', () => endBySignal(constants.signals.SIGABRT));
  define(process, 'chdir', changeDirectory);
}

function changeDirectory(directory: string): void {
  if (typeof directory !== 'string') {
    throw Object.assign(new TypeError('The "directory" argument must be of type string.'), {
      code: 'ERR_INVALID_ARG_TYPE',
    });
  }
  let target: string;
  try {
    target = realpathSync(absolute(directory) as string);
    if (!statSync(target).isDirectory())
      throw Object.assign(new Error(), { code: 'ENOTDIR', errno: -constants.errno.ENOTDIR });
  } catch (error) {
    const { code, errno } = error as NodeJS.ErrnoException;
    const what =
      code === 'ENOENT' ? 'no such file or directory' : code === 'ENOTDIR' ? 'not a directory' : 'cannot enter';
    const message = `${code}: ${what}, chdir ${program.cwd} -> '${directory}'`;
    throw Object.assign(new Error(message), { errno, code, syscall: 'chdir', path: program.cwd, dest: directory });
  }
  setWorkingDirectory(target);
}
