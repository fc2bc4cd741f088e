import { constants } from 'node:os';

/**
 * Cells of the Int32Array a thread shares with its cell: what one side must know while the other is busy or gone.
 * A thread in a busy loop answers no message, and a thread that ended sends none.
 */
export const SHARED = {
  /** 1 once guest code is about to run. */
  begun: 0,
  /** Bit `N % 32` is set while the guest listens for signal N; all below 32. */
  listened: 1,
  /** The signal by whose default action the guest ended itself (`process.kill(process.pid, ...)`, `process.abort()`). */
  endedBy: 2,
  /** 1 once the thread itself wrote the uncaught error that ends it. */
  reported: 3,
  /** Counts messages to the thread, to wake a thread that waits for input synchronously. */
  wake: 4,
  /** 1 when an `uncaughtException` listener threw: exit code 7, which the thread itself cannot set. */
  handlerThrew: 5,
  /** 1 while a child process is made whose id is not noted yet: a thread ended just then would leave it behind. */
  spawning: 6,
  /** The kernel's id of the thread: a child it waits for synchronously is found by it. */
  thread: 7,
  /** First of {@link CHILD_SLOTS} process ids of running child processes; 0 is a free slot. */
  children: 8,
} as const;

/** How many child processes of one execution are remembered, to end them with it. */
export const CHILD_SLOTS = 1024;

/** Bytes of the shared memory. */
export const SHARED_BYTES = (SHARED.children + CHILD_SLOTS) * Int32Array.BYTES_PER_ELEMENT;

const numbers = constants.signals as Record<string, number>;

/** The number of a signal; undefined for a name that is none. */
export function signalNumber(name: string): number | undefined {
  return Object.hasOwn(numbers, name) ? numbers[name] : undefined;
}

/** The name of a signal, the usual one where it has two (SIGABRT, not SIGIOT). */
export function signalName(number: number): NodeJS.Signals | undefined {
  return Object.keys(numbers).find((name) => numbers[name] === number) as NodeJS.Signals | undefined;
}

/** Signals whose default action is not to end a program. Those that would stop one have no meaning for a thread. */
export const HARMLESS_SIGNALS: ReadonlySet<string> = new Set([
  'SIGCHLD',
  'SIGURG',
  'SIGWINCH',
  'SIGCONT',
  'SIGSTOP',
  'SIGTSTP',
  'SIGTTIN',
  'SIGTTOU',
]);
