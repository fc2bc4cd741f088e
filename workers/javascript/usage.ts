import fs from 'node:fs';
import os from 'node:os';
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

let booted = { heap: 0, external: 0 };

/** To be called when this thread has booted: what it holds then is what a program finds it with. */
export function noteBoot(): void {
  booted = heldNow();
  // Run once ahead, as a program's end is to be quick.
  noteEnd();
  // What children had used before is not for this thread to take.
  noteReaped();
}

/** Notes what this thread holds before guest code runs; returns what it has used. */
export function noteStart(): { user: number; system: number } {
  atomicStore(program.figures, FIGURE.startHeap, toBigInt(booted.heap));
  atomicStore(program.figures, FIGURE.startExternal, toBigInt(booted.external));
  return threadCpuUsage();
}

/** Notes what this thread has used and holds; called at its end, perhaps more than once. */
export function noteEnd(): void {
  const { user, system } = threadCpuUsage();
  const { heap, external } = heldNow();
  atomicStore(program.figures, FIGURE.endUser, toBigInt(user));
  atomicStore(program.figures, FIGURE.endSystem, toBigInt(system));
  atomicStore(program.figures, FIGURE.endHeap, toBigInt(heap));
  atomicStore(program.figures, FIGURE.endExternal, toBigInt(external));
}

/** Nothing where the process has no descriptor left: to tell, Node looks at all of the process as well. */
function heldNow(): { heap: number; external: number } {
  try {
    const { heapUsed: heap, external } = memoryUsage();
    return { heap, external };
  } catch {
    return { heap: 0, external: 0 };
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
  takeReaped(readStat, program.reaped, program.figures);
}

function readStat(): string | undefined {
  try {
    return readFileSync('/proc/self/stat', 'latin1');
  } catch {
    // No descriptor is left: whoever takes what was added next takes that over as well.
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
