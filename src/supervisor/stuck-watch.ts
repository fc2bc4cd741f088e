import { availableParallelism } from 'node:os';
import { ProcFile, statFields } from '../proc-file.ts';
import { busyThreadsOf } from '../processes.ts';

/** How often it is looked whether all had a processor, in parts of the limit. */
const PARTS = 5;
/** And no part is shorter than this, in ms, nor is one late before: the clock of timers is coarse. */
const SHORTEST_MS = 5;
/** Time that is shared with busy threads of its own process counts for this part at least. */
const LEAST_SHARE = 1 / 10;

/**
 * Calls `stuck` once a guest that was killed has had `limitMs` in which it could have ended, and its cell have told of it;
 * or a cell, in which it could have answered. What does not count is the time in which this process, or the first thread of
 * one of `pids`, waited for a processor: a cell that gets none is not stuck, and its other guests would go with it; nor that
 * in which something else, as `isHeldUp` says, keeps it from telling. And it counts for as much less as the threads of its
 * process are more than the processors, as `crowding` says: each has its share of one, and one that has none just then may
 * hold a lock that the others wait for. Calls `late` once when half of `limitMs` is over. Returns what ends the watch.
 */
export function watchForStuck(
  pids: number[],
  limitMs: number,
  stuck: () => void,
  late = () => {},
  isHeldUp = () => false,
  crowding = () => 1,
): () => void {
  const threads = pids.map((pid) => new FirstThread(pid));
  /**
   * The newest first, how much of each was waited: by this process, or for what holds all up, and by each thread; and the
   * share of a processor that each thread of its process had in the rest.
   */
  const parts: { tookMs: number; waitedMs: number[]; share: number }[] = [];
  let leftMs = limitMs;
  let isLate = false;
  let lookedMs = performance.now();
  let timer: NodeJS.Timeout;
  let hearing: NodeJS.Immediate | undefined;
  const look = (partMs: number) => {
    const tookMs = performance.now() - lookedMs;
    lookedMs += tookMs;
    const ownMs = isHeldUp() ? tookMs : tookMs - partMs - SHORTEST_MS;
    const share = Math.max(LEAST_SHARE, 1 / Math.max(1, crowding()));
    parts.unshift({ tookMs, waitedMs: [ownMs, ...threads.map(() => 0)], share });
    for (const [index, thread] of threads.entries()) setAgainst(parts, index + 1, thread.waitedMs());
    leftMs = limitMs - parts.reduce((sum, part) => sum + (part.tookMs - Math.max(0, ...part.waitedMs)) * part.share, 0);
    if (!isLate && leftMs < limitMs / 2) {
      isLate = true;
      late();
    }
    if (leftMs > 0 || threads.some((thread) => thread.waits())) next();
    // What its cell has told by now is read first: timers come before that.
    else hearing = setImmediate(stuck);
  };
  const next = () => {
    const partMs = Math.max(SHORTEST_MS, Math.min(leftMs > 0 ? leftMs : limitMs, limitMs / PARTS));
    timer = setTimeout(look, partMs, partMs).unref();
  };
  next();
  return () => {
    clearTimeout(timer);
    clearImmediate(hearing);
    for (const thread of threads) thread.close();
  };
}

/** How many threads of a process there are for each processor that are on one or wait for one. */
export function crowdingOf(pid: number): number {
  return busyThreadsOf(pid) / availableParallelism();
}

/** How long a wait was is known when it is over: it lay in the last parts, and may have begun before the first. */
function setAgainst(parts: { tookMs: number; waitedMs: number[] }[], index: number, waitMs: number): void {
  let restMs = waitMs;
  for (const { tookMs, waitedMs } of parts) {
    const shareMs = Math.min(restMs, tookMs - (waitedMs[index] as number));
    (waitedMs[index] as number) += shareMs;
    restMs -= shareMs;
    if (restMs <= 0) return;
  }
}

/** The first thread of a process, and how it waits for a processor. */
class FirstThread {
  readonly #schedstat: ProcFile;
  readonly #stat: ProcFile;
  /** The time on a processor in ns, the time it waited for one, and how often it ran: now, and at the look before. */
  #seen: string | undefined;
  #before: string | undefined;

  constructor(pid: number) {
    this.#schedstat = new ProcFile(`/proc/${pid}/schedstat`);
    this.#stat = new ProcFile(`/proc/${pid}/stat`);
  }

  /** How long the waits took that ended since the last look; 0 at the first, and where the kernel does not tell. */
  waitedMs(): number {
    this.#before = this.#seen;
    this.#seen = this.#schedstat.read();
    if (this.#before === undefined || this.#seen === undefined) return 0;
    return (waitedNs(this.#seen) - waitedNs(this.#before)) / 1e6;
  }

  /** Whether it has been waiting since the look before the last: no wait that goes on is added up, and who runs shows it. */
  waits(): boolean {
    const still = this.#seen !== undefined && this.#seen === this.#before;
    return still && statFields(this.#stat.read() ?? '')[0] === 'R';
  }

  close(): void {
    this.#schedstat.close();
    this.#stat.close();
  }
}

function waitedNs(schedstat: string): number {
  return Number(schedstat.split(' ')[1]);
}
