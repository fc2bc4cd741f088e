import { NotFoundError, UnavailableError } from '../errors.ts';
import type { FinishedEntry } from '../journal/entries.ts';
import type { ExecutionRecord } from './execution-record.ts';
import type { CheckedSessionConfiguration } from './requests.ts';
import type { SessionSupervisor } from './session-supervisor.ts';

/** An execution that has not exited, or the little that is kept in memory of one that has. */
export type KnownExecution = ExecutionRecord | FinishedEntry;

/** What a session is called, by its clients and in the state directory. */
export interface SessionName {
  sessionId: string;
  sessionKey: string;
}

/**
 * Every session by its id, and every execution by session and its id. Executions outlive their session.
 */
export class SessionRegistry {
  readonly #sessions = new Map<string, SessionSupervisor>();
  readonly #executions = new Map<string, Map<string, KnownExecution>>();

  /** The session of that id, created if there is none. The same id with another configuration is refused. */
  createSession(
    sessionId: string,
    config: CheckedSessionConfiguration,
    fingerprint: string,
    create: () => SessionSupervisor,
  ): SessionSupervisor {
    const existing = this.#sessions.get(sessionId);
    if (existing !== undefined) {
      if (existing.state !== 'running') throw new UnavailableError(`session "${sessionId}" is closing; try again`);
      existing.requireSame(config, fingerprint);
      return existing;
    }
    const session = create();
    this.addSession(session);
    return session;
  }

  addSession(session: SessionSupervisor): void {
    this.#sessions.set(session.sessionId, session);
  }

  /** Throws when there is no such session. */
  session(sessionId: string): SessionSupervisor {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) throw new NotFoundError(`session "${sessionId}" not found (elidectl session ls)`);
    return session;
  }

  /** True while this very session is open or closing: a later one of its id has another key. */
  isOpen({ sessionId, sessionKey }: SessionName): boolean {
    return this.#sessions.get(sessionId)?.sessionKey === sessionKey;
  }

  sessions(): SessionSupervisor[] {
    return [...this.#sessions.values()];
  }

  /** Forgets a session that has closed; its executions stay. */
  forget(session: SessionSupervisor): void {
    if (this.#sessions.get(session.sessionId) === session) this.#sessions.delete(session.sessionId);
  }

  /** Knows an execution, in place of what was known of it. */
  add(known: KnownExecution): void {
    const { sessionId, executionId } = known;
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

  /** Oldest first; those after the one of that number. */
  executions(sessionId?: string, after = 0): KnownExecution[] {
    const maps = sessionId === undefined ? [...this.#executions.values()] : [this.#executions.get(sessionId)];
    const found = maps.flatMap((executions) => [...(executions?.values() ?? [])]);
    return found.filter(({ number }) => number > after).sort((a, b) => a.number - b.number);
  }

  /** Whether there is any in the session, which may be gone. */
  hasExecutions(sessionId: string): boolean {
    return this.#executions.has(sessionId);
  }

  /** Those that have a guest now; of one session or of all. */
  running(sessionId?: string): ExecutionRecord[] {
    const sessions = sessionId === undefined ? this.sessions() : [this.session(sessionId)];
    return sessions.flatMap((session) => session.running());
  }

  /** Forgets a finished execution. */
  remove(entry: FinishedEntry): void {
    const { sessionId, executionId } = entry;
    const executions = this.#executions.get(sessionId);
    if (executions?.get(executionId) === entry) executions.delete(executionId);
    if (executions?.size === 0) this.#executions.delete(sessionId);
  }
}
