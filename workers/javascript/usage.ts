import fs from 'node:fs';
import os from 'node:os';
import type { ThreadBoot, ThreadStart } from '../../src/cell/messages.ts';
import { define, program } from './program.ts';
import { statFields, takeReaped } from './reaped.ts';
import { FIGURE, UNKNOWN_THREAD } from './shared.ts';

// What a program used, noted by its own thread: the cell cannot ask a thread that has ended. Everything is taken from
// Node before guest code could replace it.
const { add: atomicAdd, store: atomicStore } = Atomics;
const { readFileSync, readlinkSync } = fs;
const toBigInt = BigInt;
const { apply } = Reflect;
const threadCpuUsage = process.threadCpuUsage.bind(process);
const memoryUsage = process.memoryUsage.bind(process);
const { setPriority } = os;
const { get: exiting } = Object.getOwnPropertyDescriptor(process, '_exiting') as { get(): boolean };

/** Programs give way to the cell they run in, by so much (`nice`), so that it can always stop them. */
const NICE = 5;

/** The kernel's id of this thread: PID/task/TID. */
export const threadId = Number(readlinkSync('/proc/thread-self').split('/')[2]);

/** Lowers the priority of this thread, and of the processes and threads it will start. */
export function giveWay(): void {
  try {
    setPriority(NICE);
  } catch {
    // Not allowed here: it competes as an equal.
  }
}

let booted: ThreadBoot = { faults: 0, usedBytes: 0, heapBytes: 0, externalBytes: 0 };

/** To be called when this thread has booted: what it holds then is what a program finds it with. */
export function noteBoot(): void {
  const { heapUsed, heapTotal, external } = heldNow();
  // minflt.
  const faults = Number(statFields(readStat('thread-self') ?? '')[7] ?? 0);
  booted = { faults, usedBytes: heapUsed, heapBytes: heapTotal, externalBytes: external };
  // Run once ahead, as a program's end is to be quick.
  noteEnd();
  // What children had used before is not for this thread to take.
  noteReaped();
}

/** What this thread is before guest code runs. */
export function startOf(): ThreadStart {
  const { user, system } = threadCpuUsage();
  return { thread: threadId, user, system, booted };
}

/** Notes what this thread has used and holds; called at its end, perhaps more than once. */
export function noteEnd(): void {
  const { user, system } = threadCpuUsage();
  const { heapUsed, external } = heldNow();
  atomicStore(program.figures, FIGURE.endUser, toBigInt(user));
  atomicStore(program.figures, FIGURE.endSystem, toBigInt(system));
  atomicStore(program.figures, FIGURE.endHeap, toBigInt(heapUsed));
  atomicStore(program.figures, FIGURE.endExternal, toBigInt(external));
}

/** Nothing where the process has no descriptor left: to tell, Node looks at all of the process as well. */
function heldNow(): Pick<NodeJS.MemoryUsage, 'heapUsed' | 'heapTotal' | 'external'> {
  try {
    return memoryUsage();
  } catch {
    return { heapUsed: 0, heapTotal: 0, external: 0 };
  }
}

let note = () => {};

/** To be called by what ends this thread without an `exit` event. */
export function noteEarlyEnd(): void {
  note();
}

/** Whether this thread, or process, ends by itself just now. */
export function isExiting(): boolean {
  return apply(exiting, process, []);
}

/** Has `noteIt` called when this thread ends by itself: after the program's `exit` listeners, and unseen by them. */
export function atEnd(noteIt: () => void): void {
  note = () => {
    try {
      noteIt();
    } catch {
      // A program can break what this needs; it ends all the same.
    }
  };
  const { emit, reallyExit } = process as unknown as Record<string, (...args: unknown[]) => unknown>;
  define(process, 'emit', function emitLast(this: NodeJS.Process, ...args: unknown[]) {
    if (args[0] !== 'exit' || this !== process || !isExiting()) return apply(emit as never, this, args);
    try {
      return apply(emit as never, this, args);
    } finally {
      note();
    }
  });
  // An `exit` listener may end the thread, and so may a program that passes by the event.
  define(process, 'reallyExit', function reallyExitLast(this: NodeJS.Process, ...args: unknown[]) {
    note();
    return apply(reallyExit as never, this, args);
  });
}

/** Makes this thread, started by the guest, known to the cell, and adds what it used when it ends. */
export function joinProgram(): void {
  const { slot } = program;
  if (slot !== undefined) atomicStore(program.shared, slot, threadId);
  let noted = false;
  atEnd(() => {
    if (noted) return;
    noted = true;
    // From now on it is not looked at any more: it would count twice.
    if (slot !== undefined) atomicStore(program.shared, slot, UNKNOWN_THREAD);
    const { user, system } = threadCpuUsage();
    atomicAdd(program.figures, FIGURE.threadUser, toBigInt(user));
    atomicAdd(program.figures, FIGURE.threadSystem, toBigInt(system));
  });
}

/**
 * Called right after this thread has waited for a child process: what the kernel added to the cell's account of ended
 * children is that child's. Exact to 10 ms, unless two threads do so in the same moment: then one gets the other's share.
 */
export function noteReaped(): void {
  if (program.ownsProcess) return;
  takeReaped(() => readStat('self'), program.reaped, program.figures);
}

/** Undefined where no descriptor is left: of what children have used, whoever takes next takes that over as well. */
function readStat(whose: 'self' | 'thread-self'): string | undefined {
  try {
    return readFileSync(`/proc/${whose}/stat`, 'latin1');
  } catch {
    return undefined;
  }
}

/** The fields of a process's stat; undefined for one that is gone. */
export function statOf(pid: number): string[] | undefined {
  try {
    return statFields(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return undefined;
  }
}
