import { type Actor, type AnyStateMachine, createActor } from 'xstate';
import type { ExecutionResult, executionMachine, Rung, Usage } from '../../machines/execution.ts';
import { AlreadyExistsError } from '../errors.ts';
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

/**
 * One execution: its actor, and what has become of it as a list of events. The list is the one truth that status,
 * watch streams and waits are served from.
 */
export class ExecutionRecord {
  readonly sessionId: string;
  readonly executionId: string;
  /** Made by us, of fixed length: names the execution in paths and to its cell. */
  readonly executionKey: string;
  readonly language: string;
  /** The execution's own grace period, in ms. */
  readonly graceMs: number;
  readonly #fingerprint: string;
  readonly #warnings: string[];
  readonly events: StatusEvent[] = [];
  readonly actor: ExecutionActor;
  /** What to run; let go once the cell has it. */
  request: ExecutionRequest | undefined;
  /** Set while a cell holds the guest: what it uses now. */
  measure: (() => Promise<Usage | undefined>) | undefined;
  /** Set while a cell holds the guest: appends to its standard input. */
  write: ((data: Buffer, end: boolean) => Promise<void>) | undefined;
  readonly stdin: boolean;
  pid = 0;
  dispatched = false;
  #startedAtMs: number | undefined;
  #exitedAtMs: number | undefined;
  #listeners: ((event: StatusEvent) => void)[] = [];
  #rung: Rung | undefined;

  constructor(options: {
    sessionKey: string;
    executionKey: string;
    request: ExecutionRequest;
    machine: typeof executionMachine;
    limits: { startLimitMs: number; forcedLimitMs: number };
  }) {
    const { sessionKey, executionKey, request, machine, limits } = options;
    this.sessionId = request.sessionId;
    this.executionId = request.executionId;
    this.executionKey = executionKey;
    this.language = request.language;
    this.#fingerprint = request.fingerprint;
    this.graceMs = request.options.graceMs;
    this.#warnings = [...request.warnings];
    this.stdin = request.stdin;
    this.request = request;
    const { queueTimeoutMs, timeoutMs, timeoutSignal, graceMs } = request.options;
    this.actor = createActor(machine as AnyStateMachine as typeof executionMachine, {
      input: { sessionKey, executionKey, queueTimeoutMs, timeoutMs, timeoutSignal, graceMs, ...limits },
    });
    this.actor.subscribe({ next: (snapshot) => this.#observe(snapshot), error: () => {} });
    this.actor.start();
    this.#append('pending', Date.now(), undefined);
  }

  get state(): LifecycleState {
    return (this.events.at(-1) as StatusEvent).state;
  }

  get result(): ExecutionResult | undefined {
    return this.events.at(-1)?.result;
  }

  get snapshot(): ExecutionSnapshot {
    const last = this.events.at(-1) as StatusEvent;
    return {
      sessionId: this.sessionId,
      executionId: this.executionId,
      language: this.language,
      state: last.state,
      rung: last.rung,
      result: last.result,
      times: {
        acceptedAtMs: (this.events[0] as StatusEvent).atMs,
        startedAtMs: this.#startedAtMs,
        signaledAtMs: this.events.find(({ state }) => state === 'signaled')?.atMs,
        exitedAtMs: last.state === 'exited' ? last.atMs : undefined,
      },
      warnings: [...this.#warnings],
      sequence: last.sequence,
      pid: last.state === 'exited' ? 0 : this.pid,
    };
  }

  /** Throws when the execution was accepted for another request. */
  requireSame(fingerprint: string): void {
    if (fingerprint === this.#fingerprint) return;
    throw new AlreadyExistsError(
      `execution "${this.executionId}" exists in session "${this.sessionId}" with another request`,
    );
  }

  /** The guest's own word on when its code began, told before the machine is. */
  noteStarted(atMs: number, pid: number): void {
    this.#startedAtMs = atMs;
    this.pid = pid;
  }

  /** The guest's own word on when it was gone, told before the machine is. */
  noteExited(atMs: number): void {
    this.#exitedAtMs = atMs;
  }

  /** Tells everyone who watches, and keeps it for the result. */
  warn(message: string): void {
    if (this.state === 'exited') return;
    this.#warnings.push(message);
    const { state, rung } = this.events.at(-1) as StatusEvent;
    this.#append(state, Date.now(), rung, undefined, message);
  }

  /** Calls `listener` with every later event. Returns what stops that. */
  onEvent(listener: (event: StatusEvent) => void): () => void {
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
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const stop = this.onEvent(({ state }) => state === 'exited' && resolve(true));
    const abort = () => resolve(false);
    signal.addEventListener('abort', abort);
    try {
      return await promise;
    } finally {
      stop();
      signal.removeEventListener('abort', abort);
    }
  }

  #observe(snapshot: ReturnType<ExecutionActor['getSnapshot']>): void {
    const value = snapshot.value as string | Record<string, string>;
    const state = (typeof value === 'string' ? value : Object.keys(value)[0]) as LifecycleState;
    const { rung, result } = snapshot.context;
    const last = this.events.at(-1);
    if (last !== undefined && last.state === state && this.#rung === rung) return;
    this.#rung = rung;
    if (state === 'exited') {
      this.#append(state, this.#exitedAtMs ?? Date.now(), result?.rung, result);
      this.request = undefined;
      this.write = undefined;
      this.measure = undefined;
    } else if (last !== undefined) {
      this.#append(state, state === 'running' ? (this.#startedAtMs ?? Date.now()) : Date.now(), rung);
    }
  }

  #append(
    state: LifecycleState,
    toldMs: number,
    rung: Rung | undefined,
    result?: ExecutionResult,
    warning?: string,
  ): void {
    // The cell's word on an end may be older than the daemon's newest step; a later event is never the earlier one.
    const atMs = Math.max(toldMs, this.events.at(-1)?.atMs ?? 0);
    const event = { sequence: this.events.length + 1, atMs, state, rung, result, warning };
    this.events.push(event);
    for (const listener of this.#listeners) listener(event);
  }
}
