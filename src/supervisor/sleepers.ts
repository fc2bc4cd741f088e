import { ProcFile, statFields } from '../proc-file.ts';
import { childrenOf } from '../processes.ts';

/** How often processes that are asleep are looked at, in ms. */
const PERIOD_MS = 200;
/**
 * Each of them is looked at once they have used so much CPU time together, in ms: so much for each, as one that does nothing
 * uses a little all the same, and so does their cell, but this at least;
 */
const SHARE_MS = 0.1;
const LEAST_MS = 1;
/** and every so many times in any case: one may have left their group. */
const EACH = 25;

/** Growth that is no mere chance, in pages. */
const GROWTH_PAGES = 256;

/** proc_pid_stat(5), counted from the state on. */
const [PARENT, USER_TICKS, SYSTEM_TICKS, THREADS, RESIDENT_PAGES] = [1, 11, 12, 17, 21];

/** A process that does nothing. */
class Sleeper {
  readonly #pid: number;
  readonly #stat: ProcFile;
  /** Of a process with one thread it changes with all that it does, and costs a third of the other to read. */
  #ran: ProcFile | undefined;
  /** Its children, and those of its parent: a Python guest's orphans come to its shepherd. Looked at with one thread only. */
  readonly #lists: ProcFile[];
  readonly #ticks: number;
  readonly #pages: number;
  readonly #children: string;
  /** What the file that is watched said at the last look. */
  #seen: string | undefined;

  constructor(pid: number) {
    this.#pid = pid;
    this.#stat = new ProcFile(`/proc/${pid}/stat`);
    this.#ran = new ProcFile(`/proc/${pid}/schedstat`);
    // First: a thread that is started between the two shows in it the next time.
    this.#seen = this.#ran.read();
    const { parent, ticks, pages } = this.#look();
    this.#lists = [pid, parent].map((each) => new ProcFile(`/proc/${each}/task/${each}/children`));
    this.#ticks = ticks;
    this.#pages = pages;
    this.#children = this.#listChildren();
  }

  /** It has used CPU time, a tick of 10 ms at least, grown by 1 MiB, or started a process, which takes less; or it is gone. */
  get isAwake(): boolean {
    const text = (this.#ran ?? this.#stat).read();
    // Mostly it says the same to the letter.
    if (text !== undefined && text === this.#seen) return false;
    this.#seen = text;
    const { ticks, pages } = this.#look();
    return ticks !== this.#ticks || pages > this.#pages + GROWTH_PAGES || this.#listChildren() !== this.#children;
  }

  close(): void {
    this.#stat.close();
    this.#ran?.close();
    for (const list of this.#lists) list.close();
  }

  #listChildren(): string {
    if (this.#ran === undefined) return childrenOf(this.#pid).join(' ');
    return this.#lists.map((list) => list.read()).join();
  }

  /** Not a number for a process that is gone. */
  #look(): { parent: number; ticks: number; pages: number } {
    const fields = statFields(this.#stat.read() ?? '').map(Number);
    if (fields[THREADS] !== 1) {
      this.#ran?.close();
      this.#ran = undefined;
    }
    const [user = Number.NaN, system = Number.NaN] = [fields[USER_TICKS], fields[SYSTEM_TICKS]];
    const [parent = Number.NaN, pages = Number.NaN] = [fields[PARENT], fields[RESIDENT_PAGES]];
    return { parent, ticks: user + system, pages };
  }
}

/** Processes of a cell that do nothing, looked at from here so that they need not wake up to look at themselves. */
export class Sleepers implements Disposable {
  readonly #sleepers = new Map<string, Sleeper>();
  readonly #usageFile: string | undefined;
  readonly #onAwake: (key: string) => void;
  /** Open while anyone sleeps. */
  #usage: ProcFile | undefined;
  /** The CPU time that all of the cell had used when each was looked at last, in ms; NaN where it is not known. */
  #usedMs = Number.NaN;
  #looks = 0;

  /**
   * `onAwake` is called with the key of one that does something or is gone: it is no more watched. `usageFile`: that of
   * the cell's control group which says how much CPU time its processes use together.
   */
  constructor(usageFile: string | undefined, onAwake: (key: string) => void) {
    this.#usageFile = usageFile;
    this.#onAwake = onAwake;
  }

  /** Watches a process from now on, also if it was watched before. */
  add(key: string, pid: number): void {
    this.#sleepers.get(key)?.close();
    this.#sleepers.set(key, new Sleeper(pid));
    if (this.#usageFile !== undefined) this.#usage ??= new ProcFile(this.#usageFile);
    watched.add(this);
    timer ??= setInterval(lookAtAll, PERIOD_MS).unref();
  }

  /** The same object as long as it sleeps, and another one when it is added again. */
  get(key: string): object | undefined {
    return this.#sleepers.get(key);
  }

  delete(key: string): void {
    this.#sleepers.get(key)?.close();
    if (!this.#sleepers.delete(key) || this.#sleepers.size > 0) return;
    this.#usage?.close();
    this.#usage = undefined;
    watched.delete(this);
    if (watched.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  }

  /** Looks now, at each only if the cell has used CPU time, or once in a while. */
  look(): void {
    this.#looks += 1;
    const now = usedMs(this.#usage?.read());
    const togetherMs = Math.max(LEAST_MS, SHARE_MS * this.#sleepers.size);
    if (now < this.#usedMs + togetherMs && this.#looks % EACH !== 0) return;
    this.#usedMs = now;
    for (const [key, sleeper] of this.#sleepers) {
      if (!sleeper.isAwake) continue;
      this.delete(key);
      this.#onAwake(key);
    }
  }

  [Symbol.dispose](): void {
    for (const key of this.#sleepers.keys()) this.delete(key);
  }
}

/** From `cpu.stat` (version 2, in µs) or `cpuacct.usage` (version 1, in ns). */
function usedMs(text: string | undefined): number {
  const inUs = /^usage_usec (\d+)/.exec(text ?? '')?.[1];
  return inUs === undefined ? Number(text) / 1e6 : Number(inUs) / 1e3;
}

/** All of this process: one timer for them is what makes them cheap. */
const watched = new Set<Sleepers>();
let timer: NodeJS.Timeout | undefined;

function lookAtAll(): void {
  for (const each of watched) each.look();
}
