import { PAGE_BYTES, readKernelFile } from '../proc-file.ts';
import type { Guest, GuestLimits, GuestUsage } from './engine.ts';

/** How often guests with limits are looked at, in ms; and once one has used half of what it may. */
const PERIOD_MS = 100;
const CLOSE_PERIOD_MS = 20;
/** How often the process is looked at when no guest has a limit, in ms. */
const REST_PERIOD_MS = 500;
/** After so long in which a guest did nothing it is left to a daemon that watches its process: it dozes. */
const DOZE_AFTER_MS = 2_000;
/** When a guest that dozes is looked at again, in ms: each time twice as late while nothing happens, but this often. */
const DOZE_PERIOD_MS = 5_000;
const LONGEST_DOZE_MS = 60_000;
/** What a guest that does nothing uses all the same: it is asked what it holds. */
const STILL_CPU_MS = 2;
const STILL_BYTES = 1024 * 1024;

/** How far back the guest that grew is looked for, in samples of a cell that is past half of its budget. */
const HISTORY = 20;
/** A cell that grew by this part of its budget is looked at as a whole: it may be past it by the next look. */
const GROWTH = 1 / 16;

/** The signal a guest gets at its soft memory limit, if it listens for it. */
const SOFT_SIGNAL = 'SIGUSR2';

const MIB = 1024 * 1024;

/** What a guest can pass. Beyond `memory` the cell ends it by force. */
type MeteredLimit = 'cpu' | 'memory' | 'memory_soft';

/** What {@link Meter} tells. */
export interface MeterEvents {
  /** A guest passed a limit; once for each of its limits. One line for people. */
  passed(executionKey: string, limit: MeteredLimit, message: string): void;
  /** These have done nothing for a while: what they use. From here on they are looked at seldom. */
  dozing(usages: Map<string, GuestUsage>): void;
}

/** What was used when something began to be still. */
interface Still {
  sinceMs: number;
  cpuMs: number;
  bytes: number;
}

/** What is held, by a guest or by the process. */
interface Held {
  /** Bytes when the cell was looked at as a whole last, before it was past half of its budget; 0 for a guest that came later. */
  baseBytes: number;
  /** Bytes, newest last, while the cell is past half of its budget. */
  history: number[];
}

interface Metered extends Held {
  guest: Guest;
  limits: GuestLimits;
  passed: Set<MeteredLimit>;
  still: Still;
  /** What it used when it was looked at last, and when that was. */
  usage: GuestUsage | undefined;
  lookedMs: number;
  doze: Doze | undefined;
}

/** Of a guest that is left alone: when it is looked at again, and how long that is after the look before, in ms. */
interface Doze {
  dueMs: number;
  periodMs: number;
}

/** What the process holds of its budget. */
interface Room {
  bytes: number;
  /** More than half of its budget. */
  crowded: boolean;
  /** All its guests are to be looked at. */
  whole: boolean;
}

/**
 * Watches what the guests of a cell use. One that has limits is sampled; all are while the process itself comes close to
 * its budget, and then it is the one that grew that has passed its limit.
 */
export class Meter {
  readonly #events: MeterEvents;
  readonly #budgetBytes: number;
  readonly #guestProcesses: number;
  readonly #guests = new Map<string, Metered>();
  #timer: NodeJS.Timeout | undefined;
  #dueMs = 0;
  #sampling = false;
  /** What the process held when all its guests were looked at last, or less. */
  #wholeBytes = 0;
  /** A guest, or the process, was beyond half of its limit at the last look. */
  #close = false;
  #still: Still = { sinceMs: 0, cpuMs: 0, bytes: 0 };
  /** By the process, since it has had the guests that it has: nothing is known of what was before. */
  #held: Held = unknownHeld();
  #mayDoze = false;

  /** `budgetBytes` is what the whole process may hold; 0: no budget. `guestProcesses`: 1 where a guest is one, else 0. */
  constructor(budgetBytes: number, guestProcesses: number, events: MeterEvents) {
    this.#budgetBytes = budgetBytes;
    this.#guestProcesses = guestProcesses;
    this.#events = events;
  }

  /** True while somebody sees to it that {@link wake} is called when a guest that dozes, or its process, does something. */
  set mayDoze(mayDoze: boolean) {
    this.#mayDoze = mayDoze;
    if (!mayDoze) this.wake();
  }

  /** These do something, or may; without any named, all: they are looked at as often as before. */
  wake(executionKeys: Iterable<string> = this.#guests.keys()): void {
    const sinceMs = performance.now();
    for (const executionKey of executionKeys) {
      const metered = this.#guests.get(executionKey);
      if (metered?.doze === undefined) continue;
      metered.doze = undefined;
      metered.still.sinceMs = sinceMs;
      this.#still.sinceMs = sinceMs;
      this.#schedule(0);
    }
  }

  add(executionKey: string, guest: Guest, limits: GuestLimits): void {
    const nowMs = performance.now();
    const still = { sinceMs: nowMs, cpuMs: 0, bytes: 0 };
    const unseen = { baseBytes: 0, history: [], usage: undefined, lookedMs: nowMs, doze: undefined };
    // Where guests are threads the process of all of them does something now.
    if (this.#guestProcesses === 0) this.wake();
    this.#guests.set(executionKey, { guest, limits, passed: new Set(), still, ...unseen });
    this.#held = unknownHeld();
    this.#schedule(isMetered(limits) ? PERIOD_MS : REST_PERIOD_MS);
  }

  remove(executionKey: string): void {
    this.#guests.delete(executionKey);
    this.#held = unknownHeld();
  }

  /** What every guest that does not doze uses now, by execution key. The next look is as far away as after any other one. */
  async measure(): Promise<Map<string, GuestUsage>> {
    const room = this.#look();
    const usages = this.#judge(room, ({ doze }) => room.whole || doze === undefined);
    if (!this.#sampling) this.#restAfter(usages);
    return usages;
  }

  /** The next look is after `delayMs`, or when it was to be anyway if that is sooner. */
  #schedule(delayMs: number): void {
    if (this.#sampling || this.#guests.size === 0) return;
    const dueMs = performance.now() + delayMs;
    if (this.#timer !== undefined && this.#dueMs <= dueMs) return;
    clearTimeout(this.#timer);
    this.#dueMs = dueMs;
    this.#timer = setTimeout(() => {
      const room = this.#look();
      this.#restAfter(this.#judge(room, (metered) => room.whole || isDue(metered)));
    }, delayMs).unref();
  }

  /** The next look is a period after this one, which may be the last for a while. */
  #restAfter(judged: Promise<unknown>): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#sampling = true;
    const rested = judged.then(() => this.#doze());
    // A figure that cannot be had is no reason to end the others.
    void rested
      .catch(() => {})
      .then(() => {
        this.#sampling = false;
        this.#schedule(this.#periodMs);
      });
  }

  /** When to look again, in ms. */
  get #periodMs(): number {
    const guests = [...this.#guests.values()];
    const awake = guests.filter(({ doze }) => doze === undefined);
    if (awake.length === 0) {
      const dueMs = guests.reduce((first, { doze }) => Math.min(first, doze?.dueMs ?? first), Number.POSITIVE_INFINITY);
      return Math.max(0, dueMs - performance.now());
    }
    if (this.#close) return CLOSE_PERIOD_MS;
    return awake.some(({ limits }) => isMetered(limits)) ? PERIOD_MS : REST_PERIOD_MS;
  }

  #look(): Room {
    const bytes = this.#budgetBytes > 0 ? (residentBytes() ?? this.#still.bytes) : 0;
    const crowded = bytes > 0 && bytes > this.#budgetBytes / 2;
    this.#still = stillOf(this.#still, 0, bytes);
    return { bytes, crowded, whole: crowded || bytes - this.#wholeBytes > this.#budgetBytes * GROWTH };
  }

  /** Compares what these guests use with their limits, and the process with its budget; resolves with what they use. */
  async #judge(
    { bytes, crowded, whole }: Room,
    isLooked: (guest: Metered) => boolean,
  ): Promise<Map<string, GuestUsage>> {
    this.#wholeBytes = whole ? bytes : Math.min(bytes, this.#wholeBytes);
    let close = crowded;
    note(this.#held, bytes, crowded, true);
    const usages = new Map<string, GuestUsage>();
    const looked = [...this.#guests].filter(([, metered]) => isLooked(metered));
    await Promise.all(
      looked.map(async ([executionKey, metered]) => {
        const usage = await metered.guest.usage();
        usages.set(executionKey, usage);
        metered.usage = usage;
        metered.lookedMs = performance.now();
        if (this.#guests.get(executionKey) !== metered) return;
        if (this.#compare(executionKey, metered, usage)) close = true;
        metered.still = stillOf(metered.still, cpuMsOf(usage), usage.memoryBytes);
        if (usage.processes > this.#guestProcesses) metered.still.sinceMs = performance.now();
        note(metered, usage.memoryBytes, crowded, whole);
      }),
    );
    if (crowded && bytes > this.#budgetBytes) this.#endGrown(bytes);
    this.#close = close;
    return usages;
  }

  /** Who has done nothing for long enough falls asleep, or sleeps on. */
  async #doze(): Promise<void> {
    if (!this.#mayDoze) return;
    const nowMs = performance.now();
    // Who has no limit of its own is looked at only when nobody else is in the way.
    if (![...this.#guests.values()].some(({ limits, still }) => isMetered(limits) && !isStill(still, nowMs))) {
      const isClose = this.#close;
      const isLeft = ({ limits, doze }: Metered) => !isMetered(limits) && doze === undefined;
      await this.#judge({ ...this.#look(), whole: false }, isLeft);
      this.#close ||= isClose;
    }
    const isProcessStill = this.#guestProcesses > 0 || this.#areThreadsStill();
    const asleep = new Map<string, GuestUsage>();
    for (const [executionKey, metered] of this.#guests) {
      const { usage, still, lookedMs, doze } = metered;
      if (!isProcessStill || usage === undefined || !isStill(still, lookedMs)) {
        metered.doze = undefined;
      } else if (doze === undefined || doze.dueMs <= lookedMs) {
        const periodMs = doze === undefined ? DOZE_PERIOD_MS : Math.min(2 * doze.periodMs, LONGEST_DOZE_MS);
        metered.doze = { periodMs, dueMs: lookedMs + periodMs };
        asleep.set(executionKey, usage);
      }
    }
    if (asleep.size > 0) this.#events.dozing(asleep);
  }

  /** Nobody can say of a process which of its threads does something. */
  #areThreadsStill(): boolean {
    const areStill = Iterator.from(this.#guests.values()).every(({ still, lookedMs }) => isStill(still, lookedMs));
    return areStill && isStill(this.#still, performance.now());
  }

  #compare(executionKey: string, { guest, limits, passed }: Metered, usage: GuestUsage): boolean {
    const pass = (limit: MeteredLimit, message: string) => {
      if (passed.has(limit)) return;
      passed.add(limit);
      this.#events.passed(executionKey, limit, message);
    };
    const { memoryBytes: hard = Number.POSITIVE_INFINITY, memorySoftBytes: soft = Number.POSITIVE_INFINITY } = limits;
    const { cpuTimeMs = Number.POSITIVE_INFINITY } = limits;
    const cpuMs = cpuMsOf(usage);
    if (usage.memoryBytes > hard) {
      pass('memory', `${mib(usage.memoryBytes)} held; the memory limit is ${mib(hard)}`);
    } else if (usage.memoryBytes > soft && !passed.has('memory_soft')) {
      const told = guest.notify(SOFT_SIGNAL) ? `; the guest was sent ${SOFT_SIGNAL}` : '';
      pass('memory_soft', `${mib(usage.memoryBytes)} held; the soft memory limit is ${mib(soft)}${told}`);
    }
    if (cpuMs > cpuTimeMs) pass('cpu', `${Math.round(cpuMs)} ms of CPU time used; the limit is ${cpuTimeMs} ms`);
    return usage.memoryBytes > Math.min(hard, soft) / 2 || cpuMs > cpuTimeMs / 2;
  }

  /**
   * The process is beyond its budget: the guest that grew most of late has passed its limit, whatever that is. While none
   * did, none is ended: what no guest shows to hold may be of any of them.
   */
  #endGrown(bytes: number): void {
    let grown: { executionKey: string; metered: Metered; growth: number } | undefined;
    const growthAlone = this.#growthAlone(bytes - this.#budgetBytes);
    for (const [executionKey, metered] of this.#guests) {
      // One that is being ended already may be all that is needed.
      if (metered.passed.has('memory')) return;
      const growth = Math.max(growthOf(metered), growthAlone);
      if (growth > (grown?.growth ?? 0)) grown = { executionKey, metered, growth };
    }
    if (grown === undefined) return;
    const { executionKey, metered, growth } = grown;
    metered.passed.add('memory');
    this.#events.passed(
      executionKey,
      'memory',
      `its cell holds ${mib(bytes)} of ${mib(this.#budgetBytes)}, and it grew most (by ${mib(growth)})`,
    );
  }

  /** What the process grew by where only one guest can have done that, in whatever way; 0 where so much was there before. */
  #growthAlone(excessBytes: number): number {
    if (this.#guests.size > 1 || this.#guestProcesses > 0) return 0;
    const growth = growthOf(this.#held);
    return growth >= excessBytes ? growth : 0;
  }
}

function unknownHeld(): Held {
  return { baseBytes: Number.POSITIVE_INFINITY, history: [] };
}

function note(held: Held, bytes: number, crowded: boolean, whole: boolean): void {
  if (whole && !crowded) held.baseBytes = bytes;
  held.history.push(bytes);
  if (!crowded) held.history.length = 0;
  else if (held.history.length > HISTORY) held.history.shift();
}

/** In bytes, while the cell is past half of its budget; since before, for one that was looked at only once since then. */
function growthOf({ history, baseBytes }: Held): number {
  const [first, ...others] = history;
  if (first === undefined) return 0;
  return others.length === 0 ? first - baseBytes : (history.at(-1) as number) - Math.min(...history);
}

/** The same again, or, for one that has moved on, from now. */
function stillOf(still: Still, cpuMs: number, bytes: number): Still {
  if (Math.abs(cpuMs - still.cpuMs) < STILL_CPU_MS && Math.abs(bytes - still.bytes) < STILL_BYTES) return still;
  return { sinceMs: performance.now(), cpuMs, bytes };
}

/** For long enough, when it was looked at last. */
function isStill({ sinceMs }: Still, lookedMs: number): boolean {
  return lookedMs - sinceMs > DOZE_AFTER_MS;
}

/** Whose turn it is, whatever the process holds. What is looked at also sees to its output. */
function isDue({ limits, doze }: Metered): boolean {
  if (doze !== undefined) return doze.dueMs <= performance.now();
  return isMetered(limits) || limits.outputBytes !== undefined;
}

function cpuMsOf({ userSeconds, systemSeconds }: GuestUsage): number {
  return (userSeconds + systemSeconds) * 1000;
}

function isMetered({ cpuTimeMs, memoryBytes, memorySoftBytes }: GuestLimits): boolean {
  return cpuTimeMs !== undefined || memoryBytes !== undefined || memorySoftBytes !== undefined;
}

/** What this process holds: proc_pid_statm(5), the second figure. undefined while that cannot be read. */
function residentBytes(): number | undefined {
  const figures = readKernelFile('/proc/self/statm');
  return figures === undefined ? undefined : Number(figures.split(' ')[1]) * PAGE_BYTES;
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / MIB)} MiB`;
}
