import type { OutputLimit } from '../output-writer.ts';
import { FIGURE, figuresOf, OUTPUT, SHARED } from './shared.ts';

const { add: atomicAdd, notify, or: atomicOr } = Atomics;
const [toBigInt, toNumber] = [BigInt, Number];

/** What keeps an execution's writers, in whatever thread, to its output limit; undefined when it has none. */
export function outputLimit(shared: Int32Array, bytes: number | undefined): OutputLimit | undefined {
  if (bytes === undefined) return undefined;
  const figures = figuresOf(shared);
  return {
    bytes,
    take: (count) => toNumber(atomicAdd(figures, FIGURE.taken, toBigInt(count))),
    onDropped: (count) => dropOutput(shared, count),
  };
}

/** Counts output that is lost, and tells the cell the first time. */
export function dropOutput(shared: Int32Array, count: number): void {
  atomicAdd(figuresOf(shared), FIGURE.dropped, toBigInt(count));
  announceOutput(shared, OUTPUT.exceeded);
  changed();
}

/** Sets a bit of {@link OUTPUT}. Heard by the cell also while this thread is busy. */
export function announceOutput(shared: Int32Array, bit: number): void {
  if ((atomicOr(shared, SHARED.output, bit) & bit) !== 0) return;
  notify(shared, SHARED.output);
  changed();
}

let changed = () => {};

/** Has `listener` called after each change of this thread's: for a cell that shares no memory. */
export function onOutputChange(listener: () => void): void {
  changed = listener;
}
