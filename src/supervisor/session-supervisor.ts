import { lstatSync } from 'node:fs';
import { join } from 'node:path';
import { nanoid } from 'nanoid';
import { type Actor, createActor, fromCallback } from 'xstate';
import {
  type ExecutionEvent,
  executionMachine,
  type GuestCommand,
  type GuestInput,
  type StopReason,
} from '../../machines/execution.ts';
import { type ExecutionsCommand, type Expiry, sessionMachine } from '../../machines/session.ts';
import { agoMs, type Moment, now } from '../clock.ts';
import { AlreadyExistsError, FailedPreconditionError, UnavailableError } from '../errors.ts';
import type { Start } from '../gen/elide/cell/v1/cell.ts';
import {
  CELL_OF_OTHER_BOOT,
  type JournaledEvent,
  type UnclosedSession,
  type UnfinishedExecution,
} from '../journal/entries.ts';
import type { Journal } from '../journal/journal.ts';
import { cutOutput } from '../output/output-files.ts';
import { removeSpool } from '../output/spool.ts';
import { endSessionOf } from '../processes.ts';
import { removeTree } from '../remove-tree.ts';
import type { GuestObserver } from './cell-process.ts';
import {
  type AdoptableCell,
  type CellOptions,
  type CellPlace,
  type CellSummary,
  CellSupervisor,
  type EngineKind,
} from './cell-supervisor.ts';
import type { GuestEnd } from './cell-words.ts';
import type { Dispatcher, Waiting } from './dispatcher.ts';
import { ExecutionRecord, type LifecycleState, stopUnderWay } from './execution-record.ts';
import type { ForceQueue } from './force-queue.ts';
import { engineOf } from './languages.ts';
import { LONGEST_MS } from './limits.ts';
import { type CheckedSessionConfiguration, type ExecutionRequest, retentionOf } from './requests.ts';
import { startMessage } from './start-message.ts';
import { crowdingOf, watchForStuck } from './stuck-watch.ts';
import { WaitingExecutions } from './waiting-executions.ts';
import { Workspace } from './workspace.ts';

/** What a session needs of its daemon. */
export interface SessionOptions {
  sessionId: string;
  machines: SessionMachines;
  config: CheckedSessionConfiguration;
  /** Of what was asked for: see `fingerprintOf`. */
  fingerprint: string;
  cells: Omit<CellOptions, 'sessionKey'>;
  dispatcher: Dispatcher;
  forceQueues: Record<'thread' | 'process', ForceQueue>;
  journal: Journal;
  /** Numbers for new executions. */
  nextNumber(): number;
  /** Set for a session that an older daemon has left. */
  unclosed?: UnclosedSession | undefined;
  /** `work/` of the state directory: what guests may touch. */
  workDirectory: string;
  /** `daemon/output/` of the state directory. */
  outputDirectory: string;
  /** Grace period of executions that are stopped with the session, in ms. */
  graceMs: number;
  /** How long a stop of the whole session waits beyond the executions' own ladders, in ms. */
  slackMs: number;
  limits: { startLimitMs: number; forcedLimitMs: number };
  /** The session's time is up: it has begun to close. */
  onExpired(session: SessionSupervisor, expired: Expiry): void;
  /** An execution has exited; its output is complete. */
  onExited(record: ExecutionRecord): void;
}

/** Tells a session's machine, or an execution's, what has happened. */
type Guest = {
  sendBack(event: ExecutionEvent): void;
  receive(listener: (command: GuestCommand) => void): void;
};

/**
 * The machines with their ports, one of each for all sessions of a daemon: copies of its own would be most of what an idle session holds.
 * The ports find their session by its key.
 */
export class SessionMachines {
  readonly #sessions = new Map<string, SessionSupervisor>();
  readonly session = sessionMachine.provide({
    actors: {
      executions: fromCallback<ExecutionsCommand, { sessionKey: string }>(({ input, receive }) => {
        receive((command) => this.#sessions.get(input.sessionKey)?.command(command));
      }),
    },
  });
  readonly execution = executionMachine.provide({
    actors: {
      guest: fromCallback<GuestCommand, GuestInput>(({ input, ...guest }) =>
        this.#sessions.get(input.sessionKey)?.runGuest(input.executionKey, guest as Guest),
      ),
    },
  }) as typeof executionMachine;

  add(sessionKey: string, session: SessionSupervisor): void {
    this.#sessions.set(sessionKey, session);
  }

  remove(sessionKey: string): void {
    this.#sessions.delete(sessionKey);
  }
}

/** The place of a guest whose cell is gone. */
const GONE: CellPlace = {
  cellKey: '',
  pid: 0,
  start: () => {},
  resume: () => {},
  signal: () => {},
  acknowledge: () => {},
  measure: async () => new Map(),
  sleepOf: () => undefined,
  killGuest: () => {},
  isHeldUp: () => false,
  write: async () => {},
  killCell: () => {},
  release: () => {},
};

/**
 * The limit of a guest that is a process is so many times that of a thread: the kernel kills it, and a cell that is busy,
 * whose other guests would go with it, is late only with its word. As many times that again any guest that was killed has
 * to be gone before its cell is killed, unless it is known to be stuck.
 */
const PATIENCE = 10;

/** How often those that wait while nothing new can be kept look whether it can be, in ms. */
const HINDERED_LOOK_MS = 250;
/** So many executions are told in one turn that their session closes, 0.3 ms each: thousands may wait in it. */
const TOLD_AT_ONCE = 100;

/** Execution keys, session keys: names of fixed length that never come from a client. */
const KEY_CHARS = 12;

/**
 * Supervises the executions of one session: admits, queues, dispatches into cells, hears of each end, and drives all to
 * their end when it is closed (OTP's DynamicSupervisor: root actors in a map).
 */
export class SessionSupervisor implements Waiting {
  readonly sessionId: string;
  readonly config: CheckedSessionConfiguration;
  readonly #created: Moment;
  readonly weight: number;
  readonly #options: SessionOptions;
  readonly #sessionKey: string;
  readonly #cells: CellSupervisor;
  readonly #actor: Actor<typeof sessionMachine>;
  /** Executions that have not exited, by key. */
  readonly #live = new Map<string, ExecutionRecord>();
  readonly #queue = new WaitingExecutions();
  readonly #closed = Promise.withResolvers<void>();
  /** How executions come to the cells that hold them since an older daemon's time, by execution. */
  readonly #resuming = new Map<string, (observer: GuestObserver) => CellPlace>();
  /** Until the next of its executions are told of the newest command to all. */
  #telling: NodeJS.Immediate | undefined;
  /** Until another cell may be started, when too many have crashed; or until it is looked again whether the journal can be written. */
  #retry: NodeJS.Timeout | undefined;
  /** It goes for good, not only with its daemon; and the shortest time that was given for that. */
  #closing: ({ graceMs: number } & Moment) | undefined;
  /** Left to the next daemon: nothing begins here any more. */
  #detached = false;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.sessionId = options.sessionId;
    this.config = options.config;
    this.weight = options.config.weight;
    const { unclosed } = options;
    this.#sessionKey = unclosed?.sessionKey ?? nanoid(KEY_CHARS);
    this.#created = unclosed?.created ?? now();
    const { idleTtlMs, totalTtlMs } = options.config;
    const leftMs = (ttlMs: number | undefined, since: Moment) => ttlMs && Math.max(0, ttlMs - agoMs(since));
    this.#cells = new CellSupervisor({ ...options.cells, sessionKey: this.#sessionKey });
    options.machines.add(this.#sessionKey, this);
    this.#actor = createActor(options.machines.session, {
      input: {
        sessionKey: this.#sessionKey,
        graceMs: options.graceMs,
        slackMs: options.slackMs,
        exited: unclosed?.exited ?? 0,
        idleTtlMs,
        idleLeftMs: leftMs(idleTtlMs, unclosed?.lastExit ?? this.#created),
        totalLeftMs: leftMs(totalTtlMs, this.#created),
      },
    });
    this.#actor.subscribe({
      next: ({ context: { expired } }) => {
        if (expired !== undefined && this.#closing === undefined) options.onExpired(this, expired);
      },
      // Also told of an actor that is stopped, with its session left to the next daemon.
      complete: () => this.#actor.getSnapshot().status === 'done' && void this.#free(),
      error: (error) => this.#closed.reject(error),
    });
    this.#actor.start();
    this.#actor.send({ type: 'session.open' });
    if (unclosed !== undefined) return;
    const { sessionId, config, fingerprint } = options;
    const session = { sessionKey: this.#sessionKey, sessionId, config, fingerprint, created: this.#created };
    options.journal.append({ type: 'session.created', session });
  }

  get sessionKey(): string {
    return this.#sessionKey;
  }

  /** Unix ms. */
  get createdAtMs(): number {
    return this.#created.atMs;
  }

  get state(): LifecycleState {
    const { value } = this.#actor.getSnapshot();
    return (typeof value === 'string' ? value : Object.keys(value)[0]) as LifecycleState;
  }

  get counts(): { pending: number; running: number; exited: number } {
    const { queued, active, exited } = this.#actor.getSnapshot().context;
    return { pending: queued, running: active, exited };
  }

  /** The cells that serve the session now. */
  get cells(): CellSummary[] {
    return this.#cells.summaries();
  }

  /** Accepts an execution; it is dispatched when there is a place. Nobody may be told before it is journaled. */
  admit(request: ExecutionRequest): ExecutionRecord {
    this.requireOpen();
    const { sessionId, executionId, language, fingerprint, options, warnings, stdin } = request;
    const keys = { sessionKey: this.#sessionKey, executionKey: nanoid(KEY_CHARS) };
    const ids = { number: this.#options.nextNumber(), ...keys, sessionId, executionId };
    const retention = retentionOf(this.config);
    const accepted = { ...ids, language, fingerprint, options, warnings, stdin, retention };
    const record = this.#record(accepted, request, undefined);
    this.#queue.add(record);
    this.#options.dispatcher.offer(this);
    return record;
  }

  /** How long a guest that was killed may take to be gone, of time in which it and its cell had a processor, in ms. */
  #forcedLimitMs(kind: 'thread' | 'process'): number {
    const { forcedLimitMs } = this.#options.limits;
    return kind === 'thread' ? forcedLimitMs : withPatience(forcedLimitMs);
  }

  #record(
    accepted: ExecutionRecord['accepted'],
    request: ExecutionRequest | undefined,
    resumed: JournaledEvent[] | undefined,
  ): ExecutionRecord {
    const { machines, limits, journal, dispatcher } = this.#options;
    const { startLimitMs } = limits;
    let [starting, active] = [true, true];
    const record = new ExecutionRecord({
      accepted,
      request,
      machine: machines.execution,
      limits: {
        startLimitMs,
        forcedLimitMs: withPatience(this.#forcedLimitMs('process')),
      },
      journal,
      resumed,
      onReached: (reached, state, started) => {
        // At once, not when it is journaled: a place that comes free meanwhile is for one that still waits.
        if (state === 'exited') this.#queue.delete(reached);
        if (!reached.dispatched) return;
        // A stop before that leaves its cell as busy as before: those that wait would only be in its way.
        if (starting && (started || state === 'exited')) {
          starting = false;
          dispatcher.started(this, started);
        }
        if (active && state === 'exited') {
          active = false;
          dispatcher.exited();
        }
      },
    });
    this.#live.set(record.executionKey, record);
    this.#actor.send({ type: 'execution.admitted' });
    record.onEvent((event) => {
      if (event?.state === 'exited') this.#exited(record);
    });
    return record;
  }

  /** Takes over a cell of an older daemon that was this session's. */
  adopt(cell: AdoptableCell): void {
    this.#cells.adopt(cell);
  }

  /**
   * Goes on with an execution from where an older daemon's journal ends: with its guest where a cell holds it, from the
   * start where it never began, else to its end. `written` is that end as its cell, now gone, wrote it down.
   */
  resume(unfinished: UnfinishedExecution, written: GuestEnd | undefined): ExecutionRecord {
    const { events, request, cellKey, ...accepted } = unfinished;
    const record = this.#record(accepted, request, events);
    const { executionKey } = record;
    const place = this.#cells.held(executionKey);
    const isHeld = place !== undefined || written !== undefined;
    const hasBegun = events.some(({ state }) => state === 'running') || isHeld || this.#hasDirectories(record);
    if (!hasBegun && request !== undefined && cellKey !== CELL_OF_OTHER_BOOT) {
      if (cellKey !== undefined) this.#options.journal.append({ type: 'execution.requeued', number: accepted.number });
      // Where its queue limit has passed meanwhile, the machine ends it, in a later turn: until then it must get no place.
      if (record.actor.getSnapshot().context.queueTimeoutMs !== 0) this.#queue.add(record);
      record.resumed();
      // It was stopped before it came to a cell: that is its end.
      const stop = stopUnderWay(events);
      if (stop !== undefined) record.actor.send({ type: 'execution.stop', ...stop });
      return record;
    }
    let observer: GuestObserver | undefined;
    this.#resuming.set(executionKey, (guest) => {
      observer = guest;
      return place ?? GONE;
    });
    this.#options.dispatcher.resumed(this);
    this.#dispatch(record);
    const started = events.find(({ state }) => state === 'running');
    if (started !== undefined) record.actor.send({ type: 'guest.started', agoMs: agoMs(started) });
    // What has ended it while there was no daemon is told in this turn: force, if nothing has, is used in a later one.
    const stop = stopUnderWay(events, place === undefined && written === undefined ? 0 : 1);
    if (stop !== undefined) record.actor.send({ type: 'execution.stop', ...stop });
    record.resumed();
    this.#resuming.delete(executionKey);
    if (observer === undefined) throw new Error(`an execution that was not resumed: ${executionKey}`);
    if (place !== undefined) place.resume(executionKey, this.#outputDirectory(record), observer);
    else if (written !== undefined) {
      removeSpool(this.#outputDirectory(record));
      observer.exited(written);
    } else void this.#lose(record, observer);
    return record;
  }

  /**
   * Its cell makes these before anything else of it, and the one for output stays until its end is journaled: where there is
   * none it has not begun. A start of the machine may lose them.
   */
  #hasDirectories({ executionKey }: ExecutionRecord): boolean {
    const { workDirectory, outputDirectory } = this.#options;
    return [workDirectory, outputDirectory].some((path) => mayExist(join(path, this.#sessionKey, executionKey)));
  }

  /** Its cell is gone; a guest that is a process, and what it has started, may not be yet. */
  async #lose(record: ExecutionRecord, observer: GuestObserver): Promise<void> {
    if (record.process !== undefined) await endSessionOf(record.process);
    removeSpool(this.#outputDirectory(record));
    observer.lost('daemon_lost', 'it ended while no daemon was there to see', undefined);
  }

  /** All that an older daemon left was resumed: what adopted cells hold beyond it is ended, and the queue is served. */
  resumed(): void {
    this.#cells.dropUnknown(join(this.#options.outputDirectory, this.#sessionKey));
    if (this.#queue.size > 0) this.#options.dispatcher.offer(this);
  }

  /** As many run as the session may have. */
  #isFull(): boolean {
    const { maxRunning } = this.config;
    return maxRunning > 0 && this.#actor.getSnapshot().context.active >= maxRunning;
  }

  /** Throws unless the session takes executions. */
  requireOpen(): void {
    if (this.state !== 'running') throw new UnavailableError(`session "${this.sessionId}" is closing; try again`);
  }

  /** Throws when executions run or wait in the session. */
  requireIdle(): void {
    const { pending, running } = this.counts;
    if (pending + running === 0) return;
    throw new FailedPreconditionError(
      `session "${this.sessionId}" is busy: ${running} executions run, and ${pending} wait`,
    );
  }

  /** Throws when the session was created with another configuration: neither what was asked for is the same, nor what it has. */
  requireSame(config: CheckedSessionConfiguration, fingerprint: string): void {
    if (fingerprint === this.#options.fingerprint) return;
    if (JSON.stringify(config) === JSON.stringify(this.config)) return;
    throw new AlreadyExistsError(`session "${this.sessionId}" exists with another configuration`);
  }

  /** Executions that wait for a place. */
  get queued(): number {
    return this.#queue.size;
  }

  /** How much of memory their requests take, in bytes. */
  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  /** Executions that have a guest now. */
  running(): ExecutionRecord[] {
    return [...this.#live.values()].filter(({ measure }) => measure !== undefined);
  }

  /** The next that there is a place for: those that another cell would have to be started for may have to wait. */
  dispatchNext(): boolean {
    // Of one that closes nothing begins any more, whoever was told by now.
    if (this.state !== 'running' || this.#isFull()) return false;
    const waits = new Map<EngineKind, number>();
    for (const record of this.#queue) {
      const kind = engineOf(record.language, record.options);
      const waitMs = waits.get(kind) ?? this.#cells.waitMs(kind);
      waits.set(kind, waitMs);
      if (waitMs > 0) continue;
      // What is begun on a full disk has no room, and takes that which is kept for the ends of what runs.
      if (this.#options.journal.hindrance !== undefined) return this.#tryLater(HINDERED_LOOK_MS);
      this.#queue.delete(record);
      this.#dispatch(record);
      return true;
    }
    return waits.size > 0 && this.#tryLater(Math.min(...waits.values()));
  }

  #tryLater(ms: number): false {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#options.dispatcher.offer(this), ms).unref();
    return false;
  }

  #dispatch(record: ExecutionRecord): void {
    record.dispatched = true;
    this.#actor.send({ type: 'execution.dispatched' });
    record.actor.send({ type: 'execution.dispatch' });
  }

  /**
   * Stops everything in the session; resolves when all of it is gone. `graceMs` 0 forces, and a shorter one than is left of
   * an earlier stop counts. The session itself stays in the journal, for the next daemon.
   */
  close(graceMs: number): Promise<void> {
    if (this.state !== 'exited') this.#actor.send({ type: 'session.close', graceMs });
    return this.#closed.promise;
  }

  /** Closes the session for good. Again with a shorter grace period than is left, that counts; 0 forces. */
  delete(graceMs: number): Promise<void> {
    const before = this.#closing;
    if (before === undefined || graceMs < before.graceMs - agoMs(before)) {
      const closing = { graceMs, ...now() };
      this.#closing = closing;
      this.#options.journal.append({ type: 'session.closing', sessionKey: this.#sessionKey, closing });
    }
    return this.close(graceMs);
  }

  /** Leaves everything as it is to the next daemon. */
  detach(): void {
    this.#detached = true;
    clearTimeout(this.#retry);
    clearImmediate(this.#telling);
    this.#queue.clear();
    for (const { actor } of this.#live.values()) actor.stop();
    this.#actor.stop();
    this.#cells.detach();
  }

  #exited(record: ExecutionRecord): void {
    this.#live.delete(record.executionKey);
    this.#actor.send({ type: 'execution.exited', dispatched: record.dispatched, agoMs: agoMs(record.newestAt) });
    this.#options.onExited(record);
    // One may have waited for a place in the session, not in the node.
    if (record.dispatched && this.#queue.size > 0) this.#options.dispatcher.offer(this);
  }

  /**
   * Port of the session's machine: passes a command on to every execution that has not exited, in place of one that some
   * have not been told of yet. Those that run are told first; others are served between the turns that it takes.
   */
  command(command: ExecutionsCommand): void {
    const [signal, graceMs] =
      command.type === 'executions.force' ? (['SIGKILL', 0] as const) : (['SIGTERM', command.graceMs] as const);
    const left = [...this.#live.values()].sort((a, b) => Number(b.dispatched) - Number(a.dispatched));
    const tell = () => {
      for (const { actor, isOver } of left.splice(0, TOLD_AT_ONCE)) {
        if (!isOver) actor.send({ type: 'execution.stop', reason: 'session_closed', signal, graceMs });
      }
      if (left.length > 0) this.#telling = setImmediate(tell);
    };
    clearImmediate(this.#telling);
    tell();
  }

  /**
   * Port of an execution's machine: takes it to a cell and back. A stop that comes before the cell is ready ends it
   * there. Returns what is to be called when the machine has ended, or was stopped.
   */
  runGuest(executionKey: string, { sendBack, receive }: Guest): () => void {
    const record = this.#live.get(executionKey);
    if (record === undefined) throw new Error(`no such execution to run: ${executionKey}`);
    // Not the request: what is here stays as long as the record, and the cell alone needs the code.
    const { sourceFileName = '' } = record.request ?? {};
    const workspace = new Workspace(join(this.#options.workDirectory, this.#sessionKey, executionKey));
    const cancelled = new AbortController();
    let place: CellPlace | undefined;
    let isGone = false;
    const kind = kindOf(record.accepted);
    let [leaveForceQueue, endWatch] = [() => {}, () => {}];

    const force = (reason: StopReason): void => {
      leaveForceQueue();
      leaveForceQueue = this.#options.forceQueues[kind].enter(this, () => {
        place?.killGuest(executionKey, reason);
        sendBack({ type: 'guest.killed' });
        endWatch();
        if (place === undefined || isGone || !record.actor.getSnapshot().context.started) return;
        const { pid } = place;
        // What they need a processor for: the cell to tell of the end, and a process to end.
        const needed = kind === 'thread' ? [pid] : [pid, record.pid];
        const stuck = () => sendBack({ type: 'guest.stuck' });
        // Of what goes with its cell, and of what is beside it there, nobody else will tell what it used.
        const look = () => void place?.measure();
        const isHeldUp = () => place?.isHeldUp(executionKey) === true;
        const crowding = kind === 'thread' ? () => crowdingOf(pid) : undefined;
        endWatch = watchForStuck(needed, this.#forcedLimitMs(kind), stuck, look, isHeldUp, crowding);
      });
    };
    receive((command) => {
      if (place === undefined) {
        cancelled.abort();
        if (command.type === 'guest.kill') sendBack({ type: 'guest.killed' });
      } else if (command.type === 'guest.signal') {
        place.signal(executionKey, command.signal, command.tree ?? false, command.stop);
      } else if (command.type === 'guest.kill') {
        force(command.stop ?? 'cancelled');
      } else {
        place.killCell();
      }
    });

    const hold = (ready: CellPlace): void => {
      place = ready;
      record.request = undefined;
      record.measure = async () => (await ready.measure()).get(executionKey);
      record.sleep = () => ready.sleepOf(record.executionKey);
      if (record.stdin) record.write = (...input) => ready.write(executionKey, ...input);
      record.onEvent((event) => {
        if (event?.state === 'exited') ready.acknowledge(executionKey);
      });
    };
    const end = () => {
      place?.release();
      void workspace.remove(sourceFileName, () => this.state !== 'exited');
    };
    const observer: GuestObserver = {
      started: ({ pid, process, at }) => {
        record.noteStarted(at, pid, process);
        sendBack({ type: 'guest.started', agoMs: agoMs(at) });
      },
      limitReached: (limit, message, at) => {
        if (limit === 'memory_soft') record.warn(message, at);
        else sendBack({ type: 'guest.limitReached', limit, message });
      },
      // Its cell has limits of its own for the rest.
      gone: () => {
        isGone = true;
        endWatch();
      },
      exited: ({ exit, at, warning }) => {
        end();
        if (warning !== undefined) record.warn(warning.message, warning.at);
        record.noteExited(at);
        sendBack({ type: 'guest.exited', exit });
      },
      lost: (reason, message, usage) => {
        end();
        const { outputLimitBytes = Number.POSITIVE_INFINITY } = record.options;
        const { stdout, stderr } = cutOutput(this.#outputDirectory(record), outputLimitBytes);
        // More may have come since its cell was asked, and less be kept.
        const seen = usage && {
          ...usage,
          stdoutBytes: stdout ?? usage.stdoutBytes,
          stderrBytes: stderr ?? usage.stderrBytes,
        };
        sendBack({ type: 'guest.lost', reason, message, usage: seen });
      },
    };
    const leave = () => {
      leaveForceQueue();
      endWatch();
    };
    const resume = this.#resuming.get(executionKey);
    if (resume !== undefined) {
      hold(resume(observer));
      sendBack({ type: 'guest.placed' });
      return leave;
    }

    const run = async (ready: CellPlace) => {
      if (this.#detached) return;
      // From the moment the cell is told, the guest may run: after a start of the machine nothing else may tell of that.
      const { journal } = this.#options;
      const { number } = record.accepted;
      journal.append({ type: 'execution.dispatched', number, cellKey: ready.cellKey });
      await journal.written();
      try {
        cancelled.signal.throwIfAborted();
        const start = this.#startOf(record, workspace);
        hold(ready);
        sendBack({ type: 'guest.placed' });
        ready.start(start, observer);
      } catch (error) {
        ready.release();
        throw error;
      }
    };
    const fail = (error: Error) => {
      const exit = cancelled.signal.aborted
        ? { exitCode: -1 }
        : { exitCode: -1, cause: 'start_failed' as const, message: error.message };
      sendBack({ type: 'guest.exited', exit });
    };
    this.#cells.acquire(engineOf(record.language, record.options), cancelled.signal).then(run).catch(fail);
    return leave;
  }

  /** What its cell is told. */
  #startOf(record: ExecutionRecord, workspace: Workspace): Start {
    const { executionKey, request } = record;
    if (request === undefined) throw new Error(`nothing to run: ${executionKey}`);
    return startMessage(executionKey, request, workspace, this.#outputDirectory(record));
  }

  #outputDirectory({ executionKey }: ExecutionRecord): string {
    return join(this.#options.outputDirectory, this.#sessionKey, executionKey);
  }

  async #free(): Promise<void> {
    clearTimeout(this.#retry);
    this.#options.machines.remove(this.#sessionKey);
    await this.#cells.close();
    await removeTree(join(this.#options.workDirectory, this.#sessionKey));
    if (this.#closing !== undefined) {
      const { journal } = this.#options;
      journal.append({ type: 'session.closed', sessionKey: this.#sessionKey });
      await journal.written();
    }
    this.#closed.resolve();
  }
}

/** False only where the system says that there is no such thing. */
function mayExist(path: string): boolean {
  try {
    lstatSync(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
}

/** {@link PATIENCE} times as long, or as long as a timer can be. */
function withPatience(limitMs: number): number {
  return Math.min(LONGEST_MS, PATIENCE * limitMs);
}

/** What a guest is. */
function kindOf({ language, options }: ExecutionRecord['accepted']): 'thread' | 'process' {
  return engineOf(language, options) === 'javascript' ? 'thread' : 'process';
}
