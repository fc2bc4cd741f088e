import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, test } from 'vitest';
import { now } from '../../src/clock.ts';
import { CELL_OF_OTHER_BOOT, type Entry } from '../../src/journal/entries.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { JournalStore } from '../../src/journal/store.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';
import { accepted, event, fileOf, finishedIn, happened, output, session, wholeStory, written } from './entries.ts';

describe('what was written', () => {
  test('is there for the next one: sessions, what has not exited with its request, what has in short', () => {
    const path = fileOf();
    written(path, ...wholeStory, { type: 'execution.dispatched', number: 2, cellKey: 'cell' });

    const { store, contents, setAside } = JournalStore.open(path, 'full');

    expect(setAside).toBeUndefined();
    expect(contents).toMatchObject({ nextNumber: 3 });
    expect(contents.sessions).toMatchObject([
      { sessionKey: 'a', config: { weight: 3 }, exited: 1, closing: undefined },
    ]);
    expect(contents.unfinished).toMatchObject([
      {
        number: 2,
        executionId: 'e2',
        stdin: true,
        warnings: ['one'],
        cellKey: 'cell',
        request: { args: [], env: { KEY: 'secret' } },
      },
    ]);
    expect(finishedIn(path)).toMatchObject([
      { number: 1, executionId: 'e1', exited: { atMs: 3, monotonicMs: 3 }, outputEvicted: undefined },
    ]);
    expect(store.finished(1)?.events).toEqual(
      [event(1, 'pending'), event(2, 'running'), event(3, 'exited')].map((expected) =>
        expect.objectContaining(expected),
      ),
    );
    expect(store.finished(2)).toBeUndefined();
    store.close();
  });

  test('has its times by the clock of this start of the machine, as far as the wall clock knows them', () => {
    const path = fileOf();
    const closing = { graceMs: 1, atMs: 7, monotonicMs: 7 };
    const story = [...wholeStory, { type: 'session.closing', sessionKey: 'a', closing } as const];
    written(path, ...story);
    const database = new DatabaseSync(path);
    const soonMs = Date.now() + 3_600_000;
    database.exec(`UPDATE boot SET id = 'another'; UPDATE executions SET exited_at_ms = ${soonMs} WHERE number = 1`);
    database.close();

    const { atMs, monotonicMs } = now();
    for (const daemon of ['the next', 'the one after it']) {
      const { store, contents } = JournalStore.open(path, 'normal');
      store.close();

      const [{ created, lastExit, closing: closed } = {}] = contents.sessions;
      const [pending] = contents.unfinished.flatMap(({ events }) => events);
      for (const moment of [created, lastExit, closed, pending]) {
        const movedMs = monotonicMs - atMs + Number(moment?.atMs);
        // Both clocks are looked at one after the other, here and there.
        expect(Math.abs(Number(moment?.monotonicMs) - movedMs), daemon).toBeLessThan(1_000);
      }
      const [finished] = finishedIn(path);
      expect(finished?.exited.atMs).toBe(soonMs);
      expect(finished?.exited.monotonicMs, daemon).toBeGreaterThanOrEqual(monotonicMs);
      expect(finished?.exited.monotonicMs, daemon).toBeLessThanOrEqual(now().monotonicMs);
    }
  });

  test('tells of the cell that was to start an execution until that waits again, and not over a start of the machine', () => {
    const path = fileOf();
    const dispatched = (number: number): Entry => ({ type: 'execution.dispatched', number, cellKey: 'cell' });
    const cells = () => {
      const { store, contents } = JournalStore.open(path, 'normal');
      store.close();
      return contents.unfinished.map(({ cellKey }) => cellKey);
    };
    written(path, session('a'), ...[1, 2, 3].map((number) => accepted(number)), ...[2, 3].map(dispatched));
    expect(cells()).toEqual([undefined, 'cell', 'cell']);

    written(path, { type: 'execution.requeued', number: 2 });
    expect(cells()).toEqual([undefined, undefined, 'cell']);
    const database = new DatabaseSync(path);
    database.exec("UPDATE boot SET id = 'another'");
    database.close();

    for (const _ of ['the next daemon', 'the one after it']) {
      expect(cells()).toEqual([undefined, undefined, CELL_OF_OTHER_BOOT]);
    }
  });

  test('may come again, and changes nothing then', () => {
    const path = fileOf();
    written(path, ...wholeStory, ...wholeStory.slice(1));
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);

    const { store, contents } = JournalStore.open(path, 'normal');
    store.close();

    expect(contents.unfinished.map(({ number }) => number)).toEqual([2]);
  });

  test('is all but what no column takes, which is named and holds up nothing beside it', () => {
    const path = fileOf();
    const { store } = JournalStore.open(path, 'normal');
    store.write([session('a')]);

    const refused = store.write([
      session('b'),
      { ...accepted(1), request: { toJSON: () => undefined } } as unknown as Entry,
      { type: 'execution.dispatched', number: 1, cellKey: Symbol('cell') as never },
      accepted(2),
    ]);
    store.close();

    expect(refused).toEqual([
      expect.stringMatching(/^execution\.accepted of execution 1: .*constraint failed/),
      expect.stringMatching(/^execution\.dispatched of execution 1: .*cannot be bound/),
    ]);
    const { store: next, contents } = JournalStore.open(path, 'normal');
    next.close();
    expect(contents.sessions.map(({ sessionKey }) => sessionKey)).toEqual(['a', 'b']);
    expect(contents.unfinished.map(({ number }) => number)).toEqual([2]);
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);
  });

  test.each([
    ['2^63 - 1, which a number makes 2^63', 2 ** 63 - 1],
    ['2^60, which a column takes and no reader', 2 ** 60],
  ])('is the end of a guest also where its output is made as long as %s', (_, stdoutBytes) => {
    const path = fileOf();
    const exited = happened(1, 2, 'exited') as Extract<Entry, { type: 'execution.event' }>;
    Object.assign(exited.event.result as object, { usage: { stdoutBytes, stderrBytes: 1 } });
    const measured: Entry = { type: 'execution.outputMeasured', number: 2, bytes: stdoutBytes };
    written(path, session('a'), accepted(1), exited, accepted(2), happened(2, 2, 'exited'), measured);

    const { store } = JournalStore.open(path, 'normal');
    const finished = store.finished(1);
    store.close();

    expect(finished?.events.at(-1)?.result?.usage).toMatchObject({ stdoutBytes });
    const outputBytes = Number.MAX_SAFE_INTEGER;
    expect(finishedIn(path)).toMatchObject([
      { number: 1, outputBytes },
      { number: 2, outputBytes },
    ]);
  });

  test('is gone once it was released', () => {
    const path = fileOf();
    written(
      path,
      ...wholeStory,
      { type: 'execution.released', number: 1 },
      { type: 'session.closed', sessionKey: 'a' },
    );

    const { store, contents } = JournalStore.open(path, 'normal');
    store.close();

    expect(contents).toMatchObject({ sessions: [] });
    expect(finishedIn(path)).toEqual([]);
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);
  });
});

describe('sealed output', () => {
  const evicted: Entry = { type: 'execution.outputEvicted', number: 1, bytes: { stdout: 3, stderr: 3 } };
  const released: Entry = { type: 'execution.released', number: 1 };

  test('is there for the next one as it was, and stays so when it is sealed again', () => {
    const path = fileOf();
    const { store } = JournalStore.open(path, 'normal');
    store.write(wholeStory);
    expect(store.output(1)).toBeUndefined();
    const sealed = { number: 1, output: output('out', 'wrong') };

    expect(store.seal([sealed])).toEqual([sealed]);
    // Files that are half removed by then.
    const again = { number: 1, output: output('', 'wrong') };
    expect(store.seal([again])).toEqual([again]);
    store.close();

    const next = JournalStore.open(path, 'normal');
    expect(next.store.output(1)).toEqual(output('out', 'wrong'));
    next.store.close();
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);
    const rows = [...reader.export()];
    expect(rows).toContainEqual(expect.objectContaining({ executionId: 'e1', keptOutput: { stdout: 3, stderr: 5 } }));
    expect(rows).toContainEqual(expect.objectContaining({ executionId: 'e2', keptOutput: undefined }));
    expect(JSON.stringify(rows)).not.toContain('wrong');
  });

  test('is none of what has not exited, was evicted or is not known', () => {
    const { store } = JournalStore.open(fileOf(), 'normal');
    store.write([...wholeStory, accepted(3), happened(3, 2, 'exited'), { ...evicted, number: 3 } as Entry]);

    expect(store.seal([2, 3, 4].map((number) => ({ number, output: output('x') })))).toEqual([]);

    expect([2, 3, 4].map((number) => store.output(number))).toEqual([undefined, undefined, undefined]);
    store.close();
  });

  test.each([
    ['evicted', evicted],
    ['released', released],
  ])('goes when it is %s', (_, entry) => {
    const path = fileOf();
    const { store } = JournalStore.open(path, 'normal');
    store.write(wholeStory);
    store.seal([{ number: 1, output: output('out') }]);

    store.write([entry]);

    expect(store.output(1)).toBeUndefined();
    store.close();
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);
  });

  test('is copied from a journal that is damaged elsewhere', () => {
    const path = fileOf();
    const { store } = JournalStore.open(path, 'normal');
    store.write(wholeStory);
    store.seal([{ number: 1, output: output('out') }]);
    store.close();
    const database = new DatabaseSync(path);
    database.exec("UPDATE sessions SET config = 'no JSON'");
    database.close();

    const next = JournalStore.open(path, 'normal');

    expect(next.setAside).toBeDefined();
    expect(next.store.output(1)).toEqual(output('out'));
    next.store.close();
  });
});

if (!MAY_MOUNT) console.info('left out, as only root may mount a file system: a full disk');

test.skipIf(!MAY_MOUNT)('on a full disk, times are by the clock of this start of the machine all the same', () => {
  const { directory, fill } = smallDisk(64 * 1024);
  const path = join(directory, 'journal.db');
  const count = 40_000;
  const { store } = JournalStore.open(path, 'normal');
  store.write([session('a')]);
  for (let number = 1; number <= count; number += 1_000) {
    const some = Array.from({ length: 1_000 }, (_, index) => number + index);
    store.write(some.flatMap((each) => [accepted(each), happened(each, 2, 'exited')]));
  }
  store.write([{ type: 'execution.released', number: count }]);
  const database = new DatabaseSync(path);
  database.exec("UPDATE boot SET id = 'another'; PRAGMA wal_checkpoint(TRUNCATE)");
  database.close();
  // Its log has the room that is kept, and no more.
  store.recover();
  expect(store.strain).toBeUndefined();
  fill();

  const { monotonicMs } = now();
  const next = JournalStore.open(path, 'normal');

  expect(next.store.strain).toMatch(/the disk is full: 0 bytes are left/);
  const finished = finishedIn(path);
  expect(finished).toHaveLength(count - 1);
  // At 2 ms of the wall clock's time, which was long before.
  expect(finished.filter(({ exited }) => exited.monotonicMs > monotonicMs - 1e12)).toEqual([]);
  for (const each of [store, next.store]) each.close();
});

test.skipIf(!MAY_MOUNT)('on a disk that others fill to the last byte, ends can still be written', () => {
  const { directory, fill } = smallDisk(16 * 1024);
  const { store } = JournalStore.open(join(directory, 'journal.db'), 'normal');
  store.write([session('a'), ...Array.from({ length: 500 }, (_, index) => accepted(index + 1))]);
  expect(store.strain).toBeUndefined();

  fill();
  for (let number = 1; number <= 500; number += 1) {
    store.write([happened(number, 2, 'running'), happened(number, 3, 'exited')]);
    fill();
  }

  expect(store.strain).toMatch(/the disk is full: 0 bytes are left/);
  // Output can wait for room, in its files.
  expect(() => store.seal([{ number: 1, output: output('out') }])).toThrow('the disk is full');
  rmSync(join(directory, 'ballast'));
  store.recover();
  expect(store.strain).toBeUndefined();
  expect(store.seal([{ number: 1, output: output('out') }])).toHaveLength(1);
  store.close();
  using reader = new JournalReader(join(directory, 'journal.db'));
  expect(reader.verify()).toEqual([]);
  const next = JournalStore.open(join(directory, 'journal.db'), 'normal');
  next.store.close();
  expect(next.contents.unfinished).toEqual([]);
  expect(finishedIn(join(directory, 'journal.db'))).toHaveLength(500);
});

/** Runs with a file system in which only one directory can be written. */
const READ_ONLY = `
  mount --bind "$1" "$1"
  for place in /var/tmp /usr/tmp /tmp; do
    if [ -d $place ]; then mount --rbind $place $place && mount -o remount,bind,ro $place; fi
  done
  cd /tmp
  shift
  exec "$@"`;

test.skipIf(!MAY_MOUNT)('where SQLite finds no room for temporary files, a large journal can be used', () => {
  const path = fileOf();
  const count = 20_000;
  const numbers = Array.from({ length: count }, (_, index) => index + 1);
  written(path, session('a'), ...numbers.flatMap((each) => [accepted(each), happened(each, 2, 'exited')]));
  const database = new DatabaseSync(path);
  database.exec(`
    UPDATE executions SET execution_id = execution_id || hex(zeroblob(100));
    UPDATE boot SET id = 'another'`);
  database.close();
  const source = (name: string) => new URL(`../../src/journal/${name}.ts`, import.meta.url).href;
  const code = `
    import { Journal } from '${source('journal')}';
    import { JournalReader } from '${source('reader')}';
    const { journal, contents } = await Journal.open('${path}', 'normal', () => {});
    await journal.close();
    using reader = new JournalReader('${path}');
    console.log(contents.finished.length, reader.verify());`;

  const within = ['-m', 'sh', '-ec', READ_ONLY, 'sh', dirname(path)];
  const node = [process.execPath, '--input-type=module', '-e', code];
  const { stdout, stderr } = spawnSync('unshare', [...within, ...node], { encoding: 'utf8' });

  expect(stderr).toBe('');
  expect(stdout).toBe(`${count} []\n`);
});
