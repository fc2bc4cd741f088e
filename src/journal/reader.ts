import { existsSync } from 'node:fs';
import type { DatabaseSync } from 'node:sqlite';
import { NotFoundError } from '../errors.ts';
import { openDatabase } from './database.ts';
import type { JournaledEvent, OutputBytes } from './entries.ts';
import {
  acceptedOf,
  type ExecutionRow,
  eventOf,
  ForeignJournalError,
  requireOurs,
  type SessionRow,
  sessionOf,
} from './rows.ts';

/** Which states may follow which: those of the machine of executions. A rung, or a warning, repeats its state. */
const FOLLOWING: Record<string, readonly string[]> = {
  pending: ['pending', 'running', 'signaled', 'exited'],
  running: ['running', 'signaled', 'exited'],
  signaled: ['signaled', 'exited'],
  exited: [],
};

/** A journal's file, for reading: beside a daemon that writes it, or without one. */
export class JournalReader implements Disposable {
  readonly #database: DatabaseSync;

  /** Throws a `NotFoundError` when there is no such file, a `ForeignJournalError` when it is none of ours. */
  constructor(path: string) {
    if (!existsSync(path)) throw new NotFoundError(`there is no journal at ${path} (--state-dir)`);
    this.#database = openDatabase(path, { readOnly: true });
    try {
      requireOurs(this.#database, path);
    } catch (error) {
      this.#database.close();
      if (error instanceof ForeignJournalError) throw error;
      throw new ForeignJournalError(`${path} cannot be read: ${(error as Error).message}`, { cause: error });
    }
  }

  /**
   * Every row as an object, sessions first; environment values are not among them, and of output that is kept here only how
   * many bytes it has.
   */
  *export(): Generator<object> {
    // One by one: the journal's log cannot begin anew while a statement is under way, and who reads this may be slow.
    for (const row of this.#database.prepare('SELECT * FROM sessions ORDER BY created_at_ms').all()) {
      yield { type: 'session', ...sessionOf(row as unknown as SessionRow) };
    }
    const next = this.#database.prepare('SELECT * FROM executions WHERE number > ? ORDER BY number LIMIT 1');
    for (let row = next.get(0); row !== undefined; ) {
      const accepted = acceptedOf(row as unknown as ExecutionRow);
      const { number } = accepted;
      yield { type: 'execution', ...accepted, events: this.#events(number), keptOutput: this.#outputBytes(number) };
      row = next.get(number);
    }
  }

  /** What is wrong with it, one line each: with the file, and with what it says. Empty for a sound journal. */
  verify(): string[] {
    const problems: string[] = [];
    try {
      for (const problem of this.#problems()) problems.push(problem);
    } catch (error) {
      problems.push(`it cannot be read to its end: ${(error as Error).message}`);
    }
    return problems;
  }

  *#problems(): Generator<string> {
    const checks = this.#database.prepare('PRAGMA integrity_check').all() as { integrity_check: string }[];
    for (const check of checks) if (check.integrity_check !== 'ok') yield check.integrity_check;
    for (const row of this.#database.prepare('SELECT * FROM executions').iterate()) {
      const { number, execution_id: executionId, exited_at_ms: exitedAtMs } = row as unknown as ExecutionRow;
      const wrong = wrongOf(this.#events(number), exitedAtMs !== null);
      if (wrong !== undefined) yield `execution ${number} ("${executionId}"): ${wrong}`;
    }
    const counts = this.#database.prepare(`
      SELECT sessions.session_id, exited, count(*) AS found FROM sessions JOIN executions USING (session_key)
      WHERE exited_at_ms IS NOT NULL GROUP BY session_key HAVING found > exited`);
    for (const { session_id: sessionId, exited, found } of counts.all()) {
      yield `session "${sessionId}": it counts ${exited} executions that have exited, ${found} are there`;
    }
    const orphans = this.#database.prepare(
      'SELECT DISTINCT number FROM events WHERE number NOT IN (SELECT number FROM executions)',
    );
    for (const { number } of orphans.all()) yield `events of execution ${number}, which is not there`;
    const strays = this.#database.prepare(`
      SELECT number FROM outputs WHERE number NOT IN
        (SELECT number FROM executions WHERE exited_at_ms IS NOT NULL AND output_evicted IS NULL)`);
    for (const { number } of strays.all()) {
      yield `output of execution ${number}, which is not there, has not exited, or lost it to make room`;
    }
  }

  [Symbol.dispose](): void {
    this.#database.close();
  }

  #events(number: number): JournaledEvent[] {
    const rows = this.#database.prepare('SELECT event FROM events WHERE number = ? ORDER BY sequence').all(number);
    return rows.map(({ event }) => eventOf(String(event)));
  }

  #outputBytes(number: number): OutputBytes | undefined {
    const sizes = 'SELECT length(stdout) AS stdout, length(stderr) AS stderr FROM outputs WHERE number = ?';
    const row = this.#database.prepare(sizes).get(number) as unknown as OutputBytes | undefined;
    return row && { ...row };
  }
}

/** What is wrong with the events of one execution. */
function wrongOf(events: JournaledEvent[], hasExited: boolean): string | undefined {
  if (events[0]?.state !== 'pending') return 'its first event is not "pending"';
  let before = 'pending';
  for (const [index, { sequence, state, result }] of events.entries()) {
    if (sequence !== index + 1) return `event ${index + 1} has the sequence number ${sequence}`;
    if (!FOLLOWING[before]?.includes(state)) return `"${state}" follows "${before}"`;
    if ((state === 'exited') !== (result !== undefined)) return `a result belongs to "exited", and to nothing else`;
    before = state;
  }
  if ((before === 'exited') !== hasExited) return `its newest event is "${before}", its row says otherwise`;
  return undefined;
}
