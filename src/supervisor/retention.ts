import { monotonicMs } from '../clock.ts';
import type { FinishedEntry } from '../journal/entries.ts';

/** How much is kept of executions that have finished. Absent: no bound. */
export interface RetentionLimits {
  /** How long after its end an execution is forgotten, in ms; no more than a timer can hold. */
  ageMs?: number | undefined;
  /** How many are kept; beyond, the one that ended first is forgotten. */
  executions?: number | undefined;
  /** Bytes of output; beyond, that of the one that ended first is removed, and its result stays. */
  outputBytes?: number | undefined;
}

/** What an execution that has not exited has written so far. */
export interface UnfinishedOutput {
  sessionKey: string;
  executionKey: string;
  bytes: number;
}

/** What {@link Retention} is made with. */
export interface RetentionOptions {
  /** Of all executions of the daemon; those of a session may have narrower ones. */
  limits: RetentionLimits;
  /** Nobody may ask for it any more. */
  onReleased(entry: FinishedEntry): void;
  /** Its output is to go; all else of it stays. */
  onOutputEvicted(entry: FinishedEntry): void;
}

/**
 * Decides what is kept of finished executions: by age, by number and by output, of the daemon and of each session, the
 * oldest going first. Of executions that have not exited, output counts and is never removed.
 */
export class Retention {
  readonly #options: RetentionOptions;
  readonly #daemon: Pool;
  /** Of sessions with limits of their own, by session key. */
  readonly #sessions = new Map<string, Pool>();
  /** By execution key. */
  #unfinished = new Map<string, UnfinishedOutput>();
  #timer: NodeJS.Timeout | undefined;
  /** When the timer is due, by `monotonicMs`. */
  #dueMs = Number.POSITIVE_INFINITY;

  constructor(options: RetentionOptions) {
    this.#options = options;
    this.#daemon = new Pool(options.limits);
  }

  /** An execution has exited. They come in the order in which they did. */
  add(entry: FinishedEntry): void {
    const pools = this.#poolsOf(entry);
    const { bytes = 0 } = this.#unfinished.get(entry.executionKey) ?? {};
    this.#unfinished.delete(entry.executionKey);
    for (const pool of pools) {
      pool.unfinishedBytes = Math.max(0, pool.unfinishedBytes - bytes);
      pool.add(entry);
    }
    for (const pool of pools) this.#keep(pool);
  }

  /** It turned out to have written another number of bytes. */
  resize(entry: FinishedEntry, bytes: number): void {
    entry.outputBytes = bytes;
    const pools = this.#poolsOf(entry);
    for (const pool of pools) {
      pool.removeOutput(entry);
      pool.addOutput(entry);
    }
    for (const pool of pools) this.#keep(pool);
  }

  /** Forgets one before its time. */
  release(entry: FinishedEntry): void {
    for (const pool of this.#poolsOf(entry)) pool.remove(entry);
    if (this.#sessions.get(entry.sessionKey)?.isEmpty) this.#sessions.delete(entry.sessionKey);
    this.#options.onReleased(entry);
  }

  /** What all executions have written that have not exited: it takes room from those that have. */
  noteUnfinished(outputs: UnfinishedOutput[]): void {
    this.#unfinished = new Map(outputs.map((output) => [output.executionKey, output]));
    const pools = [...this.#sessions.values(), this.#daemon];
    for (const pool of pools) pool.unfinishedBytes = 0;
    for (const { sessionKey, bytes } of outputs) {
      this.#daemon.unfinishedBytes += bytes;
      const pool = this.#sessions.get(sessionKey);
      if (pool !== undefined) pool.unfinishedBytes += bytes;
    }
    for (const pool of pools) this.#keep(pool);
  }

  /** Decides nothing any more. */
  close(): void {
    clearTimeout(this.#timer);
  }

  #poolsOf({ sessionKey, retention }: FinishedEntry): Pool[] {
    if (retention === undefined) return [this.#daemon];
    const pool = this.#sessions.get(sessionKey) ?? new Pool(retention);
    this.#sessions.set(sessionKey, pool);
    return [pool, this.#daemon];
  }

  /** Lets go what is beyond the limits of a pool. */
  #keep(pool: Pool): void {
    for (let entry = pool.surplus; entry !== undefined; entry = pool.surplus) this.release(entry);
    for (let entry = pool.overBudget; entry !== undefined; entry = pool.overBudget) {
      for (const each of this.#poolsOf(entry)) each.removeOutput(entry);
      this.#options.onOutputEvicted(entry);
    }
    this.#wakeAt(pool.nextDueMs);
  }

  #wakeAt(dueMs: number): void {
    if (dueMs >= this.#dueMs) return;
    clearTimeout(this.#timer);
    this.#dueMs = dueMs;
    const inMs = Math.max(1, Math.ceil(dueMs - monotonicMs()));
    this.#timer = setTimeout(() => {
      this.#dueMs = Number.POSITIVE_INFINITY;
      for (const pool of [...this.#sessions.values(), this.#daemon]) this.#keep(pool);
    }, inMs).unref();
  }
}

/** Finished executions under one set of limits. */
class Pool {
  readonly #limits: RetentionLimits;
  /** With when they exited by `monotonicMs`; in that order. */
  readonly #finished = new Line<FinishedEntry>();
  /** Those of them that have output, with its bytes. */
  readonly #withOutput = new Line<FinishedEntry>();
  #outputBytes = 0;
  /** Of executions that have not exited. */
  unfinishedBytes = 0;

  constructor(limits: RetentionLimits) {
    this.#limits = limits;
  }

  get isEmpty(): boolean {
    return this.#finished.size === 0;
  }

  add(entry: FinishedEntry): void {
    this.#finished.set(entry, entry.exited.monotonicMs);
    this.addOutput(entry);
  }

  addOutput(entry: FinishedEntry): void {
    if (entry.outputEvicted !== undefined || entry.outputBytes === 0) return;
    this.#withOutput.set(entry, entry.outputBytes);
    this.#outputBytes += entry.outputBytes;
  }

  remove(entry: FinishedEntry): void {
    this.#finished.delete(entry);
    this.removeOutput(entry);
  }

  removeOutput(entry: FinishedEntry): void {
    this.#outputBytes -= this.#withOutput.get(entry) ?? 0;
    this.#withOutput.delete(entry);
  }

  /** The oldest, if there are too many or it is too old. */
  get surplus(): FinishedEntry | undefined {
    const { executions = Number.POSITIVE_INFINITY } = this.#limits;
    if (this.#finished.size <= executions && this.nextDueMs > monotonicMs()) return undefined;
    return this.#finished.first;
  }

  /** The oldest that has output, if there is too much. */
  get overBudget(): FinishedEntry | undefined {
    const { outputBytes = Number.POSITIVE_INFINITY } = this.#limits;
    return this.#outputBytes + this.unfinishedBytes > outputBytes ? this.#withOutput.first : undefined;
  }

  /** When the oldest will be too old, by `monotonicMs`. */
  get nextDueMs(): number {
    const { first } = this.#finished;
    if (this.#limits.ageMs === undefined || first === undefined) return Number.POSITIVE_INFINITY;
    return (this.#finished.get(first) ?? 0) + this.#limits.ageMs;
  }
}

/** A map to numbers that knows its first key without a walk over all that were removed before it. */
class Line<T> extends Map<T, number> {
  /** It never comes to its end: that would be for good. */
  #rest: MapIterator<T> | undefined;
  #first: T | undefined;

  get first(): T | undefined {
    if (this.size === 0) {
      this.#rest = undefined;
      return undefined;
    }
    if (this.#rest === undefined || !this.has(this.#first as T)) {
      this.#rest ??= this.keys();
      this.#first = this.#rest.next().value;
    }
    return this.#first;
  }
}
