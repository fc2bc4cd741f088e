import { ProcFile, readKernelFile, statFields } from '../proc-file.ts';
import { childrenOf, LISTS_CHILDREN, threadsOf } from '../processes.ts';

/** Clock ticks a second in /proc/PID/stat: 100 on every architecture of Linux that Node runs on. */
const TICKS = 100;

/**
 * How old the figures may be of a process that has not changed, in ms: others may share more or less with it. The
 * proportional set size is by far the dearest of all.
 */
export const REFRESH_MS = 30_000;

/**
 * How long adding up the memory of a process that goes on may take, in parts of the time since; before, it is done anew only
 * where the process grew or shrank by this part. A large one holds up whoever adds it up: 40 ms for each GiB.
 */
const MEMORY_SHARE = 1 / 50;
const MEMORY_CHANGE = 1 / 64;

/** What some processes and everything below them use. */
export interface TreeUsage {
  /** CPU time of those that run and of what they have waited for, in seconds. Ended and not waited for is included. */
  userSeconds: number;
  systemSeconds: number;
  /** Proportional set size: what is shared with others counts in shares. */
  memoryBytes: number;
  processes: number;
  threads: number;
}

/** Measures processes and their descendants again and again; those that did nothing since the last time cost little. */
export class TreeMeter {
  #known = new Map<number, ProcessMeter>();
  #closed = false;

  /**
   * Adds up what `roots` and all below them use, those that run away from their parent while it looks excepted. With
   * `memory` false their memory is not looked at, and counts as it was seen last, 0 if never.
   */
  usage(roots: Iterable<number>, memory = true): TreeUsage {
    const usage = { userSeconds: 0, systemSeconds: 0, memoryBytes: 0, processes: 0, threads: 0 };
    if (this.#closed) return usage;
    const before = this.#known;
    this.#known = new Map();
    const tree = new Set(roots);
    for (const pid of tree) {
      const process = before.get(pid) ?? new ProcessMeter(pid);
      if (!process.look(memory)) {
        process.close();
        continue;
      }
      before.delete(pid);
      this.#known.set(pid, process);
      for (const child of process.children()) tree.add(child);
      usage.userSeconds += process.userSeconds;
      usage.systemSeconds += process.systemSeconds;
      if (process.ended) continue;
      usage.processes += 1;
      usage.threads += process.threads;
      usage.memoryBytes += process.memoryBytes;
    }
    for (const process of before.values()) process.close();
    return usage;
  }

  /** True when none of the processes that were there when it looked last has run since. */
  slept(): boolean {
    let slept = this.#known.size > 0;
    for (const process of this.#known.values()) if (!process.slept()) slept = false;
    return slept;
  }

  /** Lets go of everything; from now on nothing is used. */
  close(): void {
    this.#closed = true;
    for (const process of this.#known.values()) process.close();
    this.#known.clear();
  }
}

/** Measures one process. */
export class ProcessMeter {
  readonly #pid: number;
  readonly #stat: ProcFile;
  readonly #schedstat: ProcFile;
  readonly #children: ProcFile;
  #ran: string | undefined;
  /** Of its stat, what does not change while it does nothing: all but its state. */
  #figures = '';
  #measuredMs = Number.NEGATIVE_INFINITY;
  #measuringMs = 0;
  /** Resident pages, of which others may have some too: now, and when its memory was added up. */
  #pages = 0;
  #measuredPages = 0;
  /** Its own and of what it waited for; and the second alone. */
  userSeconds = 0;
  systemSeconds = 0;
  reapedUserSeconds = 0;
  reapedSystemSeconds = 0;
  threads = 0;
  /** Proportional set size, when it was last asked for. */
  memoryBytes = 0;
  /** Only a zombie is left. */
  ended = false;

  constructor(pid: number) {
    this.#pid = pid;
    this.#stat = new ProcFile(`/proc/${pid}/stat`);
    this.#schedstat = new ProcFile(`/proc/${pid}/schedstat`);
    this.#children = new ProcFile(`/proc/${pid}/task/${pid}/children`);
  }

  /**
   * True when it has not run since it was asked last, which takes a third of a look. Never of one with several threads,
   * of which the kernel has no such figure.
   */
  slept(): boolean {
    const before = this.#ran;
    this.#ran = this.#schedstat.read();
    return this.threads === 1 && before !== undefined && before === this.#ran;
  }

  /** Brings its figures up to date, its memory only if that is wanted; false when it is gone. */
  look(memory: boolean): boolean {
    const stat = this.#stat.read();
    if (stat === undefined) return false;
    const state = stat.lastIndexOf(')') + 2;
    const figures = stat.slice(state + 1);
    const changed = figures !== this.#figures;
    if (changed) {
      this.#figures = figures;
      this.#take(statFields(stat).map(Number));
    }
    this.ended = 'ZX'.includes(stat.charAt(state)) && this.threads <= 1;
    if (!memory || this.ended) return true;
    const nowMs = performance.now();
    const isSoon = nowMs - this.#measuredMs < this.#measuringMs / MEMORY_SHARE;
    const isSame = Math.abs(this.#pages - this.#measuredPages) <= this.#measuredPages * MEMORY_CHANGE;
    if (changed ? isSoon && isSame : nowMs - this.#measuredMs < REFRESH_MS) return true;
    this.#measuredMs = nowMs;
    this.#measuredPages = this.#pages;
    this.memoryBytes = proportionalBytes(this.#pid);
    this.#measuringMs = performance.now() - nowMs;
    return true;
  }

  /** proc_pid_stat(5): utime stime cutime cstime at 11 to 14, num_threads at 17, rss at 21. */
  #take(fields: number[]): void {
    const [user, system, reapedUser, reapedSystem] = fields.slice(11, 15).map((ticks) => ticks / TICKS) as Ticks;
    this.userSeconds = user + reapedUser;
    this.systemSeconds = system + reapedSystem;
    this.reapedUserSeconds = reapedUser;
    this.reapedSystemSeconds = reapedSystem;
    this.threads = fields[17] as number;
    this.#pages = fields[21] as number;
  }

  /** Process ids of its children, of whichever of its threads. */
  children(): number[] {
    if (this.threads !== 1 || !LISTS_CHILDREN) return childrenOf(this.#pid);
    return (this.#children.read() ?? '').split(' ').filter(Boolean).map(Number);
  }

  close(): void {
    this.#stat.close();
    this.#schedstat.close();
    this.#children.close();
  }
}

type Ticks = [number, number, number, number];

function proportionalBytes(pid: number): number {
  const rollup = rollupOf(`/proc/${pid}`) ?? rollupOfThread(pid) ?? '';
  return Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0) * 1024;
}

/** A process whose first thread has ended shows its memory only below one of the others. */
function rollupOfThread(pid: number): string | undefined {
  const rollups = threadsOf(pid)
    .values()
    .map((thread) => rollupOf(`/proc/${pid}/task/${thread}`));
  return rollups.find((rollup) => rollup !== undefined);
}

function rollupOf(directory: string): string | undefined {
  return readKernelFile(`${directory}/smaps_rollup`);
}
