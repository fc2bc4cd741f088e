import { StartupError } from './errors.ts';
import { readKernelFile } from './proc-file.ts';

const BOOT_ID = '/proc/sys/kernel/random/boot_id';

/** When something became true, by both clocks: Unix ms, and ms of {@link monotonicMs}. */
export interface Moment {
  atMs: number;
  monotonicMs: number;
}

/**
 * Milliseconds since the machine's start that no change of the wall clock touches, the same for every process of one
 * boot (CLOCK_MONOTONIC): what deadlines are counted with.
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** This moment. */
export function now(): Moment {
  return { atMs: Date.now(), monotonicMs: monotonicMs() };
}

/** How long ago that was, in ms; 0 for what is still to come. */
export function agoMs(moment: Moment): number {
  return Math.max(0, monotonicMs() - moment.monotonicMs);
}

/** The moment that was at this time, in Unix ms, if nobody has set the clock since: now at the latest. */
export function momentAt(atMs: number): Moment {
  return { atMs, monotonicMs: monotonicMs() - Math.max(0, Date.now() - atMs) };
}

let boot: string | undefined;

/**
 * Names this boot of the machine: {@link monotonicMs} compares only within one, and so do process ids. Linux only. Throws a
 * `StartupError` where it cannot be read: nothing else there tells two boots apart.
 */
export function bootId(): string {
  boot ??= readKernelFile(BOOT_ID)?.trim();
  if (boot) return boot;
  throw new StartupError(
    `${BOOT_ID} cannot be read: it tells the starts of the machine apart (systemd hides it with ProcSubset=pid)`,
  );
}
