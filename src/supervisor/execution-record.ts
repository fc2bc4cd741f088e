import { type Actor, type AnyStateMachine, createActor } from 'xstate';
import type { ExecutionResult, executionMachine, Rung, Stop, Usage } from '../../machines/execution.ts';
import { agoMs, type Moment, monotonicMs, now } from '../clock.ts';
import { AlreadyExistsError, UnavailableError } from '../errors.ts';
import type { AcceptedExecution, JournaledEvent } from '../journal/entries.ts';
import type { Journal } from '../journal/journal.ts';
import type { CheckedOptions } from './limits.ts';
import type { ExecutionRequest } from './requests.ts';

/** The four states of a session and of an execution. */
export type LifecycleState = 'pending' | 'running' | 'signaled' | 'exited';

/** One fact about an execution, in the order it became true. */
export interface StatusEvent {
  /** 1 for the first of an execution, without gaps. */
  sequence: number;
  /** Unix ms. */
  atMs: number;
  state: LifecycleState;
  /** The rung reached, while `signaled`; the rung that ended it, when `exited`. */
  rung: Rung | undefined;
  /** On the last event only. */
  result: ExecutionResult | undefined;
  /** Something to know that changes no state, for people. */
  warning: string | undefined;
}

/** When an execution passed its states, in Unix ms; undefined where it has not. */
export interface ExecutionTimes {
  acceptedAtMs: number;
  startedAtMs: number | undefined;
  signaledAtMs: number | undefined;
  exitedAtMs: number | undefined;
}

/** An execution as it stands. */
export interface ExecutionSnapshot {
  sessionId: string;
  executionId: string;
  language: string;
  state: LifecycleState;
  rung: Rung | undefined;
  result: ExecutionResult | undefined;
  times: ExecutionTimes;
  /** What was to be said about it, one line each: a soft limit passed, a limit that this node cannot hold. */
  warnings: string[];
  /** Of the newest status event. */
  sequence: number;
  /** Process id of a guest that is a process and runs; 0 otherwise. */
  pid: number;
}

type ExecutionActor = Actor<typeof executionMachine>;

/** What {@link ExecutionRecord} is made with. */
export interface RecordOptions {
  accepted: AcceptedExecution;
  /** What to run; undefined for one that runs already. */
  request: ExecutionRequest | undefined;
  machine: typeof executionMachine;
  limits: { startLimitMs: number; forcedLimitMs: number };
  journal: Pick<Journal, 'append'>;
  /**
   * Hears of each step when the machine takes it: before it is journaled, and so before anyone else may know. `started`:
   * guest code has begun.
   */
  onReached(record: ExecutionRecord, state: LifecycleState, started: boolean): void;
  /** Where an earlier daemon's journal ends, for one that goes on from there. */
  resumed?: JournaledEvent[] | undefined;
}

/**
 * One execution: its actor, and what has become of it as a list of events. An event counts once it is journaled: the list
 * holds no other, and status, watch streams and waits are served from it.
 */
export class ExecutionRecord {
  readonly accepted: AcceptedExecution;
  readonly events: StatusEvent[] = [];
  readonly actor: ExecutionActor;
  /** What to run; let go once the cell has it. */
  request: ExecutionRequest | undefined;
  /** Set while a cell holds the guest: what it uses now. */
  measure: (() => Promise<Usage | undefined>) | undefined;
  /** Set as `measure`: see `CellPlace`. */
  sleep: (() => object | undefined) | undefined;
  /** Set while a cell holds the guest: appends to its standard input. */
  write: ((data: Buffer, end: boolean, position?: number) => Promise<void>) | undefined;
  pid = 0;
  /** Names a guest that is a process for good: see `processName`. */
  process: string | undefined;
  dispatched = false;
  /** Its output goes to the caller's files, or pipes; false where that is not known any more. */
  readonly writesElsewhere: boolean;
  readonly #journal: RecordOptions['journal'];
  readonly #onReached: RecordOptions['onReached'];
  /** The newest event, which may not be journaled yet. */
  #newest: (StatusEvent & Moment) | undefined;
  /** The one with which the stop under way reached its rung. */
  #stopped: JournaledEvent | undefined;
  #startedAtMs: number | undefined;
  /** As the guest's cell tells it: it may be long before this daemon has heard. */
  #started: Moment | undefined;
  #exited: Moment | undefined;
  #listeners: ((event: StatusEvent | undefined) => void)[] = [];
  /** No later event is told here. */
  #isLeft = false;
  #rung: Rung | undefined;
  /** There was a warning, whose event may not be journaled yet. */
  #warned = false;
  /** The machine is being brought to where the journal ends: its steps are no news. */
  #resuming: boolean;

  constructor(options: RecordOptions) {
    const { accepted, request, machine, limits, journal, onReached, resumed } = options;
    this.#journal = journal;
    this.#onReached = onReached;
    this.accepted = accepted;
    this.request = request;
    this.writesElsewhere = request?.outputFiles !== undefined;
    this.#resuming = resumed !== undefined;
    const { sessionKey, executionKey } = accepted;
    const { queueTimeoutMs, timeoutMs, timeoutSignal, graceMs } = accepted.options;
    const [first] = resumed ?? [];
    const waitedMs = first === undefined ? 0 : agoMs(first);
    this.actor = createActor(machine as AnyStateMachine as typeof executionMachine, {
      input: {
        sessionKey,
        executionKey,
        queueTimeoutMs: queueTimeoutMs === undefined ? undefined : Math.max(0, queueTimeoutMs - waitedMs),
        timeoutMs,
        timeoutSignal,
        graceMs,
        ...limits,
      },
    });
    this.actor.subscribe({ next: (snapshot) => this.#observe(snapshot), error: () => {} });
    if (resumed === undefined) {
      this.actor.start();
      const event = this.#eventOf('pending', now(), undefined, undefined, undefined);
      if (request === undefined) throw new TypeError('a new execution without a request');
      journal.append({ type: 'execution.accepted', execution: accepted, request, event }, () => this.#publish(event));
    } else {
      for (const { sequence, atMs, state, rung, result, warning, startedAtMs, pid, process } of resumed) {
        this.events.push({ sequence, atMs, state, rung, result, warning });
        this.#warned ||= warning !== undefined;
        this.#startedAtMs = startedAtMs ?? this.#startedAtMs;
        this.pid = pid ?? this.pid;
        this.process = process ?? this.process;
      }
      this.#newest = resumed.at(-1);
      this.#stopped = stopEvent(resumed);
      this.#rung = this.#newest?.rung;
      this.actor.start();
    }
  }

  get number(): number {
    return this.accepted.number;
  }

  get sessionId(): string {
    return this.accepted.sessionId;
  }

  get executionId(): string {
    return this.accepted.executionId;
  }

  get executionKey(): string {
    return this.accepted.executionKey;
  }

  get language(): string {
    return this.accepted.language;
  }

  get options(): CheckedOptions {
    return this.accepted.options;
  }

  get stdin(): boolean {
    return this.accepted.stdin;
  }

  /** Its newest state that is journaled; one that is not even accepted yet is `pending`. */
  get state(): LifecycleState {
    return this.events.at(-1)?.state ?? 'pending';
  }

  /** The machine has come to its end, which may not be journaled yet. */
  get isOver(): boolean {
    return this.#newest?.state === 'exited';
  }

  /** When its newest event was, which may not be journaled yet. */
  get newestAt(): Moment {
    return this.#newest ?? now();
  }

  get snapshot(): ExecutionSnapshot {
    return snapshotOf(this.accepted, this.events, this.#startedAtMs, this.pid);
  }

  /** Throws when the execution was accepted for another request. */
  requireSame(fingerprint: string): void {
    requireSameRequest(this.accepted, fingerprint);
  }

  /** From here on the machine's steps are news: it has been brought to where the journal ends. */
  resumed(): void {
    this.#resuming = false;
  }

  /** The guest's own word on when its code began, told before the machine is. */
  noteStarted(started: Moment, pid: number, process: string | undefined): void {
    this.#started = started;
    this.#startedAtMs = started.atMs;
    this.pid = pid;
    this.process = process;
  }

  /** The guest's own word on when it was gone, told before the machine is. */
  noteExited(exited: Moment): void {
    this.#exited = exited;
  }

  /**
   * Its cell's one word of warning, and when there was reason for it: told to everyone who watches, and kept for the
   * result. The cell says it again to later daemons, and with the end.
   */
  warn(message: string, at: Moment): void {
    const newest = this.#newest;
    if (newest === undefined || newest.state === 'exited' || this.#warned) return;
    this.#warned = true;
    this.#append(newest.state, at, newest.rung, { warning: message });
  }

  /** What becomes of it is told by the next daemon: who watches it or waits for it here has an `UnavailableError`. */
  leave(): void {
    this.#isLeft = true;
    for (const listener of this.#listeners) listener(undefined);
  }

  /** Calls `listener` with every later event, and with undefined when it is left. Returns what stops that. */
  onEvent(listener: (event: StatusEvent | undefined) => void): () => void {
    this.#listeners.push(listener);
    return () => {
      this.#listeners = this.#listeners.filter((other) => other !== listener);
    };
  }

  /** Every event from `fromSequence` on, those to come included; ends after the last one, or when `signal` aborts. */
  async *watch(fromSequence: number, signal: AbortSignal): AsyncGenerator<StatusEvent> {
    let wake = () => {};
    const stop = this.onEvent(() => wake());
    const abort = () => wake();
    signal.addEventListener('abort', abort);
    try {
      for (let index = Math.max(0, fromSequence - 1); !signal.aborted; ) {
        const event = this.events[index];
        if (event !== undefined) {
          index += 1;
          yield event;
          if (event.state === 'exited') return;
        } else if (this.state === 'exited') {
          return;
        } else {
          this.#requireThere();
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      stop();
      signal.removeEventListener('abort', abort);
    }
  }

  /** Resolves when the execution has exited (true), or when `signal` aborts first (false). */
  async exited(signal: AbortSignal): Promise<boolean> {
    if (this.state === 'exited') return true;
    if (signal.aborted) return false;
    this.#requireThere();
    const { promise, resolve, reject } = Promise.withResolvers<boolean>();
    const stop = this.onEvent((event) => {
      if (event === undefined) reject(stoppedError());
      else if (event.state === 'exited') resolve(true);
    });
    const abort = () => resolve(false);
    signal.addEventListener('abort', abort);
    try {
      return await promise;
    } finally {
      stop();
      signal.removeEventListener('abort', abort);
    }
  }

  #requireThere(): void {
    if (this.#isLeft) throw stoppedError();
  }

  #observe(snapshot: ReturnType<ExecutionActor['getSnapshot']>): void {
    const value = snapshot.value as string | Record<string, string>;
    const state = (typeof value === 'string' ? value : Object.keys(value)[0]) as LifecycleState;
    if (!this.#resuming) this.#tell(state, snapshot.context);
    this.#onReached(this, state, snapshot.context.started);
  }

  #tell(state: LifecycleState, { rung, result, stop }: ReturnType<ExecutionActor['getSnapshot']>['context']): void {
    const newest = this.#newest;
    if (newest !== undefined && newest.state === state && this.#rung === rung) {
      this.#shorten(stop);
      return;
    }
    this.#rung = rung;
    if (state === 'exited') {
      this.#append(state, this.#exited ?? now(), result?.rung, { result });
      this.request = undefined;
      this.write = undefined;
      this.measure = undefined;
      this.sleep = undefined;
    } else if (newest !== undefined) {
      this.#append(state, (state === 'running' ? this.#started : undefined) ?? now(), rung, { stop });
    }
  }

  /** Journals that a stop under way has less time than it had, in place of how it began: to who watches that is no news. */
  #shorten(stop: Stop | undefined): void {
    const stopped = this.#stopped;
    if (stop === undefined || stopped?.stop === undefined || stopped.rung !== 'graceful') return;
    const graceMs = agoMs(stopped) + stop.graceMs;
    if (graceMs >= stopped.stop.graceMs) return;
    const event = { ...stopped, stop: { ...stop, graceMs } };
    this.#stopped = event;
    this.#journal.append({ type: 'execution.event', number: this.number, event });
  }

  #append(
    state: LifecycleState,
    told: Moment,
    rung: Rung | undefined,
    { result, warning, stop }: { result?: ExecutionResult | undefined; warning?: string; stop?: Stop | undefined },
  ): void {
    const event = this.#eventOf(state, told, rung, result, warning);
    const guest = { startedAtMs: this.#startedAtMs, pid: this.pid, process: this.process };
    const journaled = { ...event, stop, ...guest };
    if (stop !== undefined) this.#stopped = journaled;
    this.#journal.append({ type: 'execution.event', number: this.number, event: journaled }, () =>
      this.#publish(event),
    );
  }

  #eventOf(
    state: LifecycleState,
    told: Moment,
    rung: Rung | undefined,
    result: ExecutionResult | undefined,
    warning: string | undefined,
  ): StatusEvent & Moment {
    const before = this.#newest ?? { sequence: 0, ...told };
    // The cell's word on an end may be older than the daemon's newest step; a later event is never the earlier one, by
    // neither clock, and none is ahead of now by the one that nobody sets.
    const atMs = Math.max(told.atMs, before.atMs);
    const toldMs = Math.min(Math.max(told.monotonicMs, before.monotonicMs), monotonicMs());
    const event = { sequence: before.sequence + 1, atMs, monotonicMs: toldMs, state, rung, result, warning };
    this.#newest = event;
    return event;
  }

  #publish({ monotonicMs: _, ...event }: StatusEvent & Moment): void {
    this.events.push(event);
    for (const listener of this.#listeners) listener(event);
  }
}

/** For what is asked of a daemon that has stopped. */
export function stoppedError(): UnavailableError {
  return new UnavailableError('the daemon has stopped');
}

/** The stop that was under way, with what is left of its grace period, if it is in that: `leastMs` at least. */
export function stopUnderWay(events: readonly JournaledEvent[], leastMs = 0): Stop | undefined {
  const reached = stopEvent(events);
  if (reached?.stop === undefined) return undefined;
  if (reached.rung !== 'graceful') return { ...reached.stop, graceMs: 0 };
  return { ...reached.stop, graceMs: Math.max(leastMs, reached.stop.graceMs - agoMs(reached)) };
}

/** The event with which a stop reached its rung: a warning may have come since. */
function stopEvent(events: readonly JournaledEvent[]): JournaledEvent | undefined {
  return events.findLast(({ stop }) => stop !== undefined);
}

/** Throws when the execution was accepted for another request. */
export function requireSameRequest(
  { executionId, sessionId, ...accepted }: AcceptedExecution,
  fingerprint: string,
): void {
  if (fingerprint === accepted.fingerprint) return;
  throw new AlreadyExistsError(`execution "${executionId}" exists in session "${sessionId}" with another request`);
}

/** An execution as its events say. */
export function snapshotOf(
  { sessionId, executionId, language, warnings }: AcceptedExecution,
  events: readonly StatusEvent[],
  startedAtMs: number | undefined,
  pid: number,
): ExecutionSnapshot {
  const last = events.at(-1);
  const state = last?.state ?? 'pending';
  return {
    sessionId,
    executionId,
    language,
    state,
    rung: last?.rung,
    result: last?.result,
    times: {
      acceptedAtMs: events[0]?.atMs ?? Date.now(),
      startedAtMs: state === 'pending' ? undefined : startedAtMs,
      signaledAtMs: events.find((event) => event.state === 'signaled')?.atMs,
      exitedAtMs: state === 'exited' ? last?.atMs : undefined,
    },
    warnings: [...warnings, ...events.flatMap(({ warning }) => (warning === undefined ? [] : [warning]))],
    sequence: last?.sequence ?? 0,
    pid: state === 'exited' ? 0 : pid,
  };
}
