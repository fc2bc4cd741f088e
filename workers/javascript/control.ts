import fs from 'node:fs';
import type { ProcessMessage } from '../../src/cell/messages.ts';
import { program } from './program.ts';
import { FIGURE, SHARED } from './shared.ts';

/** Where a program that has its process to itself tells its cell, from whatever thread: one line of JSON each. */
export const CONTROL = 3;

/** How often the cell is told at most that more output was dropped, in ms. */
const DROPPED_MS = 100;

// Taken once: a guest may replace any of them.
const { writeSync } = fs;
const { stringify } = JSON;
const { load: atomicLoad } = Atomics;
const toNumber = Number;
const now = performance.now.bind(performance);

let toldBits = 0;
let toldMs = Number.NEGATIVE_INFINITY;

export function tellCell(message: ProcessMessage): void {
  try {
    writeSync(CONTROL, `${stringify(message)}\n`);
  } catch {
    // The guest has closed it, or the cell is gone.
  }
}

/** Tells of a child process; 0 for one that is waited for synchronously. */
export function tellChild(pid: number): void {
  tellCell({ type: 'child', pid });
}

/** Tells what has become of the output, if that is news. */
export function tellOutput(): void {
  const bits = atomicLoad(program.shared, SHARED.output);
  if (bits === toldBits && now() - toldMs < DROPPED_MS) return;
  toldBits = bits;
  toldMs = now();
  tellCell({ type: 'output', bits, dropped: droppedBytes() });
}

/** Output bytes dropped at the limit, by all threads of the program. */
export function droppedBytes(): number {
  return toNumber(atomicLoad(program.figures, FIGURE.dropped));
}
