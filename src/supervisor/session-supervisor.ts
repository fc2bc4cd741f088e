import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { nanoid } from 'nanoid';
import { type Actor, createActor, fromCallback } from 'xstate';
import { type ExecutionEvent, executionMachine, type GuestCommand, type GuestInput } from '../../machines/execution.ts';
import { type ExecutionsCommand, sessionMachine } from '../../machines/session.ts';
import { AlreadyExistsError, FailedPreconditionError } from '../errors.ts';
import type { Limits, Start } from '../gen/elide/cell/v1/cell.ts';
import { type CellOptions, type CellPlace, type CellSummary, CellSupervisor } from './cell-supervisor.ts';
import type { Dispatcher, Waiting } from './dispatcher.ts';
import { ExecutionRecord, type LifecycleState } from './execution-record.ts';
import { specOf } from './languages.ts';
import type { CheckedOptions } from './limits.ts';
import type { CheckedSessionConfiguration, ExecutionRequest } from './requests.ts';

/** What a session needs of its daemon. */
export interface SessionOptions {
  sessionId: string;
  machines: SessionMachines;
  config: CheckedSessionConfiguration;
  cells: CellOptions;
  dispatcher: Dispatcher;
  /** `work/` of the state directory: what guests may touch. */
  workDirectory: string;
  /** `daemon/output/` of the state directory. */
  outputDirectory: string;
  /** Grace period of executions that are stopped with the session, in ms. */
  graceMs: number;
  /** How long a stop of the whole session waits beyond the executions' own ladders, in ms. */
  slackMs: number;
  limits: { startLimitMs: number; forcedLimitMs: number };
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
      guest: fromCallback<GuestCommand, GuestInput>(({ input, ...guest }) => {
        this.#sessions.get(input.sessionKey)?.runGuest(input.executionKey, guest as Guest);
      }),
    },
  }) as typeof executionMachine;

  add(sessionKey: string, session: SessionSupervisor): void {
    this.#sessions.set(sessionKey, session);
  }

  remove(sessionKey: string): void {
    this.#sessions.delete(sessionKey);
  }
}

/** Execution keys, session keys: names of fixed length that never come from a client. */
const KEY_CHARS = 12;

/**
 * Supervises the executions of one session: admits, queues, dispatches into cells, hears of each end, and drives all to
 * their end when it is closed (OTP's DynamicSupervisor: root actors in a map).
 */
export class SessionSupervisor implements Waiting {
  readonly sessionId: string;
  readonly config: CheckedSessionConfiguration;
  readonly createdAtMs = Date.now();
  readonly weight: number;
  readonly #options: SessionOptions;
  readonly #sessionKey = nanoid(KEY_CHARS);
  readonly #cells: CellSupervisor;
  readonly #actor: Actor<typeof sessionMachine>;
  /** Executions that have not exited, by key. */
  readonly #live = new Map<string, ExecutionRecord>();
  /** Waiting for a place, oldest first; a set, so that one that is cancelled leaves from anywhere at no cost. */
  readonly #queue = new Set<ExecutionRecord>();
  readonly #closed = Promise.withResolvers<void>();

  constructor(options: SessionOptions) {
    this.#options = options;
    this.sessionId = options.sessionId;
    this.config = options.config;
    this.weight = options.config.weight;
    this.#cells = new CellSupervisor(options.cells);
    options.machines.add(this.#sessionKey, this);
    this.#actor = createActor(options.machines.session, {
      input: {
        sessionKey: this.#sessionKey,
        graceMs: options.graceMs,
        slackMs: options.slackMs,
        forcedLimitMs: options.limits.forcedLimitMs,
      },
    });
    this.#actor.subscribe({
      complete: () => void this.#free(),
      error: (error) => this.#closed.reject(error),
    });
    this.#actor.start();
    this.#actor.send({ type: 'session.open' });
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

  /** Accepts an execution; it is dispatched when there is a place. */
  admit(request: ExecutionRequest): ExecutionRecord {
    this.requireOpen();
    const record = new ExecutionRecord({
      sessionKey: this.#sessionKey,
      executionKey: nanoid(KEY_CHARS),
      request,
      machine: this.#options.machines.execution,
      limits: this.#options.limits,
    });
    this.#live.set(record.executionKey, record);
    this.#queue.add(record);
    this.#actor.send({ type: 'execution.admitted' });
    let starting = false;
    record.onEvent(({ state }) => {
      if (state !== 'pending' && record.dispatched && !starting) {
        starting = true;
        this.#options.dispatcher.started();
      }
      if (state === 'exited') this.#exited(record);
    });
    this.#options.dispatcher.offer(this);
    return record;
  }

  /** As many run as the session may have. */
  #isFull(): boolean {
    const { maxRunning } = this.config;
    return maxRunning > 0 && this.#actor.getSnapshot().context.active >= maxRunning;
  }

  /** Throws unless the session takes executions. */
  requireOpen(): void {
    if (this.state !== 'running') throw new FailedPreconditionError(`session "${this.sessionId}" is closing`);
  }

  /** Throws when the session was created with another configuration. */
  requireSame(config: CheckedSessionConfiguration): void {
    if (JSON.stringify(config) === JSON.stringify(this.config)) return;
    throw new AlreadyExistsError(`session "${this.sessionId}" exists with another configuration`);
  }

  /** Executions that wait for a place. */
  get queued(): number {
    return this.#queue.size;
  }

  /** Executions that have a guest now. */
  running(): ExecutionRecord[] {
    return [...this.#live.values()].filter(({ measure }) => measure !== undefined);
  }

  dispatchNext(): boolean {
    const [record] = this.#queue;
    if (record === undefined || this.#isFull()) return false;
    this.#queue.delete(record);
    record.dispatched = true;
    this.#actor.send({ type: 'execution.dispatched' });
    record.actor.send({ type: 'execution.dispatch' });
    return true;
  }

  /** Stops everything in the session; resolves when all of it is gone. `graceMs` 0 forces. */
  close(graceMs: number): Promise<void> {
    if (this.state !== 'exited') this.#actor.send({ type: 'session.close', graceMs });
    return this.#closed.promise;
  }

  /** Where an execution's output lies. */
  outputDirectory(record: ExecutionRecord): string {
    return join(this.#options.outputDirectory, this.#sessionKey, record.executionKey);
  }

  #exited(record: ExecutionRecord): void {
    this.#live.delete(record.executionKey);
    this.#queue.delete(record);
    if (record.dispatched) this.#options.dispatcher.exited();
    this.#actor.send({ type: 'execution.exited', dispatched: record.dispatched });
    this.#options.onExited(record);
    // One may have waited for a place in the session, not in the node.
    if (record.dispatched && this.#queue.size > 0) this.#options.dispatcher.offer(this);
  }

  /** Port of the session's machine: passes a command on to every execution that has not exited. */
  command(command: ExecutionsCommand): void {
    if (command.type === 'executions.killCells') {
      this.#cells.killAll();
      return;
    }
    const force = command.type === 'executions.force';
    for (const { actor } of [...this.#live.values()]) {
      const stop = { type: 'execution.stop' as const, reason: 'session_closed' as const };
      if (force) actor.send({ ...stop, signal: 'SIGKILL', graceMs: 0 });
      else actor.send({ ...stop, signal: 'SIGTERM', graceMs: command.graceMs });
    }
  }

  /**
   * Port of an execution's machine: takes it to a cell and back. A stop that comes before the cell is ready ends it
   * there.
   */
  runGuest(executionKey: string, { sendBack, receive }: Guest): void {
    const record = this.#live.get(executionKey);
    if (record?.request === undefined) throw new Error(`no such execution to run: ${executionKey}`);
    const { request } = record;
    const cancelled = new AbortController();
    let place: CellPlace | undefined;

    receive((command) => {
      if (place === undefined) {
        cancelled.abort();
      } else if (command.type === 'guest.signal') {
        place.signal(executionKey, command.signal, command.tree ?? false);
      } else if (command.type === 'guest.kill') {
        place.killGuest(executionKey);
      } else {
        place.killCell();
      }
    });

    const run = (ready: CellPlace) => {
      place = ready;
      const end = () => {
        ready.release();
        void this.#removeWorkspace(executionKey);
      };
      ready.start(this.#startMessage(record, request), {
        started: ({ pid, atMs }) => {
          record.noteStarted(atMs, pid);
          sendBack({ type: 'guest.started' });
        },
        limitReached: (limit, message) => {
          if (limit === 'memory_soft') record.warn(message);
          else sendBack({ type: 'guest.limitReached', limit, message });
        },
        exited: (exit, atMs) => {
          end();
          record.noteExited(atMs);
          sendBack({ type: 'guest.exited', exit });
        },
        lost: (reason, message, usage) => {
          end();
          sendBack({ type: 'guest.lost', reason, message, usage });
        },
      });
      record.request = undefined;
      record.measure = async () => (await ready.measure()).get(executionKey);
      if (record.stdin) record.write = (data, isEnd) => ready.write(executionKey, data, isEnd);
    };
    const fail = (error: Error) => {
      const exit = cancelled.signal.aborted
        ? { exitCode: -1 }
        : { exitCode: -1, cause: 'start_failed' as const, message: error.message };
      sendBack({ type: 'guest.exited', exit });
    };
    const { engine } = specOf(request.language);
    const own = engine === 'javascript' && request.options.isolation === 'process';
    this.#cells.acquire(engine, cancelled.signal, own).then(run, fail);
  }

  #startMessage(record: ExecutionRecord, request: ExecutionRequest): Start {
    const workspace = this.#workspace(record.executionKey);
    const cwd = request.workingDirectory ?? join(workspace, 'cwd');
    const mainPath = resolve(cwd, request.sourceFileName);
    const createCwd = request.workingDirectory === undefined;
    return {
      executionKey: record.executionKey,
      language: request.language,
      code: request.code,
      args: request.args,
      env: request.env,
      cwd,
      mainPath,
      createCwd,
      writeMain: createCwd && mainPath.startsWith(`${cwd}/`),
      tmpDir: join(workspace, 'tmp'),
      outputDir: this.outputDirectory(record),
      stdin: request.stdin,
      limits: limitsOf(request.options),
      signalTree: request.options.signalTree,
    };
  }

  #workspace(executionKey: string): string {
    return join(this.#options.workDirectory, this.#sessionKey, executionKey);
  }

  /** Removes what a guest may have left; `rm` does not follow the symbolic links in it. */
  async #removeWorkspace(executionKey: string): Promise<void> {
    await removeTree(this.#workspace(executionKey));
  }

  async #free(): Promise<void> {
    this.#options.machines.remove(this.#sessionKey);
    await this.#cells.close();
    await removeTree(join(this.#options.workDirectory, this.#sessionKey));
    this.#closed.resolve();
  }
}

/** Removes a directory that a guest has filled as it liked; one deeper than any path can say, by a program that climbs down. */
async function removeTree(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true, maxRetries: 3 });
  } catch {
    await promisify(execFile)('rm', ['-rf', '--', path]).catch(() => {});
  }
}

const MIB = 1024 * 1024;

function limitsOf(options: CheckedOptions): Limits {
  const { cpuTimeLimitMs = 0, memoryLimitMb = 0, memorySoftLimitMb = 0, outputLimitBytes = 0 } = options;
  return {
    cpuTimeMs: BigInt(cpuTimeLimitMs),
    memoryBytes: BigInt(memoryLimitMb * MIB),
    memorySoftBytes: BigInt(memorySoftLimitMb * MIB),
    outputBytes: BigInt(outputLimitBytes),
    outputKill: options.outputPolicy === 'kill',
    processes: options.processLimit ?? 0,
    openFiles: options.openFileLimit ?? 0,
  };
}
