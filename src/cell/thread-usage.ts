import { getHeapStatistics } from 'node:v8';
import { takeReaped } from '../../workers/javascript/reaped.ts';
import {
  CHILD_SLOTS,
  FIGURE,
  figuresOf,
  REAPED_BYTES,
  SHARED,
  SHARED_BYTES,
  THREAD_SLOTS,
} from '../../workers/javascript/shared.ts';
import { readKernelFile } from '../proc-file.ts';
import { childrenOfThread, isAlive, isOwnChild } from '../processes.ts';
import { within } from '../within.ts';
import { type GuestUsage, LARGEST_FIGURE } from './engine.ts';
import type { ThreadBoot, ThreadStart } from './messages.ts';
import { TreeMeter, type TreeUsage } from './process-tree.ts';
import { type Cpu, Task } from './task.ts';
import type { ThreadContext } from './thread-context.ts';
import { anonymousBytes, type ProcessMemory, type ThreadMemory, UnseenMemory } from './unseen-memory.ts';

/** How long threads may take to tell what they hold. One stuck in native code does not: then the newest figures count. */
const ANSWER_MS = 50;

/**
 * Threads that used less CPU time than this since they were asked, in seconds, and touched no new page, have done little
 * but answer: their heap is as it was, and they are left asleep.
 */
const DOZE_SECONDS = 0.000_5;
/** After so long they are asked all the same, in ms. */
const REFRESH_MS = 30_000;

const MIB = 2 ** 20;

/** Measures the threads of one engine: all together, because what no heap shows can only be told apart between all. */
export class ThreadMeter {
  /** For the threads, see `REAPED_BYTES`. */
  readonly reaped = new SharedArrayBuffer(REAPED_BYTES);
  /** What each program shares with the cell, from before it begins until its end is told. */
  readonly programs = new Set<Int32Array>();
  /** Ended children that nobody waits for: their ids stay theirs as long as the cell lives. */
  readonly #zombies = new Set<number>();
  readonly #countThreads: () => number;
  readonly #guests = new Set<GuestMeter>();
  readonly #unseen: UnseenMemory<GuestMeter>;
  #sampling: Promise<void> | undefined;

  /** `countThreads` tells how many threads have booted, spares included; there are none yet. */
  constructor(countThreads: () => number) {
    this.#countThreads = countThreads;
    this.#unseen = new UnseenMemory(processMemory(0));
    // What there was before is nobody's.
    this.takeReaped(figuresOf(new Int32Array(new SharedArrayBuffer(SHARED_BYTES))));
  }

  add(guest: GuestMeter): void {
    this.#guests.add(guest);
    this.#unseen.add(guest, guest.booted, this.#process());
  }

  remove(guest: GuestMeter): void {
    this.#guests.delete(guest);
    this.#unseen.remove(guest, () => this.#process());
  }

  /** Brings the figures of all guests up to date; who asks meanwhile gets the same answer. */
  sample(): Promise<void> {
    this.#sampling ??= this.#sample().finally(() => {
      this.#sampling = undefined;
    });
    return this.#sampling;
  }

  /** Adds to these figures what children have used that a thread waited for and did not live to note. */
  takeReaped(figures: BigInt64Array): void {
    takeReaped(() => readKernelFile('/proc/self/stat'), new BigInt64Array(this.reaped), figures);
  }

  /**
   * Children that no program knows of: a thread that is gone was ended before it could note them, or hid them. The kernel
   * gives those of a thread that is gone to the first one, which in a cell of threads has none itself.
   */
  strays(): number[] {
    const found = childrenOfThread(process.pid).filter((pid) => !this.#zombies.has(pid));
    for (const pid of found) if (!isAlive(pid)) this.#zombies.add(pid);
    // Noted before its thread was gone, so before that list was read.
    const isNoted = (pid: number) => [...this.programs].some((shared) => childSlotsOf(shared).includes(pid));
    return found.filter((pid) => !this.#zombies.has(pid) && !isNoted(pid));
  }

  unseenBytes(guest: GuestMeter): number {
    return this.#unseen.of(guest);
  }

  async #sample(): Promise<void> {
    const awake = [...this.#guests].filter((guest) => guest.isAwake());
    if (awake.length > 0) {
      await within(ANSWER_MS, Promise.all(awake.map((guest) => guest.ask())));
      for (const guest of awake) guest.look();
    }
    const threads = new Map([...this.#guests].map((guest) => [guest, guest.memory]));
    this.#unseen.sample(this.#process(), threads);
  }

  #process(): ProcessMemory {
    return processMemory(this.#countThreads());
  }
}

/** Measures one guest, from the moment its code begins. */
export class GuestMeter {
  readonly #meter: ThreadMeter;
  readonly #context: ThreadContext;
  readonly #shared: Int32Array;
  readonly #figures: BigInt64Array;
  /** The kernel's id of its thread, and what that had used by then. */
  readonly #thread: number;
  readonly #start: Cpu;
  readonly #limitBytes: number;
  /** What of its thread is not its program's. */
  readonly booted: ThreadBoot;
  #asking = false;
  #ended = false;
  #heap: { usedBytes: number; totalBytes: number; externalBytes: number };
  /** By kernel id: its thread and those that it started. */
  readonly #tasks = new Map<number, Task>();
  /** Of all of them, the ended ones included. */
  #faults = 0;
  /** Since it was asked what it holds, all its threads together. */
  #ranSeconds = 0;
  #touched = 0;
  #askedMs = Number.NEGATIVE_INFINITY;
  /** False once it was seen to have none, until one of its threads has run. */
  #mayHaveChildren = true;
  #mayHaveNested = true;
  /** The newest figures, until something of them may have changed. */
  #usage: GuestUsage | undefined;
  readonly #tree = new TreeMeter();
  /** Of the threads it started that are there, and of those that it ended by force. */
  #nested = new Map<number, Cpu>();
  readonly #lost: Cpu = { userSeconds: 0, systemSeconds: 0 };
  /** Of those that ended by themselves: they said so. */
  #told: Cpu = { userSeconds: 0, systemSeconds: 0 };
  #own: Cpu = { userSeconds: 0, systemSeconds: 0 };
  #children: Cpu = { userSeconds: 0, systemSeconds: 0 };
  #childBytes = 0;
  #peakBytes = 0;

  constructor(
    meter: ThreadMeter,
    context: ThreadContext,
    shared: Int32Array,
    { thread, user, system, booted }: ThreadStart,
    limitBytes = Number.POSITIVE_INFINITY,
  ) {
    this.#meter = meter;
    this.#context = context;
    this.#shared = shared;
    this.#figures = figuresOf(shared);
    this.#thread = thread;
    this.#start = { userSeconds: user / 1e6, systemSeconds: system / 1e6 };
    this.#limitBytes = limitBytes;
    this.#heap = { usedBytes: booted.usedBytes, totalBytes: booted.heapBytes, externalBytes: booted.externalBytes };
    this.booted = booted;
  }

  /** What it uses now; within 100 ms also while its thread is stuck. */
  async usage(): Promise<GuestUsage> {
    await this.#meter.sample();
    if (this.#usage !== undefined && this.#usage.wasmBytes === this.#meter.unseenBytes(this)) return this.#usage;
    const { processes, threads } = this.lookAtChildren();
    const usage = { ...this.#summary(), processes, threads: 1 + this.#nested.size + threads };
    if (!this.#mayHaveChildren) this.#usage = usage;
    return usage;
  }

  /**
   * Its thread is gone: another one may get its id. Returns the process ids of the children it left, and of such as no
   * program knows of, which may be its own.
   */
  end(): Set<number> {
    // It may be gone so short a time that its children are not the first thread's yet.
    const left = this.children();
    this.#ended = true;
    this.#usage = undefined;
    this.#mayHaveChildren = true;
    if (this.#ids(SHARED.waiting, THREAD_SLOTS).length > 0) this.#meter.takeReaped(this.#figures);
    this.lookAtChildren();
    for (const id of this.#tasks.keys()) this.#forget(id);
    return new Set([...left, ...this.#meter.strays()]);
  }

  /** What it used, once it is gone. `heapLimitMb` is given when it ended at that. */
  final(heapLimitMb: number | undefined): GuestUsage {
    this.#tree.close();
    const end = this.#cpu('endUser', 'endSystem');
    if (totalOf(end) > 0) {
      this.#own = later(this.#own, since(this.#start, end));
      // Where it could not look any more, what was seen last stands.
      if (this.#figure('endHeap') > 0) {
        this.#heap.usedBytes = this.#figure('endHeap');
        this.#heap.externalBytes = this.#figure('endExternal');
      }
    }
    this.#heap.usedBytes = Math.max(this.#heap.usedBytes, (heapLimitMb ?? 0) * MIB);
    return { ...this.#summary(), processes: 0, threads: 0 };
  }

  /** Asks the thread what it holds, unless it still owes an answer. */
  async ask(): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const heap = await this.#context.heapStatistics();
      const usedBytes = heap.used_heap_size + heap.malloced_memory;
      const totalBytes = heap.total_heap_size + heap.malloced_memory;
      this.#heap = { usedBytes, totalBytes, externalBytes: heap.external_memory };
      this.#usage = undefined;
      this.#asking = false;
    } catch {
      // It has ended.
    }
  }

  /** True when it has to be asked what it holds: its threads have run since it was asked last, or that is long ago. */
  isAwake(): boolean {
    this.look();
    const nowMs = performance.now();
    const slept = this.#touched === 0 && this.#ranSeconds < DOZE_SECONDS && nowMs - this.#askedMs < REFRESH_MS;
    if (this.#ended || slept) return false;
    this.#touched = 0;
    this.#ranSeconds = 0;
    this.#askedMs = nowMs;
    return true;
  }

  /** Reads what the kernel knows of its threads. */
  look(): void {
    if (this.#ended) return;
    const own = this.#lookAt(this.#thread);
    if (this.#usage !== undefined && !this.#mayHaveNested) return;
    if (own !== undefined) this.#own = later(this.#own, since(this.#start, own));
    this.#lookAtNested();
  }

  /** What is known of its threads. */
  get memory(): ThreadMemory {
    return { faults: this.#faults, heapBytes: this.#heap.totalBytes, externalBytes: this.#heap.externalBytes };
  }

  /**
   * Reads what its child processes use. What is missed: a process that left its parent, and the last of a child that
   * nobody waited for, since it was looked at. With `memory` false their memory is as it was seen last.
   */
  lookAtChildren(memory = true): TreeUsage {
    const children = this.#mayHaveChildren ? this.children() : new Set<number>();
    this.#mayHaveChildren = children.size > 0;
    const tree = this.#tree.usage(children, memory, this.#limitBytes - this.#ownBytes);
    add(tree, this.#cpu('childUser', 'childSystem'));
    this.#children = later(this.#children, tree);
    this.#childBytes = tree.memoryBytes;
    return tree;
  }

  /**
   * Process ids of its child processes, those included that a thread waits for synchronously. Its threads forget one only
   * some time after they have waited for it: then another process may have its id.
   */
  children(): Set<number> {
    const listed = new Set(this.childrenOfThreads());
    const noted = this.#ids(SHARED.children, CHILD_SLOTS).filter((pid) => listed.has(pid) || isOwnChild(pid));
    return new Set([...noted, ...listed]);
  }

  /** Those of them that the kernel lists for its threads. */
  childrenOfThreads(): number[] {
    // Its own is known, whatever the program writes there.
    const threads = new Set([this.#thread, ...this.#ids(SHARED.threads, THREAD_SLOTS)]);
    return this.#ended ? [] : [...threads].flatMap(childrenOfThread);
  }

  get #ownBytes(): number {
    return this.#heap.usedBytes + this.#heap.externalBytes + this.#meter.unseenBytes(this);
  }

  #summary(): Omit<GuestUsage, 'processes' | 'threads'> {
    const cpu: Cpu = { ...this.#own };
    const told = this.#cpu('threadUser', 'threadSystem');
    for (const part of [this.#children, this.#lost, told, ...this.#nested.values()]) add(cpu, part);
    const { usedBytes: heapBytes, externalBytes } = this.#heap;
    const wasmBytes = this.#meter.unseenBytes(this);
    const memoryBytes = this.#ownBytes + this.#childBytes;
    this.#peakBytes = Math.max(this.#peakBytes, memoryBytes);
    return {
      ...cpu,
      memoryBytes,
      peakMemoryBytes: this.#peakBytes,
      heapBytes,
      externalBytes,
      wasmBytes,
      droppedBytes: this.#figure('dropped'),
    };
  }

  #lookAtNested(): void {
    const nested = new Map<number, Cpu>();
    // Taken by the thread that starts another one, before that begins and notes its id.
    const slots = this.#shared.subarray(SHARED.threads + 1, SHARED.threads + THREAD_SLOTS);
    this.#mayHaveNested = slots.some((slot) => slot !== 0);
    for (const id of this.#ids(SHARED.threads + 1, THREAD_SLOTS - 1)) {
      const cpu = this.#lookAt(id);
      if (cpu !== undefined) nested.set(id, cpu);
    }
    const gone: Cpu = { userSeconds: 0, systemSeconds: 0 };
    for (const [id, cpu] of this.#nested) {
      if (nested.has(id)) continue;
      add(gone, cpu);
      this.#forget(id);
    }
    const told = this.#cpu('threadUser', 'threadSystem');
    // What was seen of threads that are gone, and none of them told.
    add(this.#lost, since(since(this.#told, told), gone));
    this.#told = told;
    this.#nested = nested;
  }

  #lookAt(thread: number): Cpu | undefined {
    let task = this.#tasks.get(thread);
    if (task === undefined) {
      task = new Task(thread);
      this.#tasks.set(thread, task);
    }
    const [seconds, faults] = [totalOf(task.cpu), task.faults];
    if (!task.look()) {
      this.#forget(thread);
      return undefined;
    }
    const ran = totalOf(task.cpu) - seconds;
    if (ran > 0) {
      this.#mayHaveChildren = true;
      this.#usage = undefined;
    }
    this.#ranSeconds += ran;
    this.#touched += task.faults - faults;
    this.#faults += task.faults - faults;
    return task.cpu;
  }

  #forget(thread: number): void {
    this.#tasks.get(thread)?.close();
    this.#tasks.delete(thread);
    this.#usage = undefined;
  }

  /** The ids in so many cells, without those that are free or stand for nothing. */
  #ids(first: number, count: number): number[] {
    const ids: number[] = [];
    for (let at = first; at < first + count; at += 1) {
      const id = this.#shared[at] as number;
      if (id > 0) ids.push(id);
    }
    return ids;
  }

  /** A program can find them, and write there what it likes. */
  #figure(name: keyof typeof FIGURE): number {
    return Math.min(LARGEST_FIGURE, Math.max(0, Number(Atomics.load(this.#figures, FIGURE[name]))));
  }

  #cpu(user: keyof typeof FIGURE, system: keyof typeof FIGURE): Cpu {
    return { userSeconds: this.#figure(user) / 1e6, systemSeconds: this.#figure(system) / 1e6 };
  }
}

/** CPU time only ever rises: what was read late must not undo what another source told. */
function later(a: Cpu, b: Cpu): Cpu {
  return totalOf(a) > totalOf(b) ? a : b;
}

function totalOf({ userSeconds, systemSeconds }: Cpu): number {
  return userSeconds + systemSeconds;
}

/** What was added from one reading to another. Ticks make the parts coarse; the sum stays right. */
function since(start: Cpu, now: Cpu): Cpu {
  const total = Math.max(0, totalOf(now) - totalOf(start));
  const userSeconds = Math.min(total, Math.max(0, now.userSeconds - start.userSeconds));
  return { userSeconds, systemSeconds: total - userSeconds };
}

function add(to: Cpu, part: Cpu | undefined): void {
  to.userSeconds += part?.userSeconds ?? 0;
  to.systemSeconds += part?.systemSeconds ?? 0;
}

function childSlotsOf(shared: Int32Array): Int32Array {
  return shared.subarray(SHARED.children, SHARED.children + CHILD_SLOTS);
}

function processMemory(threads: number): ProcessMemory {
  const { total_heap_size: heapBytes, external_memory: externalBytes } = getHeapStatistics();
  return {
    anonymousBytes: anonymousBytes(),
    faults: process.resourceUsage().minorPageFault,
    mainBytes: heapBytes + externalBytes,
    threads,
    nowMs: performance.now(),
  };
}
