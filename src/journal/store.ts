import {
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { bootId, now } from '../clock.ts';
import type { SealedOutput } from '../output/sealed-output.ts';
import { openDatabase } from './database.ts';
import {
  CELL_OF_OTHER_BOOT,
  type Durability,
  type Entry,
  type FinishedExecution,
  type JournaledEvent,
  type UnfinishedContents,
  type UnfinishedExecution,
} from './entries.ts';
import {
  APPLICATION_ID,
  acceptedOf,
  type ExecutionRow,
  eventOf,
  type OutputRow,
  requireOurs,
  SCHEMA,
  SCHEMA_VERSION,
  type SessionRow,
  sessionOf,
} from './rows.ts';

/** What {@link JournalStore.open} found beside a usable journal. */
export interface Opened {
  store: JournalStore;
  contents: UnfinishedContents;
  /**
   * Where a damaged journal was put before this one was begun, what was wrong with it, and how many rows could be read, if
   * that was now.
   */
  setAside: { path: string; why: string; kept?: number } | undefined;
  /** There was none, or it was damaged, and nobody has dealt with what only that one knew: see {@link settleLoss}. */
  isLost: boolean;
}

/** Keeps a write-ahead log from staying as large as it once was, in bytes. */
const LARGEST_LOG_BYTES = 16 * 1024 * 1024;

/**
 * Room that the journal's own files have ahead, in bytes: others may fill the disk to its last byte, and what runs can
 * still end in the journal. An end needs about 1 KiB.
 */
const ROOM_BYTES = 1024 * 1024;

/** How many finished executions get the time of another boot in one transaction. */
const MOVED_AT_ONCE = 1_000;

/** With less than that left on the disk nothing new is begun, in bytes. */
const LEAST_LEFT_BYTES = 1024 * 1024;
/** The same in inodes: a cell needs 6, an execution 7. */
const LEAST_LEFT_INODES = 64;

/** Why nothing new of so many bytes should be begun on the disk that this file is on; undefined while there is room. */
export function fullnessAt(path: string, bytes = 0): string | undefined {
  const { bavail, bsize, files, ffree } = statfsSync(dirname(path));
  const left = bavail * bsize;
  if (left < LEAST_LEFT_BYTES) return `the disk is full: ${left} bytes are left`;
  if (left - bytes < LEAST_LEFT_BYTES) return `the disk is full for ${bytes} bytes: ${left} are left`;
  // A file system that makes inodes as it needs them says that it has none.
  const hasInodes = files === 0 || ffree >= LEAST_LEFT_INODES;
  return hasInodes ? undefined : `the disk is full: ${ffree} inodes are left`;
}

/** Of the files that SQLite makes of one. */
const SUFFIXES = ['', '-wal', '-shm'];

/**
 * That a journal was lost is marked before another is begun: however often a daemon dies before it has dealt with what only
 * that one knew, the next one knows of it. The mark says what a damaged one's name ends with now, and is empty for none.
 */
const markOf = (path: string) => `${path}.lost`;

/** Never writes over a mark: that would empty it first, and on a full disk it would stay so. */
function noteLoss(path: string, ending: string): void {
  if (lossOf(path) === ending) return;
  const begun = `${markOf(path)}.new`;
  writeFileSync(begun, ending, { mode: 0o600, flush: true });
  renameSync(begun, markOf(path));
}

function lossOf(path: string): string | undefined {
  return existsSync(markOf(path)) ? readFileSync(markOf(path), 'utf8') : undefined;
}

/** What only the lost one knew is dealt with. */
export function settleLoss(path: string): void {
  rmSync(markOf(path), { force: true });
}

/** The journal's file: an SQLite database in WAL mode with one writer. Everything here waits for the disk. */
export class JournalStore {
  readonly #database: DatabaseSync;
  readonly #statements: ReturnType<typeof prepareAll>;
  readonly #path: string;
  #strain: string | undefined;

  private constructor(database: DatabaseSync, path: string) {
    this.#database = database;
    this.#statements = prepareAll(database);
    this.#path = path;
    this.recover();
  }

  /** Why nothing new should be begun, though the rest can still be written; undefined when all is well. */
  get strain(): string | undefined {
    return this.#strain;
  }

  /** Sees whether there is room, and makes the journal's own. */
  recover(): void {
    this.#strain = fullnessAt(this.#path);
    if (this.#strain !== undefined) return;
    try {
      this.#makeRoom();
    } catch (error) {
      this.#strain = (error as Error).message;
    }
  }

  /** Free pages in the database, and a log that is used again from its start: neither can be taken by others. */
  #makeRoom(): void {
    const { freelist_count: pages } = this.#database.prepare('PRAGMA freelist_count').get() as Record<string, number>;
    const { page_size: pageBytes } = this.#database.prepare('PRAGMA page_size').get() as Record<string, number>;
    const log = bytesOf(`${this.#path}-wal`);
    if ((pages ?? 0) * (pageBytes ?? 0) >= ROOM_BYTES / 2 && log >= ROOM_BYTES) return;
    this.#database.exec(`
      INSERT INTO room VALUES (zeroblob(${ROOM_BYTES}));
      DELETE FROM room;
      PRAGMA wal_checkpoint(RESTART);
    `);
  }

  /**
   * Opens the file, or begins it. One that is damaged is put aside under a new name, never overwritten; what is begun in its
   * place appears there once all that can be read of it is in it. Throws a {@link ForeignJournalError} for a file that is
   * none of ours or of another version of this program, else the system's error.
   */
  static open(path: string, durability: Durability): Opened {
    const isEmpty = bytesOf(path) === 0;
    // Put aside by a daemon that did not come to the end of it.
    const unread = existsSync(path) ? undefined : lossOf(path);
    try {
      if (unread) throw new DamagedError('it was not read to its end');
      if (isEmpty && bytesOf(`${path}-wal`) > 0) throw new DamagedError('it is empty, and its log is not');
      if (isEmpty) noteLoss(path, lossOf(path) ?? '');
      const opened = JournalStore.#openSound(path, durability);
      const loss = lossOf(path);
      const setAside = loss
        ? { path: path + loss, why: 'an earlier daemon, which was never ready, found it so' }
        : undefined;
      return { ...opened, setAside, isLost: loss !== undefined };
    } catch (error) {
      if (!isDamage(error)) throw error;
      const ending = unread || `.damaged-${new Date().toISOString().replaceAll(/[:.]/g, '-')}`;
      noteLoss(path, ending);
      for (const suffix of SUFFIXES) {
        const [from, to] = [path + suffix, path + ending + suffix];
        if (existsSync(from) && !existsSync(to)) renameSync(from, to);
      }
      const kept = salvage(path + ending, path);
      const setAside = { path: path + ending, why: (error as Error).message, kept };
      return { ...JournalStore.#openSound(path, durability), setAside, isLost: true };
    }
  }

  static #openSound(path: string, durability: Durability): Pick<Opened, 'store' | 'contents'> {
    const database = openSound(path, durability);
    try {
      const store = new JournalStore(database, path);
      return { store, contents: store.contents() };
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /**
   * Writes all of them or, when it throws, none. Entries that were written before may come again. One that can never be
   * written holds up none of the others: it is left out, and returned is why, a line for each.
   */
  write(entries: readonly Entry[]): string[] {
    this.#strain ??= fullnessAt(this.#path);
    try {
      this.#transactFully(() => {
        for (const entry of entries) this.#apply(entry);
      });
      return [];
    } catch (error) {
      if (!isRefusal(error)) throw error;
      return this.#writeEach(entries);
    }
  }

  /** As {@link write}, slowly. */
  #writeEach(entries: readonly Entry[]): string[] {
    let refused: string[] = [];
    this.#transactFully(() => {
      refused = [];
      for (const entry of entries) {
        this.#database.exec('SAVEPOINT entry');
        try {
          this.#apply(entry);
        } catch (error) {
          if (!isRefusal(error)) throw error;
          this.#database.exec('ROLLBACK TO entry');
          refused.push(`${nameOf(entry)}: ${(error as Error).message}`);
        }
        this.#database.exec('RELEASE entry');
      }
    });
    return refused;
  }

  /** As {@link #transact}, with the room that is kept for when the disk is full. */
  #transactFully(act: () => void): void {
    try {
      this.#transact(act);
    } catch (error) {
      if (!isFull(error)) throw error;
      // What is in the log goes to the free pages of the database, and the log begins anew.
      this.#database.exec('PRAGMA wal_checkpoint(RESTART)');
      this.#transact(act);
    }
  }

  /**
   * Keeps the output of finished executions. Returns those whose files are needed no more: what is kept already stays as it
   * is, and what has not exited, was evicted or is unknown is left out. Throws, nothing kept, when there is no room to spare.
   * It is no entry, but a transaction of its own: when it fails, no entry has to wait.
   */
  seal<Finished extends { number: number; output: SealedOutput }>(finished: readonly Finished[]): Finished[] {
    this.recover();
    if (this.#strain !== undefined) throw new Error(this.#strain);
    return this.#transact(() => finished.filter(({ number, output }) => this.#keepOutput(number, output)));
  }

  #keepOutput(number: number, { stdout, stderr, marks, bornMs }: SealedOutput): boolean {
    const { isSealable, keepOutput } = this.#statements;
    if (isSealable.get(number) === undefined) return false;
    // What has neither files nor a row reads as empty, too.
    if (stdout.byteLength + stderr.byteLength > 0)
      keepOutput.run(number, stdout, stderr, marks, bornMs.stdout, bornMs.stderr);
    return true;
  }

  /** The output of a finished execution, if it is kept here. */
  output(number: number): SealedOutput | undefined {
    const row = this.#statements.output.get(number) as OutputRow | undefined;
    if (row === undefined) return undefined;
    const { stdout, stderr, marks, stdout_born_ms: stdoutBornMs, stderr_born_ms: stderrBornMs } = row;
    return { stdout, stderr, marks, bornMs: { stdout: stdoutBornMs, stderr: stderrBornMs } };
  }

  /** All of what `act` changes or, when it throws, nothing. */
  #transact<Value>(act: () => Value): Value {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      const value = act();
      this.#database.exec('COMMIT');
      return value;
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw error;
    }
  }

  /** What a finished execution came to; undefined when it is not known (any more), or cannot be read. */
  finished(number: number): FinishedExecution | undefined {
    try {
      const row = this.#statements.execution.get(number) as ExecutionRow | undefined;
      return row && { ...acceptedOf(row), events: this.#events(number) };
    } catch (error) {
      // Of a damaged file the next daemon makes a sound one; what is no JSON in it would fail each list that has it, for good.
      if (!(error instanceof SyntaxError)) throw error;
      return undefined;
    }
  }

  close(): void {
    this.#database.close();
  }

  #apply(entry: Entry): void {
    const statements = this.#statements;
    switch (entry.type) {
      case 'session.created': {
        const { sessionKey, sessionId, config, fingerprint, created } = entry.session;
        const moment = [created.atMs, created.monotonicMs] as const;
        statements.createSession.run(sessionKey, sessionId, JSON.stringify(config), fingerprint, ...moment);
        break;
      }
      case 'session.closing':
        statements.closeSession.run(JSON.stringify(entry.closing), entry.sessionKey);
        break;
      case 'session.closed':
        statements.removeSession.run(entry.sessionKey);
        break;
      case 'execution.accepted': {
        const { execution, request } = entry;
        const { number, executionKey, sessionKey, sessionId, executionId, language, fingerprint, stdin } = execution;
        const options = JSON.stringify(execution.options);
        const ids = [number, executionKey, sessionKey, sessionId, executionId] as const;
        const warnings = JSON.stringify(execution.warnings);
        const retention = execution.retention === undefined ? null : JSON.stringify(execution.retention);
        statements.accept.run(...ids, language, fingerprint, options, warnings, Number(stdin), retention);
        statements.keepRequest.run(number, JSON.stringify(request));
        statements.addEvent.run(number, entry.event.sequence, JSON.stringify(entry.event));
        break;
      }
      case 'execution.dispatched':
        statements.dispatch.run(entry.cellKey, entry.number);
        break;
      case 'execution.requeued':
        statements.dispatch.run(null, entry.number);
        break;
      case 'execution.event':
        this.#addEvent(entry.number, entry.event);
        break;
      case 'execution.released':
        statements.removeEvents.run(entry.number);
        statements.removeRequest.run(entry.number);
        statements.removeOutput.run(entry.number);
        statements.release.run(entry.number);
        break;
      case 'execution.outputMeasured':
        statements.measureOutput.run(countOf(entry.bytes), entry.number);
        break;
      case 'execution.outputEvicted':
        statements.evictOutput.run(JSON.stringify(entry.bytes), entry.number);
        statements.removeOutput.run(entry.number);
        break;
    }
  }

  #addEvent(number: number, event: JournaledEvent): void {
    const statements = this.#statements;
    statements.addEvent.run(number, event.sequence, JSON.stringify(event));
    if (event.state === 'running' || event.state === 'exited') statements.removeRequest.run(number);
    if (event.state !== 'exited') return;
    const { stdoutBytes = 0, stderrBytes = 0 } = event.result?.usage ?? {};
    const { atMs, monotonicMs } = event;
    const { changes } = statements.exit.run(atMs, monotonicMs, countOf(stdoutBytes + stderrBytes), number);
    if (changes === 1) statements.countExited.run(JSON.stringify({ atMs, monotonicMs }), number);
  }

  #events(number: number): JournaledEvent[] {
    const rows = this.#statements.events.all(number) as { event: string }[];
    return rows.map(({ event }) => eventOf(event));
  }

  /**
   * The machine has started anew, and its monotonic clock with it: every moment gets the time that it has by that one, as
   * the wall clock tells it now. Done again from its beginning when it was not done to its end.
   */
  #moveToThisBoot(): void {
    const { atMs, monotonicMs } = now();
    const { moveFinished, moveSessions, moveUnfinished, moveDispatched, keepBoot, last } = this.#statements;
    // By the clock that counts from now on: what the wall clock has in the future is now.
    const clocks = { now: monotonicMs, begin: atMs - monotonicMs };
    const { last: newest } = last.get() as { last: number | null };
    // A part at a time: all of a large journal would not fit into the room that is kept for a full disk.
    for (let first = 0; first <= (newest ?? -1); first += MOVED_AT_ONCE) {
      this.#transactFully(() => moveFinished.run({ ...clocks, first, end: first + MOVED_AT_ONCE }));
    }
    this.#transactFully(() => {
      moveSessions.run(clocks);
      moveUnfinished.run(clocks);
      moveDispatched.run(CELL_OF_OTHER_BOOT);
      this.#database.exec('DELETE FROM boot');
      keepBoot.run(bootId());
    });
  }

  /** Everything, for a daemon that starts: it throws for what cannot be read of it, also of what that daemon reads itself. */
  contents(): UnfinishedContents {
    const { boot, finishedJson } = this.#statements;
    for (const row of finishedJson.iterate()) for (const json of Object.values(row)) JSON.parse(String(json));
    const { id } = (boot.get() as { id: string } | undefined) ?? {};
    if (id === bootId()) return this.#unfinishedContents();
    // First, as SQLite says of what is no JSON nothing that tells it from another error.
    this.#unfinishedContents();
    this.#moveToThisBoot();
    return this.#unfinishedContents();
  }

  #unfinishedContents(): UnfinishedContents {
    const statements = this.#statements;
    const unfinished = (statements.unfinished.all() as unknown as (ExecutionRow & { cell_key: string | null })[]).map(
      (row): UnfinishedExecution => {
        const { request } = (statements.request.get(row.number) as { request: string } | undefined) ?? {};
        return {
          ...acceptedOf(row),
          cellKey: row.cell_key ?? undefined,
          request: request === undefined ? undefined : JSON.parse(request),
          events: this.#events(row.number),
        };
      },
    );
    const sessions = (statements.sessions.all() as unknown as SessionRow[]).map(sessionOf);
    const { last } = statements.last.get() as { last: number | null };
    return { sessions, unfinished, nextNumber: (last ?? 0) + 1 };
  }
}

function openSound(path: string, durability: Durability): DatabaseSync {
  // Made here, so that nobody else can read it from its first moment on.
  closeSync(openSync(path, 'a', 0o600));
  chmodSync(path, 0o600);
  const database = openDatabase(path, { timeout: 0 });
  try {
    requireOurs(database, path);
    database.exec(`
      PRAGMA journal_mode = WAL;
      PRAGMA synchronous = ${durability.toUpperCase()};
      PRAGMA secure_delete = ON;
      PRAGMA journal_size_limit = ${LARGEST_LOG_BYTES};
    `);
    begin(database);
    const check = database.prepare('PRAGMA quick_check(1)').get() as { quick_check: string };
    if (check.quick_check !== 'ok') throw new DamagedError(check.quick_check);
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

/** The columns of each table that hold JSON. */
const TABLES = {
  boot: [],
  sessions: ['config', 'closing', 'last_exit'],
  executions: ['options', 'warnings', 'retention', 'output_evicted'],
  requests: ['request'],
  events: ['event'],
  outputs: [],
} as const;

/** Begins a journal with what can be read of a damaged one; returns the number of rows. */
function salvage(damaged: string, path: string): number {
  const begun = `${path}.new`;
  for (const suffix of SUFFIXES) rmSync(begun + suffix, { force: true });
  const database = openSound(begun, 'full');
  try {
    const kept = copyReadable(damaged, database);
    // Without its log it is one file.
    database.exec('PRAGMA journal_mode = DELETE');
    renameSync(begun, path);
    return kept;
  } finally {
    database.close();
  }
}

function copyReadable(damaged: string, database: DatabaseSync): number {
  // SQLite would take the log of an empty one for a leftover, and remove it.
  if (bytesOf(damaged) === 0) return 0;
  let kept = 0;
  database.exec('BEGIN IMMEDIATE');
  for (const [table, jsonColumns] of Object.entries(TABLES)) {
    try {
      const from = openDatabase(damaged, { readOnly: true });
      try {
        for (const row of from.prepare(`SELECT * FROM ${table}`).iterate()) {
          try {
            for (const column of jsonColumns) if (row[column] !== null) JSON.parse(String(row[column]));
            const columns = Object.keys(row);
            const places = columns.map(() => '?').join(', ');
            const insert = `INSERT OR REPLACE INTO ${table} (${columns.join(', ')}) VALUES (${places})`;
            database.prepare(insert).run(...Object.values(row));
            kept += 1;
          } catch (error) {
            // This row is of no use; the others may be.
            if (!isRefusal(error)) throw error;
          }
        }
      } finally {
        from.close();
      }
    } catch (error) {
      if (isFull(error)) throw error;
      // The rest of this table cannot be read.
    }
  }
  // Nothing can be said of an execution without its events, nor without its result where it has one; and its number may be
  // another one's soon.
  database.exec(`
    DELETE FROM executions
    WHERE number NOT IN (SELECT number FROM events GROUP BY number HAVING count(*) = max(sequence))
      OR exited_at_ms IS NOT NULL AND number NOT IN (SELECT number FROM events WHERE event ->> 'state' = 'exited');
    DELETE FROM events WHERE number NOT IN (SELECT number FROM executions);
    DELETE FROM requests WHERE number NOT IN (SELECT number FROM executions);
    DELETE FROM outputs WHERE number NOT IN (SELECT number FROM executions)`);
  database.exec('COMMIT');
  return kept;
}

/** Which entry that is, for people. */
function nameOf(entry: Entry): string {
  switch (entry.type) {
    case 'session.created':
      return `${entry.type} of session "${entry.session.sessionId}"`;
    case 'session.closing':
    case 'session.closed':
      return `${entry.type} of ${entry.sessionKey}`;
    case 'execution.accepted':
      return `${entry.type} of execution ${entry.execution.number}`;
    default:
      return `${entry.type} of execution ${entry.number}`;
  }
}

/** A guest can make its output longer than any whole number that a column takes, and that can be read from it again. */
function countOf(bytes: number): number {
  return Math.min(Number.MAX_SAFE_INTEGER, Math.trunc(bytes));
}

/** 0 for a file that is not there. */
function bytesOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

class DamagedError extends Error {}

/** SQLite's result codes that speak of the file's contents: SQLITE_CORRUPT, SQLITE_NOTADB. */
const DAMAGE_CODES = new Set([11, 26]);

/** SQLITE_FULL. */
const FULL_CODE = 13;

/** What no column takes: SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH. */
const REFUSAL_CODES = new Set([18, 19, 20]);

/** Whether an entry is at fault, rather than the file or the disk: another try comes to the same. */
function isRefusal(error: unknown): boolean {
  const { errcode } = error as { errcode?: number };
  // Where SQLite was not asked, there was nothing to ask it with.
  return errcode === undefined || REFUSAL_CODES.has(errcode & 0xff);
}

function isFull(error: unknown): boolean {
  return (Number((error as { errcode?: number }).errcode) & 0xff) === FULL_CODE;
}

function isDamage(error: unknown): boolean {
  if (error instanceof DamagedError || error instanceof SyntaxError) return true;
  return DAMAGE_CODES.has(Number((error as { errcode?: number }).errcode) & 0xff);
}

/** Makes the tables of a journal that has none yet. */
function begin(database: DatabaseSync): void {
  const { user_version: version } = database.prepare('PRAGMA user_version').get() as { user_version: number };
  if (version === SCHEMA_VERSION) return;
  database.exec(`
    BEGIN IMMEDIATE;
    ${SCHEMA}
    PRAGMA application_id = ${APPLICATION_ID};
    PRAGMA user_version = ${SCHEMA_VERSION};
    COMMIT;
  `);
}

function prepareAll(database: DatabaseSync) {
  const prepare = (sql: string): StatementSync => database.prepare(sql);
  return {
    boot: prepare('SELECT id FROM boot'),
    keepBoot: prepare('INSERT INTO boot VALUES (?)'),
    moveFinished: prepare(`
      UPDATE executions SET exited_monotonic_ms = min($now, exited_at_ms - $begin)
      WHERE number >= $first AND number < $end AND exited_at_ms IS NOT NULL`),
    moveSessions: prepare(`
      UPDATE sessions SET created_monotonic_ms = min($now, created_at_ms - $begin),
        closing = json_set(closing, '$.monotonicMs', min($now, json_extract(closing, '$.atMs') - $begin)),
        last_exit = json_set(last_exit, '$.monotonicMs', min($now, json_extract(last_exit, '$.atMs') - $begin))`),
    moveUnfinished: prepare(`
      UPDATE events SET event = json_set(event, '$.monotonicMs', min($now, json_extract(event, '$.atMs') - $begin))
      WHERE number IN (SELECT number FROM executions WHERE exited_at_ms IS NULL)`),
    moveDispatched: prepare('UPDATE executions SET cell_key = ? WHERE exited_at_ms IS NULL AND cell_key IS NOT NULL'),
    createSession: prepare(`
      INSERT OR REPLACE INTO sessions (session_key, session_id, config, fingerprint, created_at_ms, created_monotonic_ms)
      VALUES (?, ?, ?, ?, ?, ?)`),
    closeSession: prepare('UPDATE sessions SET closing = ? WHERE session_key = ?'),
    removeSession: prepare('DELETE FROM sessions WHERE session_key = ?'),
    sessions: prepare('SELECT * FROM sessions ORDER BY created_at_ms'),
    accept: prepare(`
      INSERT OR REPLACE INTO executions
        (number, execution_key, session_key, session_id, execution_id, language, fingerprint, options, warnings, stdin,
          retention)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`),
    keepRequest: prepare('INSERT OR REPLACE INTO requests VALUES (?, ?)'),
    removeRequest: prepare('DELETE FROM requests WHERE number = ?'),
    request: prepare('SELECT request FROM requests WHERE number = ?'),
    addEvent: prepare('INSERT OR REPLACE INTO events VALUES (?, ?, ?)'),
    removeEvents: prepare('DELETE FROM events WHERE number = ?'),
    events: prepare('SELECT event FROM events WHERE number = ? ORDER BY sequence'),
    dispatch: prepare('UPDATE executions SET cell_key = ? WHERE number = ?'),
    exit: prepare(`
      UPDATE executions SET exited_at_ms = ?, exited_monotonic_ms = ?, output_bytes = ?
      WHERE number = ? AND exited_at_ms IS NULL`),
    countExited: prepare(`
      UPDATE sessions SET exited = exited + 1, last_exit = ?
      WHERE session_key = (SELECT session_key FROM executions WHERE number = ?)`),
    release: prepare('DELETE FROM executions WHERE number = ?'),
    measureOutput: prepare('UPDATE executions SET output_bytes = ? WHERE number = ?'),
    evictOutput: prepare('UPDATE executions SET output_evicted = ? WHERE number = ?'),
    isSealable: prepare(`
      SELECT 1 FROM executions WHERE number = ? AND exited_at_ms IS NOT NULL AND output_evicted IS NULL`),
    keepOutput: prepare('INSERT OR IGNORE INTO outputs VALUES (?, ?, ?, ?, ?, ?)'),
    output: prepare('SELECT * FROM outputs WHERE number = ?'),
    removeOutput: prepare('DELETE FROM outputs WHERE number = ?'),
    execution: prepare('SELECT * FROM executions WHERE number = ? AND exited_at_ms IS NOT NULL'),
    finishedJson: prepare(`
      SELECT coalesce(retention, 'null') AS retention, coalesce(output_evicted, 'null') AS output_evicted FROM executions
      WHERE exited_at_ms IS NOT NULL AND (retention IS NOT NULL OR output_evicted IS NOT NULL)`),
    unfinished: prepare('SELECT * FROM executions WHERE exited_at_ms IS NULL ORDER BY number'),
    last: prepare('SELECT max(number) AS last FROM executions'),
  };
}
