import { ProcFile, statFields } from '../proc-file.ts';

/** How often it is looked whether all had a processor, in parts of the limit. */
const PARTS = 5;
/** And no part is shorter than this, in ms: the clock of timers is coarse. */
const SHORTEST_MS = 5;

/**
 * Calls `stuck` once a guest that was killed has had `limitMs` in which it could have ended, and its cell have told of it.
 * What does not count is a time in most of which this process, or the first thread of one of `pids`, waited for a processor:
 * a cell that gets none is not stuck, and its other guests would go with it. Returns what ends the watch.
 */
export function watchForStuck(pids: number[], limitMs: number, stuck: () => void): () => void {
  const threads = pids.map((pid) => new FirstThread(pid));
  let leftMs = limitMs;
  let timer: NodeJS.Timeout;
  const next = () => {
    const startedMs = performance.now();
    const partMs = Math.max(SHORTEST_MS, Math.min(leftMs, limitMs / PARTS));
    timer = setTimeout(() => {
      const tookMs = performance.now() - startedMs;
      const waitedMs = Math.max(tookMs - partMs, ...threads.map((thread) => thread.waitedMs(tookMs)));
      if (waitedMs < tookMs / 2) leftMs -= tookMs;
      if (leftMs > 0) next();
      else stuck();
    }, partMs).unref();
  };
  next();
  return () => {
    clearTimeout(timer);
    for (const thread of threads) thread.close();
  };
}

/** The first thread of a process, and how it waits for a processor. */
class FirstThread {
  readonly #schedstat: ProcFile;
  readonly #stat: ProcFile;
  #seen: string | undefined;

  constructor(pid: number) {
    this.#schedstat = new ProcFile(`/proc/${pid}/schedstat`);
    this.#stat = new ProcFile(`/proc/${pid}/stat`);
  }

  /** How much of the last `tookMs` it waited, as far as is known; 0 at the first look, and where the kernel does not tell. */
  waitedMs(tookMs: number): number {
    const before = this.#seen;
    this.#seen = this.#schedstat.read();
    if (before === undefined || this.#seen === undefined) return 0;
    // A wait is added up when it is over. One that goes on shows in nothing but the state.
    if (before === this.#seen) return statFields(this.#stat.read() ?? '')[0] === 'R' ? tookMs : 0;
    return (waitedNs(this.#seen) - waitedNs(before)) / 1e6;
  }

  close(): void {
    this.#schedstat.close();
    this.#stat.close();
  }
}

/** The time on a processor in ns, the time it waited for one, and how often it ran. */
function waitedNs(schedstat: string): number {
  return Number(schedstat.split(' ')[1]);
}
