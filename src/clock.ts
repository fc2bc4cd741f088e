import { readFileSync } from 'node:fs';

/**
 * Milliseconds since the machine's start that no change of the wall clock touches, the same for every process of one
 * boot (CLOCK_MONOTONIC): what deadlines are counted with.
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** This moment by both clocks: Unix ms, and {@link monotonicMs}. */
export function now(): { atMs: number; monotonicMs: number } {
  return { atMs: Date.now(), monotonicMs: monotonicMs() };
}

/** Names this boot of the machine: {@link monotonicMs} compares only within one. Linux only; elsewhere one name for all. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
  } catch {
    return 'unknown';
  }
}
