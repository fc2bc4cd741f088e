import { FIGURE } from './shared.ts';

// Taken once: a guest may replace any of them.
const { add: atomicAdd, compareExchange, load: atomicLoad } = Atomics;
const toBigInt = BigInt;
const toNumber = Number;
const { apply } = Reflect;
const { lastIndexOf, slice, split } = String.prototype;

/** Microseconds of a clock tick in /proc/PID/stat: a hundred a second on every architecture of Linux that Node runs on. */
const TICK_US = 10_000;

/** What this thread has seen of that account: whatever a program has written into `reaped`, more than since then is nobody's. */
const seen: [user: bigint, system: bigint] = [toBigInt(0), toBigInt(0)];

/**
 * Adds to these figures what the kernel has added to the process's account of ended children since somebody last did.
 * `readStat` reads the process's stat, if it can be read.
 */
export function takeReaped(readStat: () => string | undefined, reaped: BigInt64Array, figures: BigInt64Array): void {
  const user = atomicLoad(reaped, 0);
  const system = atomicLoad(reaped, 1);
  const stat = readStat();
  if (stat === undefined) return;
  // cutime and cstime.
  const fields = statFields(stat);
  takeOver(reaped, 0, figures, FIGURE.childUser, toNumber(fields[13]), user);
  takeOver(reaped, 1, figures, FIGURE.childSystem, toNumber(fields[14]), system);
}

/** Adds to these figures what a child process has used that nobody waits for; `fields` are of its stat. */
export function addLeft(fields: string[], figures: BigInt64Array): void {
  // utime, stime, cutime and cstime, from 11 on.
  const ticks = (own: number) => toNumber(fields[own]) + toNumber(fields[own + 2]);
  atomicAdd(figures, FIGURE.childUser, toBigInt(ticks(11) * TICK_US));
  atomicAdd(figures, FIGURE.childSystem, toBigInt(ticks(12) * TICK_US));
}

/** The fields of proc_pid_stat(5) from the state on. */
export function statFields(stat: string): string[] {
  return apply(split, apply(slice, stat, [apply(lastIndexOf, stat, [')']) + 2]), [' ']);
}

function takeOver(
  reaped: BigInt64Array,
  at: 0 | 1,
  figures: BigInt64Array,
  figure: number,
  ticks: number,
  earlier: bigint,
): void {
  const now = toBigInt(ticks * TICK_US);
  const least = seen[at];
  seen[at] = now;
  // Another thread may have been quicker; ahead of what the kernel said only later it is by what a program has written.
  const isForged = earlier > now;
  for (let before = atomicLoad(reaped, at); before < now || isForged; before = atomicLoad(reaped, at)) {
    if (compareExchange(reaped, at, before, now) !== before) continue;
    atomicAdd(figures, figure, now - (before > least && before <= now ? before : least));
    return;
  }
}
