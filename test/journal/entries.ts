import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Entry, FinishedEntry, JournaledEvent } from '../../src/journal/entries.ts';
import { finishedEntries } from '../../src/journal/rows.ts';
import { JournalStore } from '../../src/journal/store.ts';
import type { SealedOutput } from '../../src/output/sealed-output.ts';
import { temporaryDirectory } from '../support/daemon.ts';

export const session = (sessionKey: string): Entry => ({
  type: 'session.created',
  session: {
    sessionKey,
    sessionId: `id of ${sessionKey}`,
    config: { weight: 3 } as never,
    fingerprint: 'f',
    created: { atMs: 1, monotonicMs: 1 },
  },
});

export const event = (sequence: number, state: JournaledEvent['state']): JournaledEvent => ({
  sequence,
  atMs: sequence,
  monotonicMs: sequence,
  state,
  rung: undefined,
  warning: undefined,
  result:
    state === 'exited'
      ? { reason: 'completed', rung: undefined, exitCode: 0, signal: undefined, message: undefined, usage: undefined }
      : undefined,
});

export const accepted = (number: number): Entry => ({
  type: 'execution.accepted',
  execution: {
    number,
    executionKey: `key ${number}`,
    sessionKey: 'a',
    sessionId: 'id of a',
    executionId: `e${number}`,
    language: 'javascript',
    fingerprint: 'f',
    options: { graceMs: 1 } as never,
    warnings: ['one'],
    stdin: true,
    retention: undefined,
  },
  request: { code: 'x', args: [], env: { KEY: 'secret' } } as never,
  event: event(1, 'pending'),
});

export const happened = (number: number, ...args: Parameters<typeof event>): Entry => ({
  type: 'execution.event',
  number,
  event: event(...args),
});

export function fileOf(): string {
  return join(temporaryDirectory(), 'journal.db');
}

/** Writes these entries and lets the file go. */
export function written(path: string, ...entries: Entry[]): void {
  const { store } = JournalStore.open(path, 'normal');
  store.write(entries);
  store.close();
}

/** What has finished, as a daemon that starts finds it. */
export function finishedIn(path: string): FinishedEntry[] {
  const database = new DatabaseSync(path, { readOnly: true });
  try {
    return finishedEntries(database);
  } finally {
    database.close();
  }
}

/** What an execution wrote. */
export const output = (stdout: string, stderr = ''): SealedOutput => ({
  stdout: Uint8Array.from(Buffer.from(stdout)),
  stderr: Uint8Array.from(Buffer.from(stderr)),
  marks: new Uint8Array(24).fill(7),
  bornMs: { stdout: 1.25, stderr: 2.5 },
});

export const wholeStory = [session('a'), accepted(1), happened(1, 2, 'running'), happened(1, 3, 'exited'), accepted(2)];
