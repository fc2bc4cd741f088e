import { NotFoundError, UnavailableError } from '../errors.ts';
import type { ExecutionRecord } from './execution-record.ts';
import type { CheckedSessionConfiguration } from './requests.ts';
import type { SessionSupervisor } from './session-supervisor.ts';

/** An execution, live or finished, and where its output lies. */
export interface KnownExecution {
  record: ExecutionRecord;
  outputDirectory: string;
}

/**
 * Every session by its id, and every execution by session and its id. Executions outlive their session: they stay
 * queryable until `retain` finished ones are newer.
 */
export class SessionRegistry {
  readonly #sessions = new Map<string, SessionSupervisor>();
  readonly #executions = new Map<string, Map<string, KnownExecution>>();
  readonly #finished = new Set<KnownExecution>();
  readonly #retain: number;
  readonly #onEvicted: (known: KnownExecution) => void;

  constructor(options: { retain: number; onEvicted: (known: KnownExecution) => void }) {
    this.#retain = options.retain;
    this.#onEvicted = options.onEvicted;
  }

  /** The session of that id, created if there is none. The same id with another configuration is refused. */
  createSession(
    sessionId: string,
    config: CheckedSessionConfiguration,
    create: () => SessionSupervisor,
  ): SessionSupervisor {
    const existing = this.#sessions.get(sessionId);
    if (existing !== undefined) {
      if (existing.state !== 'running') throw new UnavailableError(`session "${sessionId}" is closing; try again`);
      existing.requireSame(config);
      return existing;
    }
    const session = create();
    this.#sessions.set(sessionId, session);
    return session;
  }

  /** Throws when there is no such session. */
  session(sessionId: string): SessionSupervisor {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) throw new NotFoundError(`session "${sessionId}" not found (elidectl session ls)`);
    return session;
  }

  sessions(): SessionSupervisor[] {
    return [...this.#sessions.values()];
  }

  /** Forgets a session that has closed; its executions stay. */
  forget(session: SessionSupervisor): void {
    if (this.#sessions.get(session.sessionId) === session) this.#sessions.delete(session.sessionId);
  }

  add(known: KnownExecution): void {
    const { sessionId, executionId } = known.record;
    const executions = this.#executions.get(sessionId) ?? new Map<string, KnownExecution>();
    executions.set(executionId, known);
    this.#executions.set(sessionId, executions);
  }

  find(sessionId: string, executionId: string): KnownExecution | undefined {
    return this.#executions.get(sessionId)?.get(executionId);
  }

  /** Throws when there is no such execution, or no such session. */
  execution(sessionId: string, executionId: string): KnownExecution {
    const known = this.find(sessionId, executionId);
    if (known !== undefined) return known;
    if (!this.#executions.has(sessionId)) this.session(sessionId);
    throw new NotFoundError(`execution "${executionId}" not found in session "${sessionId}" (elidectl ps)`);
  }

  /** Oldest first. */
  executions(sessionId?: string): KnownExecution[] {
    const maps = sessionId === undefined ? [...this.#executions.values()] : [this.#executions.get(sessionId)];
    return maps.flatMap((executions) => [...(executions?.values() ?? [])]);
  }

  /** Those that have a guest now; of one session or of all. */
  running(sessionId?: string): ExecutionRecord[] {
    const sessions = sessionId === undefined ? this.sessions() : [this.session(sessionId)];
    return sessions.flatMap((session) => session.running());
  }

  /** Notes that an execution has exited, and lets go the oldest finished one when there are too many. */
  retain(known: KnownExecution): void {
    this.#finished.add(known);
    const [oldest] = this.#finished;
    if (this.#finished.size <= this.#retain || oldest === undefined) return;
    this.#finished.delete(oldest);
    const { sessionId, executionId } = oldest.record;
    const executions = this.#executions.get(sessionId);
    executions?.delete(executionId);
    if (executions?.size === 0) this.#executions.delete(sessionId);
    this.#onEvicted(oldest);
  }
}
