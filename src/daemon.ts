import { setTimeout as wait } from 'node:timers/promises';
import { getHeapStatistics } from 'node:v8';
import { type Logger, pino } from 'pino';
import type {
  DeleteOptions,
  Endpoints,
  ExecutionStatus,
  InputOptions,
  MetricsOptions,
  SessionSnapshot,
  SignalOptions,
  StopOptions,
  StreamOptions,
} from './api.ts';
import {
  type CellProgram,
  installedProgram,
  otherPrograms,
  type ProgramParts,
  putProgram,
  readProgram,
} from './cell-program.ts';
import { agoMs } from './clock.ts';
import type { CheckedConfig } from './config.ts';
import {
  FailedPreconditionError,
  InvalidArgumentError,
  OutOfRangeError,
  ResourceExhaustedError,
  UnavailableError,
} from './errors.ts';
import { Journal, type OpenedJournal } from './journal/journal.ts';
import { standardErrorLog } from './log-output.ts';
import type { OutputChunk, OutputRange } from './output/output-files.ts';
import { killTrees, processName } from './processes.ts';
import { removeFile } from './remove-tree.ts';
import { keepDescriptor } from './spare-descriptor.ts';
import { type Leavings, StateDirectory } from './state-directory.ts';
import { Archive } from './supervisor/archive.ts';
import { type CellRemains, endLost, type FoundCells, findCells } from './supervisor/cell-adoption.ts';
import { guestEndOf } from './supervisor/cell-words.ts';
import { CONTROLLERS, ControlGroups } from './supervisor/control-groups.ts';
import { requireNoneOfOriginal } from './supervisor/copied-directory.ts';
import { Dispatcher } from './supervisor/dispatcher.ts';
import { enforcementOf } from './supervisor/enforcement.ts';
import { type ExecutionMetrics, metricsOf, metricsOfAll, metricsOfOne } from './supervisor/execution-metrics.ts';
import {
  ExecutionRecord,
  type ExecutionSnapshot,
  type StatusEvent,
  stoppedError,
} from './supervisor/execution-record.ts';
import type { FinishedRecord } from './supervisor/finished-record.ts';
import { ForceQueue } from './supervisor/force-queue.ts';
import { engineOf, type Language, Languages } from './supervisor/languages.ts';
import { checkDuration, type Enforcement, summaryOf } from './supervisor/limits.ts';
import {
  checkId,
  checkPlaces,
  checkSessionConfiguration,
  checkSnippet,
  fingerprintOf,
  type SessionConfiguration,
  type Snippet,
  sizeOf,
} from './supervisor/requests.ts';
import { SessionRegistry } from './supervisor/session-registry.ts';
import { SessionMachines, type SessionOptions, SessionSupervisor } from './supervisor/session-supervisor.ts';
import { parseSignal, requireThreadSignal } from './supervisor/signals.ts';

/** A server that listens. */
export interface BoundServer {
  endpoints: Endpoints;
  /** Tells whoever asks for its health that it is about to close. */
  stopServing(): void;
  /** Refuses new calls, lets open ones end for a second, and frees what it listens on. */
  close(): Promise<void>;
}

/** What a started daemon has. */
interface Started {
  directory: StateDirectory;
  journal: Journal;
  archive: Archive;
  languages: Languages;
  controlGroups: ControlGroups;
  program: CellProgram;
}

/** Puts a daemon where clients reach it. Rejects with a `StartupError`, nothing left behind. */
export type Serve = (daemon: Daemon, config: CheckedConfig, log: Logger) => Promise<BoundServer>;

/** How far beyond the executions' own ladders a session's stop goes before it forces, in ms. */
const SESSION_SLACK_MS = 500;
/** How long an asked cell may take to end before it is killed, in ms. */
const CELL_GRACE_MS = 2_000;
/**
 * How much the requests may take that wait, in bytes: each is kept until it has begun, and a daemon that starts reads them
 * all, three times as much at its most.
 */
const MOST_QUEUED_BYTES = Math.floor(getHeapStatistics().heap_size_limit / 8);
/** When it is worth trying again after a queue, or the number of sessions, was found full. */
const RETRY_QUEUE_MS = 1_000;
/** How long a daemon that is stopped while it starts waits for an interpreter to say its version, in ms. */
const PROBE_GRACE_MS = 1_000;
/** How often in a row the journal is seen not to take what is over before a daemon that stops gives that up; and between, in ms. */
const UNWRITTEN_LOOKS = 10;
const UNWRITTEN_LOOK_MS = 500;
const RETRY_SESSION_MS = 5_000;

/** An abort signal that never aborts, for calls without one. */
const NEVER = new AbortController().signal;

/** One node's daemon: sessions and executions, and the servers that clients reach them by. */
export class Daemon {
  readonly config: CheckedConfig;
  readonly #serve: Serve;
  readonly #log: Logger;
  readonly #dispatcher: Dispatcher;
  readonly #forceQueues: SessionOptions['forceQueues'];
  readonly #machines = new SessionMachines();
  readonly #registry = new SessionRegistry();
  #enforcement: Enforcement[] = [];
  #directory: StateDirectory | undefined;
  /** For what must be seen and read when no other descriptor is left. */
  #spare: Disposable | undefined;
  #journal: Journal | undefined;
  #nextNumber = 1;
  #archive: Archive | undefined;
  #controlGroups: ControlGroups | undefined;
  #languages: Languages | undefined;
  /** Of what was installed when this daemon started: what is replaced later its cells do not run. */
  #program: CellProgram | undefined;
  #server: BoundServer | undefined;
  /** The start that is under way. */
  #starting: Promise<Endpoints> | undefined;
  /** Of the latest start; aborted when what an interpreter says of itself is waited for no more. */
  #probing = new AbortController();
  #stopping: Promise<void> | undefined;
  /** The stop leaves what runs to the next daemon. */
  #detaches: boolean | undefined;
  #forced = false;
  /** Aborted when it takes nothing any more and keeps nothing. */
  readonly #left = new AbortController();

  constructor(config: CheckedConfig, serve: Serve) {
    this.config = config;
    this.#serve = serve;
    this.#log = pino({ level: config.logLevel, base: null }, standardErrorLog());
    const { maxForcing } = config;
    this.#forceQueues = {
      thread: new ForceQueue('thread', maxForcing),
      process: new ForceQueue('process', maxForcing),
    };
    this.#dispatcher = new Dispatcher({ maxActive: config.maxRunning, maxStarting: config.maxStarting });
  }

  /**
   * Takes the state directory, goes on with what an older daemon left there, and serves. Rejects with a `StartupError`,
   * nothing left behind; where that is for a cell, or the journal, of another version, nothing of them was touched.
   */
  async start(): Promise<Endpoints> {
    if (this.#starting ?? this.#directory) throw new FailedPreconditionError('the daemon was started before');
    if (this.#stopping !== undefined) throw new FailedPreconditionError('the daemon was stopped');
    this.#probing = new AbortController();
    this.#starting = this.#start().finally(() => {
      this.#starting = undefined;
      this.#probing.abort();
    });
    return this.#starting;
  }

  async #start(): Promise<Endpoints> {
    const { stateDir, python, durability, orphanGraceMs } = this.config;
    // Before anything is made: throws where the boot has no name. What names of processes are made of is kept from here on.
    processName(process.pid);
    // Beside the rest: an interpreter that is found through a launcher takes a while.
    const probed = Languages.probe(python, this.#probing.signal, {
      until: this.#left.signal,
      found: (language, version) => this.#log.info({ language, version }, 'language available'),
    });
    const directory = await StateDirectory.open(stateDir);
    this.#directory = directory;
    this.#spare = keepDescriptor();
    let cells: FoundCells['cells'] = [];
    try {
      const parts = readProgram();
      // Before anything is changed: a start may be refused for them.
      const isCopy = directory.original !== undefined;
      const found = await findCells(directory.paths.cells, isCopy);
      cells = found.cells;
      const opened = await Journal.open(
        directory.paths.journal,
        durability,
        (failure) => this.#onJournal(failure),
        (why) => this.#log.error(`the journal cannot take an entry, which is left out: ${why}`),
      );
      const { journal } = opened;
      this.#journal = journal;
      if (opened.setAside !== undefined) {
        this.#log.error(opened.setAside, 'the journal was damaged: it was set aside, and a new one begun');
      }
      const { retainedAgeMs: ageMs, retainedExecutions: executions, outputBudgetBytes: outputBytes } = this.config;
      const archive = new Archive({
        registry: this.#registry,
        journal,
        outputDirectory: directory.paths.output,
        limits: { ageMs, executions, outputBytes },
        log: this.#log,
      });
      this.#archive = archive;
      requireNoneOfOriginal(directory, opened.contents);
      directory.settle();
      const program = await this.#put(parts, directory.paths.programs);
      this.#program = program;
      const remains = await endLost(directory.paths.cells, found.lost);
      const { controlGroups: where } = this.config;
      const place = typeof where === 'string' ? where : '';
      const controlGroups = ControlGroups.open(where === false ? [] : CONTROLLERS, place);
      this.#controlGroups = controlGroups;
      this.#enforcement = enforcementOf(controlGroups);
      // With them ends what such cells have left running, before anyone is told that it is gone.
      await Promise.all(found.lost.map((cellKey) => controlGroups.removeOf(cellKey)));
      this.#languages = await probed;
      const { output, work } = this.#restore(opened, cells, remains);
      const { isLost } = opened;
      if (isLost) await this.#keepUnknown(output);
      this.#server = await this.#serve(this, this.config, this.#log);
      for (const { connection } of cells) connection.send({ body: { $case: 'settled', value: { orphanGraceMs } } });
      const builds = [program, ...found.cells].map(({ build }) => build);
      const unused = otherPrograms(directory.paths.programs, builds);
      void directory.remove([...(isLost ? [] : output), ...work, ...unused]);
      void journal.written().then(() => {
        for (const file of remains.files) removeFile(file);
      });
      archive.watch(new Set(found.cells.map(({ sessionKey }) => sessionKey)));
    } catch (error) {
      const sessions = this.#registry.sessions();
      for (const session of sessions) session.detach();
      for (const { connection } of cells) connection.destroy();
      // That is its stop, then: nothing is left to be closed, nor to be forced.
      this.#forced = true;
      this.#stopping = this.#leave({ detach: sessions.length > 0 });
      await this.#stopping.catch(({ message }: Error) => this.#log.error(message));
      throw error;
    }
    for (const { name, available, message } of this.#languages.list()) {
      if (!available) this.#log.warn({ language: name }, `language not available: ${message}`);
    }
    for (const { limit, engine, mechanism, note } of this.#enforcement) {
      this.#log.debug({ limit, engine, mechanism }, note);
    }
    this.#log.info({ limits: summaryOf(this.#enforcement) }, 'limits are held');
    this.#log.info({ ...this.#server.endpoints, stateDir: this.config.stateDir }, 'ready');
    return this.#server.endpoints;
  }

  /**
   * Stops everything, with the ladder, and resolves when all is gone; sessions stay in the journal. With `detach` (default:
   * as `onStop` says) it leaves everything running to the next daemon instead; that is settled with the first call. A call
   * with `force` skips the grace periods. One that comes while the daemon starts stops it once it has started. Calls that
   * wait for what is to come reject with an `UnavailableError` then.
   */
  stop(options: { force?: boolean; detach?: boolean } = {}): Promise<void> {
    this.#detaches ??= options.detach ?? this.config.onStop === 'detach';
    const detaches = this.#detaches;
    if (options.force === true && !detaches && !this.#forced && !this.#left.signal.aborted) {
      this.#forced = true;
      for (const session of this.#registry.sessions()) void session.close(0);
    }
    const stop = () => {
      this.#server?.stopServing();
      return detaches ? this.#detach() : this.#stop();
    };
    // What is found in time is what guests run that are left to the next daemon.
    if (this.#starting !== undefined) setTimeout(() => this.#probing.abort(), PROBE_GRACE_MS).unref();
    this.#stopping ??= this.#starting === undefined ? stop() : this.#starting.then(stop, () => {});
    return this.#stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  get healthy(): boolean {
    return this.#directory !== undefined && this.#stopping === undefined;
  }

  languages(): Language[] {
    return this.#started().languages.list();
  }

  /** Creates a session. The same id with the same configuration again answers with the session there is. */
  async createSession(sessionId: string, config: SessionConfiguration = {}): Promise<SessionSnapshot> {
    const { languages, journal } = this.#accepting();
    checkId(sessionId, 'session_id');
    const checked = checkSessionConfiguration(config, languages, this.config);
    const fingerprint = fingerprintOf(config, checked);
    const session = this.#registry.createSession(sessionId, checked, fingerprint, () => {
      this.#requireRoomForSession();
      journal.requireWritable();
      this.#log.info({ sessionId }, 'session created');
      return this.#newSession({ sessionId, config: checked, fingerprint, unclosed: undefined });
    });
    await journal.written();
    return snapshotOf(session);
  }

  /** Rejects with `NotFoundError` when there is none, or `UnavailableError` while it is being deleted. */
  async getSession(sessionId: string): Promise<SessionSnapshot> {
    const session = this.#registry.session(sessionId);
    session.requireOpen();
    return snapshotOf(session);
  }

  async listSessions(): Promise<SessionSnapshot[]> {
    return this.#registry.sessions().map(snapshotOf);
  }

  /**
   * Stops everything in the session; resolves when all of it is gone. Its executions stay queryable until retention takes
   * them. Rejects with `FailedPreconditionError` for one that is busy, if asked to.
   */
  async deleteSession(sessionId: string, options: DeleteOptions = {}): Promise<void> {
    const { graceMs = this.config.graceMs, force = false, refuseIfBusy = false } = options;
    checkDuration(graceMs, 'grace_ms', 0);
    if (force && refuseIfBusy) throw new InvalidArgumentError('force and refuse_if_busy exclude each other');
    const session = this.#registry.session(sessionId);
    if (refuseIfBusy) session.requireIdle();
    await this.#whileThere(() => this.#delete(session, this.#forced || force ? 0 : graceMs));
  }

  /** Accepts a snippet, and answers before it runs. The same id with the same request again answers alike. */
  async executeSnippet(snippet: Snippet): Promise<ExecutionSnapshot> {
    const { languages, journal, archive } = this.#accepting();
    const session = this.#registry.session(snippet.sessionId);
    session.requireOpen();
    const node = { maxCodeBytes: this.config.maxCodeBytes, enforcement: this.enforcement() };
    const request = checkSnippet(snippet, session.config, languages, node);
    const find = () => this.#registry.find(snippet.sessionId, snippet.executionId);
    // What its guest has done to them since says nothing about a request that was accepted, be it only just now.
    if (find() === undefined) {
      await checkPlaces(request).catch((error: Error) => {
        if (find() === undefined) throw error;
      });
    }
    const known = find();
    if (known !== undefined) {
      const record = await archive.recordOf(known);
      record.requireSame(request.fingerprint);
      await journal.written();
      return record.snapshot;
    }
    this.#accepting();
    const bytes = sizeOf(request);
    journal.requireWritable(bytes);
    this.#requireRoomInQueue(session, bytes);
    const record = session.admit(request);
    this.#registry.add(record);
    await journal.written();
    return record.snapshot;
  }

  /** An execution as it stands, without a look at what it wrote. */
  async getExecution(sessionId: string, executionId: string): Promise<ExecutionSnapshot> {
    return (await this.#execution(sessionId, executionId)).snapshot;
  }

  async getExecutionStatus(sessionId: string, executionId: string): Promise<ExecutionStatus> {
    const known = this.#registry.execution(sessionId, executionId);
    const { archive } = this.#started();
    const record = await archive.recordOf(known);
    const { stdout, stderr, evicted } = await archive.outputOf(known, record);
    return { ...record.snapshot, stdoutBytes: stdout, stderrBytes: stderr, outputEvicted: evicted };
  }

  /** Oldest first; of one session or of all. */
  async listExecutions(sessionId?: string): Promise<ExecutionSnapshot[]> {
    return (await this.pageOfExecutions(sessionId)).executions;
  }

  /** So many of them at most, `after` that number; `next` is where the next page begins, undefined on the last. */
  async pageOfExecutions(sessionId?: string, { after = 0, size = Number.POSITIVE_INFINITY } = {}) {
    if (sessionId !== undefined && !this.#registry.hasExecutions(sessionId)) this.#registry.session(sessionId);
    const left = this.#registry.executions(sessionId, after);
    const page = left.slice(0, size);
    const executions = await this.#started().archive.snapshotsOf(page);
    return { executions, next: page.length < left.length ? page.at(-1)?.number : undefined };
  }

  /**
   * Starts the ladder and answers at once: true when a stop is under way, false when the execution has exited or is not
   * known. A second stop is the first; a harder one takes effect at once, and a shorter grace period than is left counts.
   */
  async cancelExecution(sessionId: string, executionId: string, options: StopOptions = {}): Promise<boolean> {
    const signal = parseSignal(options.signal || 'SIGTERM', 'signal');
    if (options.graceMs !== undefined) checkDuration(options.graceMs, 'grace', 0);
    this.#requireThere();
    const record = this.#registry.find(sessionId, executionId);
    if (!(record instanceof ExecutionRecord) || record.isOver) return false;
    requireDeliverable(record, signal);
    const { journal } = this.#started();
    record.actor.send({
      type: 'execution.stop',
      reason: 'cancelled',
      signal,
      graceMs: options.graceMs ?? record.options.graceMs,
    });
    await journal.written();
    return true;
  }

  /** Delivers one signal; false when the execution has exited. Only SIGKILL is also a stop. */
  async signalExecution(
    sessionId: string,
    executionId: string,
    signal: string,
    options: SignalOptions = {},
  ): Promise<boolean> {
    const name = parseSignal(signal, 'signal');
    this.#requireThere();
    const record = this.#registry.execution(sessionId, executionId);
    if (!(record instanceof ExecutionRecord) || record.isOver) return false;
    requireDeliverable(record, name);
    if (record.state === 'pending' && name !== 'SIGKILL') {
      throw new FailedPreconditionError(
        `execution "${executionId}" has not started; it can be cancelled, not signalled`,
      );
    }
    record.actor.send({ type: 'execution.signal', signal: name, tree: options.signalTree });
    return true;
  }

  /**
   * Every status event from a sequence number on, those to come included; ends after the last one. Rejects with
   * `OutOfRangeError` for a number beyond the next one.
   */
  async *watchExecution(
    sessionId: string,
    executionId: string,
    options: { fromSequence?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<StatusEvent> {
    const { fromSequence = 1, signal = NEVER } = options;
    const record = await this.#execution(sessionId, executionId);
    const { sequence } = record.snapshot;
    if (!Number.isInteger(fromSequence) || fromSequence < 0) {
      throw new InvalidArgumentError(`from_sequence is ${fromSequence}; it must be a whole number, 0 or more`);
    }
    if (fromSequence > sequence + 1) {
      const events = `execution "${executionId}" has ${sequence} status events`;
      throw new OutOfRangeError(`${events}; sequence ${fromSequence} is in the future`);
    }
    yield* record.watch(fromSequence, signal);
  }

  /**
   * The bytes an execution wrote, both streams interleaved as they were written. Follows until its end. Rejects with
   * `OutOfRangeError` for a position beyond what was written, and for output that was removed to make room; with
   * `DataLossError`, behind what is left, for output that somebody else has removed or cut short: of what has exited that
   * is known, of what runs when it is seen under this reader.
   */
  async *streamOutput(
    sessionId: string,
    executionId: string,
    options: StreamOptions & { signal?: AbortSignal } = {},
  ): AsyncGenerator<OutputChunk> {
    const known = this.#registry.execution(sessionId, executionId);
    const { streams = ['stdout', 'stderr'], stdoutPosition = 0, stderrPosition = 0, follow = true } = options;
    const range: OutputRange = {
      streams: new Set(streams),
      from: { stdout: stdoutPosition, stderr: stderrPosition },
      follow,
    };
    yield* this.#started().archive.read(known, range, options.signal ?? NEVER);
  }

  /** The newest output of a stream, of what comes before `end`, `maxBytes` at most, and where it begins. */
  async tailOutput(
    sessionId: string,
    executionId: string,
    stream: 'stdout' | 'stderr',
    maxBytes: number,
    end = Number.POSITIVE_INFINITY,
  ) {
    return this.#started().archive.tail(this.#registry.execution(sessionId, executionId), stream, maxBytes, end);
  }

  /** Resolves when the execution has exited, or when `timeoutMs` passed or `signal` aborts: look at the state to see which. */
  async wait(
    sessionId: string,
    executionId: string,
    { timeoutMs, signal = NEVER }: { timeoutMs?: number | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<ExecutionSnapshot> {
    if (timeoutMs !== undefined) checkDuration(timeoutMs, 'timeout_ms', 0);
    const record = await this.#execution(sessionId, executionId);
    const limit = new AbortController();
    // A signal that ends by itself is kept until then, however soon the wait is over.
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => limit.abort(), timeoutMs);
    try {
      await record.exited(AbortSignal.any([signal, limit.signal]));
      return record.snapshot;
    } finally {
      clearTimeout(timer);
    }
  }

  /** What an execution uses now, or used in all once it has exited. Costs the guest nothing. */
  async getExecutionMetrics(sessionId: string, executionId: string): Promise<ExecutionMetrics> {
    return metricsOf(await this.#execution(sessionId, executionId), undefined);
  }

  /**
   * What one execution uses, round after round, and last its final figures; or what every execution uses that runs, for as
   * long as `signal` allows. With `allowPartial` rounds of all after the first leave out who does nothing, and tell once more
   * of who has exited.
   */
  async *watchExecutionMetrics(
    options: MetricsOptions & { allowPartial?: boolean; signal?: AbortSignal } = {},
  ): AsyncGenerator<ExecutionMetrics[]> {
    const { sessionId, executionId, intervalMs, allowPartial = false, signal = NEVER } = options;
    if (executionId !== undefined && sessionId === undefined) {
      throw new InvalidArgumentError('execution_id without session_id');
    }
    if (sessionId !== undefined && executionId === undefined) this.#registry.session(sessionId);
    if (executionId === undefined) {
      const until = AbortSignal.any([signal, this.#left.signal]);
      yield* metricsOfAll(() => this.#registry.running(sessionId), intervalMs, allowPartial, until);
      if (!signal.aborted) this.#requireThere();
    } else {
      yield* metricsOfOne(await this.#execution(sessionId as string, executionId), intervalMs, signal);
    }
  }

  /** By which mechanism this node holds each limit, for each engine. */
  enforcement(): Enforcement[] {
    return this.#enforcement;
  }

  /**
   * Appends to an execution's standard input; resolves when the guest's pipe took it. `end` closes it. A `signal` that aborts
   * while the execution waits for its turn takes the input back. Rejects with `FailedPreconditionError` for one that has
   * exited, whatever it took before.
   */
  async writeInput(
    sessionId: string,
    executionId: string,
    data: Uint8Array,
    end = false,
    { position, signal = NEVER }: InputOptions & { signal?: AbortSignal } = {},
  ): Promise<void> {
    const record = await this.#execution(sessionId, executionId);
    if (!record.stdin) {
      throw new FailedPreconditionError(`execution "${executionId}" was started without stdin (config.stdin)`);
    }
    for await (const { state } of record.watch(1, signal)) if (state !== 'pending') break;
    signal.throwIfAborted();
    const { write } = record;
    if (write === undefined) {
      throw new FailedPreconditionError(`execution "${executionId}" has exited; it reads no more input`);
    }
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    await this.#whileThere(() => write(bytes, end, position));
  }

  /**
   * Gives up a finished execution: its result, its output, its id. Rejects with `FailedPreconditionError` for one that has
   * not exited.
   */
  async releaseExecution(sessionId: string, executionId: string): Promise<void> {
    this.#requireThere();
    const { archive, journal } = this.#started();
    const known = this.#registry.execution(sessionId, executionId);
    if (known instanceof ExecutionRecord) {
      throw new FailedPreconditionError(
        `execution "${executionId}" has not exited; it can be stopped, not released (elidectl stop)`,
      );
    }
    archive.release(known);
    await journal.written();
  }

  /** Everything an older daemon left, as it was: returns what lies in the state directory and belongs to nothing. */
  #restore({ journal, contents }: OpenedJournal, cells: FoundCells['cells'], { ends }: CellRemains): Leavings {
    const { archive, directory } = this.#started();
    const { sessions, unfinished, finished, nextNumber } = contents;
    this.#nextNumber = nextNumber;
    for (const session of sessions) {
      const { sessionId, config, fingerprint } = session;
      this.#registry.addSession(this.#newSession({ sessionId, config, fingerprint, unclosed: session }));
    }
    const byKey = new Map(this.#registry.sessions().map((session) => [session.sessionKey, session]));
    for (const cell of cells) {
      const session = byKey.get(cell.sessionKey);
      if (session !== undefined) session.adopt(cell);
      else dropCell(cell);
    }
    archive.restore(finished);
    for (const execution of unfinished) {
      const end = ends.get(execution.executionKey);
      const session = byKey.get(execution.sessionKey);
      if (session === undefined) {
        this.#log.error({ execution }, 'an execution without its session: it is forgotten');
        journal.append({ type: 'execution.released', number: execution.number });
        continue;
      }
      this.#registry.add(session.resume(execution, end && guestEndOf(end)));
    }
    for (const session of byKey.values()) session.resumed();
    for (const { sessionKey, closing } of sessions) {
      const session = byKey.get(sessionKey);
      if (session && closing) void this.#delete(session, Math.max(0, closing.graceMs - agoMs(closing)));
    }
    if (sessions.length + unfinished.length > 0) {
      const counts = { sessions: sessions.length, executions: unfinished.length, cells: cells.length };
      this.#log.info(counts, 'goes on with what was left');
    }
    const live = unfinished.flatMap(({ sessionKey, executionKey }) => (byKey.has(sessionKey) ? [executionKey] : []));
    const kept = finished.filter(({ outputEvicted }) => outputEvicted === undefined);
    const open = sessions.map(({ sessionKey }) => sessionKey);
    return directory.unknown({ open, live, finished: kept.map(({ executionKey }) => executionKey) });
  }

  /** Where a disk has no room for it, what runs is looked after all the same. */
  async #put(parts: ProgramParts, directory: string): Promise<CellProgram> {
    try {
      return await putProgram(parts, directory);
    } catch (error) {
      const why = `the program of cells cannot be put into ${directory} (${(error as Error).message})`;
      this.#log.warn(`${why}: they run the installed files; start this daemon anew before those are replaced`);
      return installedProgram(parts);
    }
  }

  /** A journal that would know whose output this is was lost. */
  async #keepUnknown(output: string[]): Promise<void> {
    const { directory, journal } = this.#started();
    if (output.length > 0) {
      const path = await directory.setAside(output);
      this.#log.error({ path }, 'the journal does not know output that is there: it was set aside');
    }
    journal.settleLoss();
  }

  #newSession(asked: Pick<SessionOptions, 'sessionId' | 'config' | 'fingerprint' | 'unclosed'>): SessionSupervisor {
    const { sessionId, config } = asked;
    const { directory, controlGroups, journal, archive, languages, program } = this.#started();
    const { graceMs, startLimitMs, forcedLimitMs, cellIdleMs, orphanGraceMs, contextsPerCell } = this.config;
    const { processesPerCell, restartIntensity, restartPeriodMs } = this.config;
    const session: SessionSupervisor = new SessionSupervisor({
      ...asked,
      journal,
      nextNumber: () => this.#nextNumber++,
      machines: this.#machines,
      dispatcher: this.#dispatcher,
      forceQueues: this.#forceQueues,
      workDirectory: directory.paths.work,
      outputDirectory: directory.paths.output,
      graceMs,
      slackMs: SESSION_SLACK_MS,
      limits: { startLimitMs, forcedLimitMs },
      cells: {
        directory: directory.paths.cells,
        guestsPerCell: { javascript: contextsPerCell, process: processesPerCell, python: processesPerCell },
        contextPoolSize: config.contextPoolSize,
        heapLimitMb: config.executionDefaults.memoryLimitMb ?? config.executionCeilings.memoryLimitMb ?? 0,
        memoryBudgetBytes: this.config.cellMemoryMb * 1024 * 1024,
        controlGroups,
        program,
        python: () => languages.python,
        startLimitMs,
        idleMs: cellIdleMs,
        graceMs: CELL_GRACE_MS,
        orphanGraceMs,
        restart: { intensity: restartIntensity, periodMs: restartPeriodMs },
        onCrash: (cellKey, message) => this.#log.warn({ sessionId, cellKey }, message),
      },
      onExpired: (expired, which) => {
        this.#log.info({ sessionId, ttl: which }, 'the time of a session is up');
        void this.#delete(expired, this.#forced ? 0 : graceMs);
      },
      onExited: (record) => {
        const { executionId, result } = record.snapshot;
        this.#log.debug({ sessionId, executionId, ...result }, 'execution exited');
        archive.add(record);
      },
    });
    return session;
  }

  #requireRoomForSession(): void {
    const { maxSessions } = this.config;
    if (this.#registry.sessions().length < maxSessions) return;
    throw new ResourceExhaustedError(`there are ${maxSessions} sessions, as many as this daemon may have`, {
      retryAfterMs: RETRY_SESSION_MS,
    });
  }

  #requireRoomInQueue({ sessionId, queued, config }: SessionSupervisor, bytes: number): void {
    const refuse = (what: string) => {
      throw new ResourceExhaustedError(`${what}; try again in ${RETRY_QUEUE_MS} ms`, { retryAfterMs: RETRY_QUEUE_MS });
    };
    if (queued >= config.maxQueued) {
      refuse(`${queued} executions wait in session "${sessionId}", as many as may (max_queued)`);
    }
    const sessions = this.#registry.sessions();
    const inAll = sessions.reduce((sum, session) => sum + session.queued, 0);
    if (inAll >= this.config.maxQueuedInAll) refuse(`${inAll} executions wait in all sessions, as many as may`);
    const waiting = sessions.reduce((sum, session) => sum + session.queuedBytes, 0);
    // One that waits alone is taken, however large it is.
    if (waiting > 0 && waiting + bytes > MOST_QUEUED_BYTES) {
      refuse(`executions that wait have ${waiting} bytes, and this one ${bytes}: ${MOST_QUEUED_BYTES} may wait in all`);
    }
  }

  async #execution(sessionId: string, executionId: string): Promise<ExecutionRecord | FinishedRecord> {
    return this.#started().archive.recordOf(this.#registry.execution(sessionId, executionId));
  }

  async #delete(session: SessionSupervisor, graceMs: number): Promise<void> {
    await session.delete(graceMs);
    this.#registry.forget(session);
    this.#archive?.sessionClosed(session);
    this.#log.info({ sessionId: session.sessionId }, 'session deleted');
  }

  #onJournal(failure: string | undefined): void {
    if (failure === undefined) this.#log.info('the journal can be written');
    else this.#log.error(`the journal cannot be written: ${failure}`);
  }

  async #stop(): Promise<void> {
    const { graceMs } = this.config;
    const sessions = this.#registry.sessions();
    const closed = Promise.all(sessions.map((session) => session.close(this.#forced ? 0 : graceMs)));
    const detach = !(await this.#written(closed, () => this.#registry.running().length === 0));
    if (detach) for (const session of sessions) session.detach();
    await this.#leave({ detach });
    this.#log.info('stopped');
  }

  async #detach(): Promise<void> {
    if (this.#journal !== undefined) await this.#written(this.#journal.written(), () => true);
    for (const session of this.#registry.sessions()) session.detach();
    await this.#leave({ detach: true });
    this.#log.info('stopped; what runs is left to the next daemon');
  }

  /**
   * Waits for what waits for the journal; resolves with false when all else is `over` and the journal cannot be written, or
   * answers nothing, for so long that it may never be. The next daemon learns of ends from what their cells keep.
   */
  async #written(waiting: Promise<unknown>, over: () => boolean): Promise<boolean> {
    let done = false;
    const written = waiting.then(() => {
      done = true;
    });
    for (let looks = 0; looks < UNWRITTEN_LOOKS && !done; looks += 1) {
      await Promise.race([written, wait(UNWRITTEN_LOOK_MS)]);
      const { failure, unansweredMs = 0 } = this.#journal ?? {};
      if ((failure === undefined && unansweredMs < UNWRITTEN_LOOK_MS) || !over()) looks = -1;
    }
    return done;
  }

  async #leave({ detach }: { detach: boolean }): Promise<void> {
    this.#left.abort();
    this.#archive?.close();
    await this.#server?.close();
    // Only now: to a client an end that is not known is a connection that is lost.
    for (const known of this.#registry.executions()) if (known instanceof ExecutionRecord) known.leave();
    await this.#controlGroups?.close({ detach });
    try {
      await this.#journal?.close();
    } finally {
      await this.#directory?.close();
      this.#spare?.[Symbol.dispose]();
    }
  }

  #started(): Started {
    const [directory, journal, archive] = [this.#directory, this.#journal, this.#archive];
    const [languages, controlGroups, program] = [this.#languages, this.#controlGroups, this.#program];
    if (!directory || !journal || !archive || !languages || !controlGroups || !program) {
      throw new FailedPreconditionError('the daemon is not started');
    }
    return { directory, journal, archive, languages, controlGroups, program };
  }

  #requireThere(): void {
    if (this.#left.signal.aborted) throw stoppedError();
  }

  /** Work that is never done where the daemon stops first: it rejects then. */
  async #whileThere<T>(begin: () => Promise<T>): Promise<T> {
    this.#requireThere();
    const { promise: left, reject } = Promise.withResolvers<never>();
    const leave = () => reject(stoppedError());
    this.#left.signal.addEventListener('abort', leave);
    try {
      return await Promise.race([begin(), left]);
    } finally {
      this.#left.signal.removeEventListener('abort', leave);
    }
  }

  #accepting(): Started {
    if (this.#stopping !== undefined) throw new UnavailableError('the daemon is stopping');
    return this.#started();
  }
}

/** A cell of a session that nobody knows: nobody could ask for its executions, or stop them. */
function dropCell({ pid, connection }: FoundCells['cells'][number]): void {
  connection.destroy();
  killTrees([pid]);
}

function requireDeliverable(record: ExecutionRecord, signal: NodeJS.Signals): void {
  const { language, options } = record;
  if (engineOf(language, options) === 'javascript') requireThreadSignal(signal, language, 'signal');
}

function snapshotOf(session: SessionSupervisor): SessionSnapshot {
  const { sessionId, state, config, createdAtMs, counts, cells } = session;
  return { sessionId, state, config, createdAtMs, counts, cells };
}
