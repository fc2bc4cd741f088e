import { statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import type { Entry } from '../../src/journal/entries.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { JournalStore } from '../../src/journal/store.ts';
import { vacuumJournal } from '../../src/journal/vacuum.ts';
import { accepted, fileOf, happened, session, written } from './entries.ts';

test('verify names what is wrong', () => {
  const path = fileOf();
  written(path, session('a'), accepted(1), accepted(2), accepted(3), accepted(4), happened(4, 2, 'running'));
  written(path, happened(1, 3, 'running'), happened(3, 2, 'exited'), happened(3, 3, 'running'));
  const database = new DatabaseSync(path);
  database.exec(`
    DELETE FROM events WHERE number = 2;
    DELETE FROM executions WHERE number = 4;
    UPDATE sessions SET exited = 0;
    INSERT INTO outputs VALUES (2, x'', x'', x'', 0, 0), (3, x'', x'', x'', 0, 0), (5, x'', x'', x'', 0, 0)`);
  database.close();

  using reader = new JournalReader(path);

  expect(reader.verify()).toEqual([
    'execution 1 ("e1"): event 2 has the sequence number 3',
    'execution 2 ("e2"): its first event is not "pending"',
    'execution 3 ("e3"): "running" follows "exited"',
    'session "id of a": it counts 0 executions that have exited, 1 are there',
    'events of execution 4, which is not there',
    'output of execution 2, which is not there, has not exited, or lost it to make room',
    'output of execution 5, which is not there, has not exited, or lost it to make room',
  ]);
});

test('an export that nobody reads on holds up no log of the journal', () => {
  const path = fileOf();
  const { store } = JournalStore.open(path, 'normal');
  const count = 1_200;
  store.write([session('a'), ...Array.from({ length: count }, (_, index) => accepted(index + 1))]);
  using reader = new JournalReader(path);
  const rows = reader.export() as Generator<{ number?: number }>;
  const numbers = [rows.next(), rows.next()].map(({ value }) => value?.number);

  store.write([{ type: 'execution.released', number: 700 }]);
  using other = new DatabaseSync(path);

  expect(other.prepare('PRAGMA wal_checkpoint(TRUNCATE)').get()).toMatchObject({ busy: 0 });
  numbers.push(...Array.from(rows, ({ number }) => number));
  const all = Array.from({ length: count }, (_, index) => index + 1);
  expect(numbers).toEqual([undefined, ...all.filter((number) => number !== 700)]);
  store.close();
});

test('a vacuum makes the file small again', () => {
  const path = fileOf();
  const many = Array.from({ length: 2_000 }, (_, index) => accepted(index + 1));
  written(path, session('a'), ...many);
  written(path, ...many.map((_, index): Entry => ({ type: 'execution.released', number: index + 1 })));

  const { before, after } = vacuumJournal(path);

  expect(after).toBeLessThan(before / 4);
  expect(statSync(path).size).toBe(after);
});
