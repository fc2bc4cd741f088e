import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { text } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import type { Entry } from '../../src/journal/entries.ts';
import { Journal } from '../../src/journal/journal.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { JournalStore } from '../../src/journal/store.ts';
import { vacuumJournal } from '../../src/journal/vacuum.ts';
import { eventually } from '../support/daemon.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';
import { accepted, fileOf, finishedIn, happened, output, session, wholeStory, written } from './entries.ts';

const PAGE_BYTES = 4096;

/** Numbers of the pages that hold a table's rows, in their order. */
function leavesOf(path: string, table: string): number[] {
  using database = new DatabaseSync(path, { readOnly: true });
  const leaves = database.prepare("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path");
  return leaves.all(table).map(({ pageno }) => Number(pageno));
}

describe('a file that is none', () => {
  test.each([
    ['another program', 'CREATE TABLE theirs (a)', /database of another program/],
    ['a newer version', 'PRAGMA user_version = 99', /another version \(schema 99; this one knows 4\)/],
    ['an older version', 'PRAGMA user_version = 3', /another version \(schema 3; this one knows 4\)/],
  ])('of ours but of %s is left alone and named', (_, sql, message) => {
    const path = fileOf();
    if (sql.startsWith('PRAGMA')) written(path);
    const theirs = new DatabaseSync(path);
    theirs.exec(sql);
    theirs.close();
    const before = readFileSync(path);

    expect(() => JournalStore.open(path, 'normal')).toThrow(message);

    expect(readFileSync(path)).toEqual(before);
  });

  test('but garbage is set aside, whole', () => {
    const path = fileOf();
    const garbage = Buffer.alloc(10_000, 'garbage');
    writeFileSync(path, garbage);

    const { store, contents, setAside } = JournalStore.open(path, 'normal');
    store.close();

    expect(contents.sessions).toEqual([]);
    expect(readFileSync(setAside?.path as string)).toEqual(garbage);
  });

  test('any more, because it was emptied beside its log, is set aside with that', () => {
    const path = fileOf();
    const { store } = JournalStore.open(path, 'normal');
    store.write(wholeStory);
    const log = readFileSync(`${path}-wal`);
    store.close();
    truncateSync(path);
    writeFileSync(`${path}-wal`, log);

    const { store: next, contents, setAside, isLost } = JournalStore.open(path, 'normal');
    next.close();

    expect(isLost).toBe(true);
    expect(contents.sessions).toEqual([]);
    expect(setAside?.why).toBe('it is empty, and its log is not');
    expect(readFileSync(`${setAside?.path}-wal`)).toEqual(log);
  });

  test('any more, because a page of it was overwritten, is set aside, and what can be read of it is kept', () => {
    const path = fileOf();
    const many = Array.from({ length: 200 }, (_, index) => accepted(index + 1));
    written(path, session('a'), ...many);
    vacuumJournal(path);
    const bytes = readFileSync(path);
    const before = Buffer.from(bytes);
    // The last pages hold rows, the first ones the schema.
    bytes.fill(0xff, bytes.byteLength - 8192, bytes.byteLength - 4096);
    writeFileSync(path, bytes);
    const damaged = new JournalReader(path);
    const problems = damaged.verify();
    damaged[Symbol.dispose]();

    const { store, contents, setAside } = JournalStore.open(path, 'normal');
    store.close();

    expect(problems.at(-1)).toBe('it cannot be read to its end: database disk image is malformed');
    expect(setAside?.kept).toBeGreaterThan(100);
    expect(contents.sessions).toHaveLength(1);
    expect(contents.unfinished.length).toBeGreaterThan(0);
    expect(readdirSync(join(path, '..')).some((name) => name.startsWith('journal.db.damaged-'))).toBe(true);
    expect(before.byteLength).toBe(bytes.byteLength);
    using reader = new JournalReader(path);
    expect(reader.verify()).toEqual([]);
  });

  test.each(['executions', 'requests', 'events', 'outputs'])(
    'any more, because a page of its %s was overwritten, is salvaged as a sound one that goes on, whichever page it was',
    (table) => {
      const path = fileOf();
      const numbers = Array.from({ length: 180 }, (_, index) => index + 1);
      const finished = numbers.filter((number) => number % 3 === 1);
      const steps = ['pending', 'running', 'signaled', 'signaled', 'exited'] as const;
      const { store: whole } = JournalStore.open(path, 'normal');
      whole.write([session('a'), ...numbers.map((number) => accepted(number))]);
      whole.write(finished.flatMap((number) => steps.map((step, index) => happened(number, index + 1, step))));
      whole.seal(finished.map((number) => ({ number, output: output('x'.repeat(200)) })));
      whole.close();
      vacuumJournal(path);
      const bytes = readFileSync(path);

      const pages = leavesOf(path, table);
      expect(pages.length).toBeGreaterThan(1);
      for (const page of pages) {
        const damaged = fileOf();
        const begin = (page - 1) * PAGE_BYTES;
        writeFileSync(damaged, Buffer.from(bytes).fill(0xff, begin, begin + PAGE_BYTES));

        const { store, contents, setAside } = JournalStore.open(damaged, 'normal');
        const number = contents.nextNumber;
        store.write([accepted(number), happened(number, 2, 'running'), happened(number, 3, 'exited')]);
        const added = store.finished(number);
        store.close();

        expect(setAside?.kept, `page ${page}`).toBeGreaterThan(0);
        expect(added?.events.map(({ state }) => state)).toEqual(['pending', 'running', 'exited']);
        using reader = new JournalReader(damaged);
        expect(reader.verify(), `page ${page}`).toEqual([]);
        using database = new DatabaseSync(damaged, { readOnly: true });
        // What is lost, and what has begun, leaves no environment behind.
        const strays = database.prepare(`
          SELECT count(*) AS count FROM requests
          WHERE number NOT IN (SELECT number FROM executions WHERE exited_at_ms IS NULL)`);
        expect(strays.get(), `page ${page}`).toEqual({ count: 0 });
      }
    },
  );

  /** Five sessions, and twenty executions, of which the odd ones have finished. */
  const keys = ['a', 'b', 'c', 'd', 'e'];
  const numbers = Array.from({ length: 20 }, (_, index) => index + 1);
  const [odd, even] = [1, 0].map((rest) => numbers.filter((number) => number % 2 === rest)) as [number[], number[]];
  const closing = { graceMs: 1, atMs: 7, monotonicMs: 7 };
  const many = [
    ...keys.map(session),
    ...numbers.map((number): Entry => {
      const entry = accepted(number) as Extract<Entry, { type: 'execution.accepted' }>;
      return { ...entry, execution: { ...entry.execution, retention: { executions: 5 } } };
    }),
    ...odd.map((number) => happened(number, 2, 'exited')),
    ...keys.map((sessionKey): Entry => ({ type: 'session.closing', sessionKey, closing })),
  ];

  function change(path: string, sql: string): void {
    using database = new DatabaseSync(path);
    database.exec(sql);
  }

  test.each([
    ['config of a session', "sessions SET config = ? WHERE session_key = 'a'", 'a', 0],
    ['closing of a session', "sessions SET closing = ? WHERE session_key = 'a'", 'a', 0],
    ['last exit of a session', "sessions SET last_exit = ? WHERE session_key = 'a'", 'a', 0],
    ['options', 'executions SET options = ? WHERE number = 2', '', 2],
    ['warnings', 'executions SET warnings = ? WHERE number = 2', '', 2],
    ['retention', 'executions SET retention = ? WHERE number = 2', '', 2],
    ['retention of a finished one', 'executions SET retention = ? WHERE number = 1', '', 1],
    ['evicted output', 'executions SET output_evicted = ? WHERE number = 1', '', 1],
    ['request', 'requests SET request = ? WHERE number = 2', '', 0],
    ['first event', 'events SET event = ? WHERE number = 2', '', 2],
  ])('any more, for JSON that is none as the %s, loses nothing else', async (_, broken, lostKey, lostNumber) => {
    for (const boot of ['this', 'another']) {
      const path = fileOf();
      written(path, ...many);
      change(path, `UPDATE ${broken.replace('?', "'no JSON'")}`);
      if (boot === 'another') change(path, "UPDATE boot SET id = 'another'");

      const { journal, contents, setAside } = await Journal.open(path, 'normal', () => {});
      await journal.close();

      expect(setAside?.why, boot).toMatch(/JSON/);
      expect(contents.sessions.map(({ sessionKey }) => sessionKey)).toEqual(keys.filter((key) => key !== lostKey));
      expect(contents.unfinished.map(({ number }) => number)).toEqual(even.filter((number) => number !== lostNumber));
      expect(contents.finished.map(({ number }) => number)).toEqual(odd.filter((number) => number !== lostNumber));
      using reader = new JournalReader(path);
      expect(reader.verify()).toEqual([]);
    }
  });

  test.each([1, 2])(
    'any more, as event %i of a finished execution is no JSON, answers for all others',
    async (sequence) => {
      const path = fileOf();
      written(path, ...many);
      change(path, `UPDATE events SET event = 'no JSON' WHERE number = 1 AND sequence = ${sequence}`);

      const { journal, setAside } = await Journal.open(path, 'normal', () => {});
      const answered = await journal.finished(odd);
      await journal.close();

      // That is seen only when it is asked for; what finds the journal damaged elsewhere loses it.
      expect(setAside).toBeUndefined();
      expect(answered.map(({ number }) => number)).toEqual(odd.slice(1));
      change(path, "UPDATE sessions SET config = 'no JSON' WHERE session_key = 'e'");
      const next = JournalStore.open(path, 'normal');
      next.store.close();
      expect(next.contents.sessions).toHaveLength(keys.length - 1);
      expect(finishedIn(path).map(({ number }) => number)).toEqual(odd.slice(1));
      using reader = new JournalReader(path);
      expect(reader.verify()).toEqual([]);
    },
  );

  test('any more, and is put aside by a process that is killed meanwhile, is read by the next one', {
    timeout: 240_000,
  }, async () => {
    const count = 3_000;
    const store = new URL('../../src/journal/store.ts', import.meta.url).href;
    let path: string;
    let said = '';
    // Whoever kills it may be late: then it was not meanwhile.
    do {
      path = fileOf();
      written(path, session('a'), ...Array.from({ length: count }, (_, index) => accepted(index + 1)));
      const database = new DatabaseSync(path);
      database.exec("UPDATE sessions SET config = 'no JSON'");
      database.close();
      const code = `import { JournalStore } from '${store}'; JournalStore.open('${path}', 'normal');
        process.getBuiltinModule('node:fs').writeSync(1, 'opened'); setInterval(() => {}, 1000);`;
      const opening = spawn(process.execPath, ['--input-type=module', '-e', code]);
      const output = text(opening.stdout);
      const isAside = () => readdirSync(dirname(path)).some((name) => name.includes('.damaged-'));
      await eventually('it is put aside', isAside);
      opening.kill('SIGKILL');
      said = await output;
    } while (said === 'opened');

    const next = JournalStore.open(path, 'normal');
    next.store.close();

    expect(next.contents).toMatchObject({ nextNumber: count + 1 });
    expect(next.contents.unfinished).toHaveLength(count);
    expect(next.isLost).toBe(true);
  });

  test('any more, and is put aside by processes that find no room to write, is read by the next one', {
    timeout: 240_000,
  }, () => {
    const path = fileOf();
    const count = 3_000;
    written(path, session('a'), ...Array.from({ length: count }, (_, index) => accepted(index + 1)));
    const database = new DatabaseSync(path);
    database.exec("UPDATE sessions SET config = 'no JSON'");
    database.close();
    const store = new URL('../../src/journal/store.ts', import.meta.url).href;
    const code = `import { JournalStore } from '${store}'; JournalStore.open('${path}', 'normal');`;
    const openWithin = (blocks: number) => {
      const shell = ['-c', `ulimit -f ${blocks}; exec "$0" "$@"`, process.execPath, '--input-type=module', '-e', code];
      return spawnSync('sh', shell, { encoding: 'utf8' }).stderr;
    };

    // The first has room to say what it does, the next one for nothing at all.
    for (const blocks of [128, 0]) expect(openWithin(blocks)).toMatch(/disk I\/O error|EFBIG/);
    const next = JournalStore.open(path, 'normal');
    next.store.close();

    expect(next.contents.unfinished).toHaveLength(count);
    expect(next.isLost).toBe(true);
  });

  test('because a directory is there is refused', () => {
    const path = fileOf();
    mkdirSync(path);

    expect(() => JournalStore.open(path, 'normal')).toThrow(/EISDIR/);
  });
});

test.skipIf(!MAY_MOUNT)('a damaged journal waits for room on the disk, and loses nothing of what can be read', () => {
  const { directory, fill } = smallDisk(16 * 1024);
  const [path, ballast] = [join(directory, 'journal.db'), join(directory, 'ballast')];
  const count = 5_000;
  written(path, session('a'), ...Array.from({ length: count }, (_, index) => accepted(index + 1)));
  const database = new DatabaseSync(path);
  database.exec("UPDATE sessions SET config = 'no JSON'");
  database.close();
  fill();
  // Enough to begin with.
  truncateSync(ballast, statSync(ballast).size - 512 * 1024);

  expect(() => JournalStore.open(path, 'normal')).toThrow('full');
  rmSync(ballast);
  const { store, contents, isLost } = JournalStore.open(path, 'normal');
  store.close();

  expect(contents.unfinished).toHaveLength(count);
  expect(isLost).toBe(true);
  expect(readdirSync(directory).filter((name) => /\.damaged-.+Z$/.test(name))).toHaveLength(1);
});
