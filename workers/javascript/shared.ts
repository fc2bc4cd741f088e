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
  /**
   * The signal by whose default action the guest ended itself (`process.kill(process.pid, ...)`, `process.abort()`), or is
   * to be ended where a thread that it started has sent it: the cell waits for that.
   */
  endedBy: 2,
  /** 1 once the thread itself wrote the uncaught error that ends it. */
  reported: 3,
  /** Counts messages to the thread, to wake a thread that waits for input synchronously. */
  wake: 4,
  /** Bits of {@link OUTPUT}, set once; the cell waits for a change. */
  output: 5,
  /** 1 once the thread is being ended: it makes no more child processes. */
  closing: 6,
  /** Bit `N % 32` is set for signal N, which a thread that the guest started has sent to the program and is listened for. */
  sent: 7,
  /**
   * First of {@link THREAD_SLOTS} ids the kernel has for the program's threads: its own, then those it started. A child
   * that one waits for synchronously is found by them. 0 is a free slot, {@link UNKNOWN_THREAD} one that is taken.
   */
  threads: 8,
  /** First of {@link THREAD_SLOTS} that tell how many child processes the thread in the same place waits for. */
  waiting: 72,
  /** First of {@link CHILD_SLOTS} process ids of running child processes; 0 is a free slot. */
  children: 136,
  /** First of {@link THREAD_SLOTS} that tell which slot the thread has that started the one in the same place. */
  starters: 1160,
  /**
   * First of {@link THREAD_SLOTS} that are 1 while the thread in the same place makes a child process whose id is not noted
   * yet: ended just then, it leaves that behind.
   */
  spawning: 1224,
} as const;

/** What {@link SHARED.output} tells: output was dropped; somebody writes to the files past the writer; no more to come. */
export const OUTPUT = { exceeded: 1, direct: 2, ended: 4 } as const;

/** How many threads of one execution are remembered, to measure them and to end what they wait for. */
export const THREAD_SLOTS = 64;

/** Stands for a thread that has not begun, or has ended. */
export const UNKNOWN_THREAD = -1;

/** How many child processes of one execution are remembered, to end them with it. */
export const CHILD_SLOTS = 1024;

/** A whole number of 64-bit figures, which follow. */
const CELLS_BYTES = Math.ceil((SHARED.spawning + THREAD_SLOTS) / 2) * BigInt64Array.BYTES_PER_ELEMENT;

/** 64-bit figures behind the cells. CPU times are in us, memory in bytes. */
export const FIGURE = {
  /** Output bytes dropped at the limit. */
  dropped: 0,
  /** What the thread had used, and held, when it ended by itself; 0 for one that was ended. */
  endUser: 1,
  endSystem: 2,
  endHeap: 3,
  endExternal: 4,
  /** Of child processes that have ended. */
  childUser: 5,
  childSystem: 6,
  /** Of threads the guest started that have ended. */
  threadUser: 7,
  threadSystem: 8,
  /** Output bytes that all threads together have taken room for below the limit. */
  taken: 9,
} as const;

/** Bytes of the shared memory. */
export const SHARED_BYTES = CELLS_BYTES + Object.keys(FIGURE).length * BigInt64Array.BYTES_PER_ELEMENT;

/** The {@link FIGURE} part of shared memory. */
export function figuresOf(shared: Int32Array): BigInt64Array {
  return new BigInt64Array(shared.buffer, CELLS_BYTES);
}

/**
 * The child processes' CPU time of the whole cell, as the kernel last gave it to one of its threads: user, system. A
 * thread that waited for a child takes what was added since for that child's.
 */
export const REAPED_BYTES = 2 * BigInt64Array.BYTES_PER_ELEMENT;

const { compareExchange } = Atomics;
const numbers = constants.signals as Record<string, number>;

/** Notes a process or thread in the first free of `count` cells; undefined when there is none. */
export function noteId(shared: Int32Array, first: number, count: number, id: number): number | undefined {
  for (let slot = first; slot < first + count; slot += 1) if (compareExchange(shared, slot, 0, id) === 0) return slot;
  return undefined;
}

/** The number of a signal; undefined for a name that is none. */
export function signalNumber(name: string): number | undefined {
  return Object.hasOwn(numbers, name) ? numbers[name] : undefined;
}

/** The name of a signal, the usual one where it has two (SIGABRT, not SIGIOT). */
export function signalName(number: number): NodeJS.Signals | undefined {
  return Object.keys(numbers).find((name) => numbers[name] === number) as NodeJS.Signals | undefined;
}

/** Signals whose default action, or Node's, is not to end a program. Those that would stop one have no meaning for a thread. */
export const HARMLESS_SIGNALS: ReadonlySet<string> = new Set([
  'SIGCHLD',
  'SIGPIPE',
  'SIGURG',
  'SIGWINCH',
  'SIGXFSZ',
  'SIGCONT',
  'SIGSTOP',
  'SIGTSTP',
  'SIGTTIN',
  'SIGTTOU',
]);
