import type { DatabaseSync } from 'node:sqlite';
import type { AcceptedExecution, FinishedEntry, JournaledEvent, UnclosedSession } from './entries.ts';

/** `PRAGMA application_id`: whose file this is ("elij"). */
export const APPLICATION_ID = 0x656c696a;

/** `PRAGMA user_version`: a journal of another one is left alone. */
export const SCHEMA_VERSION = 4;

export const SCHEMA = `
  CREATE TABLE boot (id TEXT NOT NULL) STRICT;
  CREATE TABLE room (filler BLOB NOT NULL) STRICT;
  CREATE TABLE sessions (
    session_key TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    config TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_at_ms REAL NOT NULL,
    created_monotonic_ms REAL NOT NULL,
    closing TEXT,
    exited INTEGER NOT NULL DEFAULT 0,
    last_exit TEXT
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE executions (
    number INTEGER PRIMARY KEY,
    execution_key TEXT NOT NULL,
    session_key TEXT NOT NULL,
    session_id TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    language TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    options TEXT NOT NULL,
    warnings TEXT NOT NULL,
    stdin INTEGER NOT NULL,
    cell_key TEXT,
    retention TEXT,
    exited_at_ms REAL,
    exited_monotonic_ms REAL,
    output_bytes INTEGER NOT NULL DEFAULT 0,
    output_evicted TEXT
  ) STRICT;
  CREATE INDEX unfinished ON executions (number) WHERE exited_at_ms IS NULL;
  CREATE TABLE requests (number INTEGER PRIMARY KEY, request TEXT NOT NULL) STRICT;
  CREATE TABLE events (
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (number, sequence)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE outputs (
    number INTEGER PRIMARY KEY,
    stdout BLOB NOT NULL,
    stderr BLOB NOT NULL,
    marks BLOB NOT NULL,
    stdout_born_ms REAL NOT NULL,
    stderr_born_ms REAL NOT NULL
  ) STRICT;
`;

/** The file is no journal that this program can use; the message says why. */
export class ForeignJournalError extends Error {
  override readonly name = 'ForeignJournalError';
}

export interface SessionRow {
  session_key: string;
  session_id: string;
  config: string;
  fingerprint: string;
  created_at_ms: number;
  created_monotonic_ms: number;
  closing: string | null;
  exited: number;
  last_exit: string | null;
}

export interface ExecutionRow {
  number: number;
  execution_key: string;
  session_key: string;
  session_id: string;
  execution_id: string;
  language: string;
  fingerprint: string;
  options: string;
  warnings: string;
  stdin: number;
  retention: string | null;
  exited_at_ms: number | null;
}

export interface OutputRow {
  number: number;
  stdout: Uint8Array;
  stderr: Uint8Array;
  marks: Uint8Array;
  stdout_born_ms: number;
  stderr_born_ms: number;
}

export function acceptedOf(row: ExecutionRow): AcceptedExecution {
  return {
    number: row.number,
    executionKey: row.execution_key,
    sessionKey: row.session_key,
    sessionId: row.session_id,
    executionId: row.execution_id,
    language: row.language,
    fingerprint: row.fingerprint,
    options: JSON.parse(row.options),
    warnings: JSON.parse(row.warnings),
    stdin: row.stdin === 1,
    retention: row.retention === null ? undefined : JSON.parse(row.retention),
  };
}

/** An event with every key, those that JSON leaves out included. */
export function eventOf(json: string): JournaledEvent {
  const event = JSON.parse(json) as JournaledEvent;
  const { result } = event;
  return {
    ...event,
    rung: event.rung,
    warning: event.warning,
    result: result && {
      ...result,
      rung: result.rung,
      signal: result.signal,
      message: result.message,
      usage: result.usage,
    },
  };
}

/** A session as its row says. */
export function sessionOf(row: SessionRow): UnclosedSession {
  return {
    sessionKey: row.session_key,
    sessionId: row.session_id,
    config: JSON.parse(row.config),
    fingerprint: row.fingerprint,
    created: { atMs: row.created_at_ms, monotonicMs: row.created_monotonic_ms },
    closing: row.closing === null ? undefined : JSON.parse(row.closing),
    exited: row.exited,
    lastExit: row.last_exit === null ? undefined : JSON.parse(row.last_exit),
  };
}

/** Throws a {@link ForeignJournalError} for a database of another program, or of another version of this one. */
export function requireOurs(database: DatabaseSync, path: string): void {
  const { application_id: id } = database.prepare('PRAGMA application_id').get() as { application_id: number };
  const { user_version: version } = database.prepare('PRAGMA user_version').get() as { user_version: number };
  const { count } = database.prepare('SELECT count(*) AS count FROM sqlite_schema').get() as { count: number };
  if (id !== APPLICATION_ID && count > 0) {
    throw new ForeignJournalError(`${path} is a database of another program`);
  }
  // 0: nothing is in it yet.
  if (version !== 0 && version !== SCHEMA_VERSION) {
    throw new ForeignJournalError(
      `${path} was written by another version (schema ${version}; this one knows ${SCHEMA_VERSION})`,
    );
  }
}

const FINISHED = `
  SELECT number, session_id, execution_id, session_key, execution_key, exited_at_ms, exited_monotonic_ms, output_bytes,
    output_evicted, retention
  FROM executions WHERE exited_at_ms IS NOT NULL ORDER BY exited_monotonic_ms, number`;

type FinishedColumns = [number, string, string, string, string, number, number, number, string | null, string | null];

/** What has finished, in the order in which it exited; there may be very many. */
export function finishedEntries(database: DatabaseSync): FinishedEntry[] {
  const statement = database.prepare(FINISHED);
  statement.setReturnArrays(true);
  return (statement.all() as unknown as FinishedColumns[]).map(
    ([
      number,
      sessionId,
      executionId,
      sessionKey,
      executionKey,
      atMs,
      monotonicMs,
      outputBytes,
      evicted,
      retention,
    ]) => ({
      number,
      sessionId,
      executionId,
      sessionKey,
      executionKey,
      exited: { atMs, monotonicMs },
      outputBytes,
      outputEvicted: evicted === null ? undefined : JSON.parse(evicted),
      retention: retention === null ? undefined : JSON.parse(retention),
    }),
  );
}
