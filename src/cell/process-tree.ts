import { PAGE_BYTES, ProcFile, readKernelFile, statFields } from '../proc-file.ts';
import { childrenOf, LISTS_CHILDREN, threadsOf } from '../processes.ts';

/** Clock ticks a second in /proc/PID/stat: 100 on every architecture of Linux that Node runs on. */
const TICKS = 100;

/**
 * How old the figures may be of a process that has not changed, in ms: others may share more or less with it. The
 * proportional set size is by far the dearest of all.
 */
export const REFRESH_MS = 30_000;

/**
 * How long adding up memory that was added up before may take, in parts of the time since, and since when at most, in ms: it
 * holds up whoever does it, 40 ms for each GiB of a process. Until then what a process grew by is taken for its own.
 */
const MEMORY_SHARE = 1 / 50;
const MEMORY_SPAN_MS = 1_000;

/** What some processes and everything below them use. */
export interface TreeUsage {
  /** CPU time of those that run and of what they have waited for, in seconds. Ended and not waited for is included. */
  userSeconds: number;
  systemSeconds: number;
  /** Proportional set size: what is shared with others counts in shares; in full where only root may see that. */
  memoryBytes: number;
  processes: number;
  threads: number;
}

/** Measures processes and their descendants again and again; those that did nothing since the last time cost little. */
export class TreeMeter {
  #known = new Map<number, ProcessMeter>();
  #closed = false;
  /** When memory may be added up again that was before. */
  #dueMs = 0;
  /** It was seen to be more than it may be. */
  #passed = false;

  /**
   * Adds up what `roots` and all below them use, those that run away from their parent while it looks excepted. With
   * `memory` false their memory is not looked at, and counts as far as it is known, 0 if never. No more than `mostBytes`
   * is told of it before all of that was added up anew.
   */
  usage(roots: Iterable<number>, memory = true, mostBytes = Number.POSITIVE_INFINITY): TreeUsage {
    const usage = { userSeconds: 0, systemSeconds: 0, memoryBytes: 0, processes: 0, threads: 0 };
    if (this.#closed) return usage;
    const before = this.#known;
    this.#known = new Map();
    const tree = new Set(roots);
    const living: ProcessMeter[] = [];
    const beganMs = performance.now();
    for (const pid of tree) {
      const process = before.get(pid) ?? new ProcessMeter(pid);
      if (!process.look()) {
        process.close();
        continue;
      }
      before.delete(pid);
      this.#known.set(pid, process);
      for (const child of process.children()) tree.add(child);
      usage.userSeconds += process.userSeconds;
      usage.systemSeconds += process.systemSeconds;
      if (process.ended) continue;
      living.push(process);
      usage.processes += 1;
      usage.threads += process.threads;
    }
    for (const process of before.values()) process.close();
    if (memory) this.#measure(living);
    usage.memoryBytes = memoryOf(living);
    if (memory && usage.memoryBytes > mostBytes && !this.#passed) {
      for (const process of living) if (process.measuredMs < beganMs) process.measure();
      usage.memoryBytes = memoryOf(living);
      this.#passed = usage.memoryBytes > mostBytes;
    }
    return usage;
  }

  /** Adds up the memory of those of which it never was, and within its share that of others, the longest ago first. */
  #measure(living: ProcessMeter[]): void {
    const nowMs = performance.now();
    this.#dueMs = Math.max(this.#dueMs, nowMs - MEMORY_SPAN_MS);
    const stale = living.filter((process) => process.isStale(nowMs));
    for (const process of stale.sort((a, b) => a.measuredMs - b.measuredMs)) {
      const { isMeasured } = process;
      const beganMs = performance.now();
      if (isMeasured && beganMs < this.#dueMs) break;
      process.measure();
      if (isMeasured) this.#dueMs += (performance.now() - beganMs) / MEMORY_SHARE;
    }
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
  /** Resident pages, of which others may have some too. */
  #pages = 0;
  /** When its memory was added up, what that was, and what it had and had done then. */
  measuredMs = Number.NEGATIVE_INFINITY;
  #measuredBytes = 0;
  #measuredPages = 0;
  #measuredFigures = '';
  /** Its own and of what it waited for; and the second alone. */
  userSeconds = 0;
  systemSeconds = 0;
  reapedUserSeconds = 0;
  reapedSystemSeconds = 0;
  threads = 0;
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

  /** Brings its figures up to date, its memory excepted; false when it is gone. */
  look(): boolean {
    const stat = this.#stat.read();
    if (stat === undefined) return false;
    const state = stat.lastIndexOf(')') + 2;
    const figures = stat.slice(state + 1);
    if (figures !== this.#figures) {
      this.#figures = figures;
      this.#take(statFields(stat).map(Number));
    }
    this.ended = 'ZX'.includes(stat.charAt(state)) && this.threads <= 1;
    return true;
  }

  get isMeasured(): boolean {
    return this.measuredMs > Number.NEGATIVE_INFINITY;
  }

  /** Whether its memory may be another than was added up. */
  isStale(nowMs: number): boolean {
    return this.#figures !== this.#measuredFigures || nowMs - this.measuredMs >= REFRESH_MS;
  }

  /** Proportional set size when it was added up, and all it grew or shrank by since; 0 if it never was. */
  get memoryBytes(): number {
    if (!this.isMeasured) return 0;
    return Math.max(0, this.#measuredBytes + (this.#pages - this.#measuredPages) * PAGE_BYTES);
  }

  /** Adds up its memory. */
  measure(): void {
    this.measuredMs = performance.now();
    this.#measuredPages = this.#pages;
    this.#measuredFigures = this.#figures;
    this.#measuredBytes = proportionalBytes(this.#pid);
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

function memoryOf(processes: ProcessMeter[]): number {
  return processes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
}

type Ticks = [number, number, number, number];

function proportionalBytes(pid: number): number {
  const rollup = firstOf(pid, rollupOf);
  // There may be one that only root may read (prctl(2), PR_SET_DUMPABLE).
  if (rollup === undefined) return residentBytes(pid);
  return Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0) * 1024;
}

/** What is shared with others counts in full. Nothing is left of one that has begun to end. */
function residentBytes(pid: number): number {
  return (firstOf(pid, pagesOf) ?? 0) * PAGE_BYTES;
}

/** A process whose first thread has ended shows its memory only below one of the others. */
function firstOf<T>(pid: number, read: (directory: string) => T | undefined): T | undefined {
  const found = read(`/proc/${pid}`);
  if (found !== undefined) return found;
  const others = threadsOf(pid)
    .values()
    .map((thread) => read(`/proc/${pid}/task/${thread}`));
  return others.find((other) => other !== undefined);
}

/** Resident pages; undefined where there are none. */
function pagesOf(directory: string): number | undefined {
  return Number(readKernelFile(`${directory}/statm`)?.split(' ')[1]) || undefined;
}

function rollupOf(directory: string): string | undefined {
  return readKernelFile(`${directory}/smaps_rollup`);
}
