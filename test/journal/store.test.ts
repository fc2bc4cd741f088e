import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { text } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import { now } from '../../src/clock.ts';
import { CELL_OF_OTHER_BOOT, type Entry, type FinishedEntry, type JournaledEvent } from '../../src/journal/entries.ts';
import { Journal } from '../../src/journal/journal.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { finishedEntries } from '../../src/journal/rows.ts';
import { JournalStore } from '../../src/journal/store.ts';
import { vacuumJournal } from '../../src/journal/vacuum.ts';
import type { SealedOutput } from '../../src/output/sealed-output.ts';
import { eventually, temporaryDirectory } from '../support/daemon.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';

const session = (sessionKey: string): Entry => ({
  type: 'session.created',
  session: {
    sessionKey,
    sessionId: `id of ${sessionKey}`,
    config: { weight: 3 } as never,
    fingerprint: 'f',
    created: { atMs: 1, monotonicMs: 1 },
  },
});

const event = (sequence: number, state: JournaledEvent['state']): JournaledEvent => ({
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

const accepted = (number: number): Entry => ({
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

const happened = (number: number, ...args: Parameters<typeof event>): Entry => ({
  type: 'execution.event',
  number,
  event: event(...args),
});

function fileOf(): string {
  return join(temporaryDirectory(), 'journal.db');
}

/** Writes these entries and lets the file go. */
function written(path: string, ...entries: Entry[]): void {
  const { store } = JournalStore.open(path, 'normal');
  store.write(entries);
  store.close();
}

/** What has finished, as a daemon that starts finds it. */
function finishedIn(path: string): FinishedEntry[] {
  const database = new DatabaseSync(path, { readOnly: true });
  try {
    return finishedEntries(database);
  } finally {
    database.close();
  }
}

/** What an execution wrote. */
const output = (stdout: string, stderr = ''): SealedOutput => ({
  stdout: Uint8Array.from(Buffer.from(stdout)),
  stderr: Uint8Array.from(Buffer.from(stderr)),
  marks: new Uint8Array(24).fill(7),
  bornMs: { stdout: 1.25, stderr: 2.5 },
});

const PAGE_BYTES = 4096;

/** Numbers of the pages that hold a table's rows, in their order. */
function leavesOf(path: string, table: string): number[] {
  using database = new DatabaseSync(path, { readOnly: true });
  const leaves = database.prepare("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path");
  return leaves.all(table).map(({ pageno }) => Number(pageno));
}

const wholeStory = [session('a'), accepted(1), happened(1, 2, 'running'), happened(1, 3, 'exited'), accepted(2)];

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

describe('the thread that writes', () => {
  const open = (path: string, failures: (string | undefined)[] = []) =>
    Journal.open(path, 'normal', (failure) => failures.push(failure));

  test('that cannot be made is given up, where the journal was never open', () => {
    const path = fileOf();
    const journal = new URL('../../src/journal/journal.ts', import.meta.url).href;
    const code = `
      import { openSync } from 'node:fs';
      import { Journal } from '${journal}';
      const opened = [];
      try { for (;;) opened.push(openSync('/dev/null')); } catch {}
      const failures = [];
      const opening = Journal.open('${path}', 'normal', (failure) => failures.push(failure));
      opening.catch(({ code, message }) => process.stdout.write(code + ' ' + (message === 'journal: ' + failures.at(-1))));`;

    const shell = ['-c', 'ulimit -n 64; exec "$0" "$@"', process.execPath, '--input-type=module', '-e', code];
    const { stdout, stderr, signal } = spawnSync('sh', shell, { encoding: 'utf8', timeout: 30_000 });

    expect({ stdout, stderr, signal }).toEqual({ stdout: 'startup true', stderr: '', signal: null });
  });

  test('refuses what the daemon cannot read once it is open, and ends', async () => {
    const path = fileOf();
    written(path, ...wholeStory);
    const database = new DatabaseSync(path);
    database.exec('UPDATE executions SET output_bytes = 1 << 60 WHERE number = 1');
    database.close();

    await expect(open(path)).rejects.toMatchObject({
      code: 'startup',
      message: expect.stringMatching(/^journal: .*too large/),
    });

    // Only who is alone with it may leave the mode in which many can use it.
    using other = new DatabaseSync(path, { timeout: 0 });
    expect(() => other.exec('PRAGMA journal_mode = DELETE')).not.toThrow();
  });

  test('says so once each entry is on disk, in order, and many share a transaction', async () => {
    const path = fileOf();
    const { journal } = await open(path);
    const told: number[] = [];

    journal.append(session('a'));
    for (let number = 1; number <= 500; number += 1) journal.append(accepted(number), () => told.push(number));
    expect(told).toEqual([]);
    await journal.written();

    expect(told).toEqual(Array.from({ length: 500 }, (_, index) => index + 1));
    await journal.close();
    using reader = new JournalReader(path);
    expect([...reader.export()]).toHaveLength(501);
  });

  test('what cannot be written is said, and written once it can', async () => {
    const path = fileOf();
    const failures: (string | undefined)[] = [];
    const { journal } = await open(path, failures);
    // Another writer holds the file.
    const other = new DatabaseSync(path);
    other.exec('BEGIN IMMEDIATE');
    let isWritten = false;
    journal.append(session('a'), () => {
      isWritten = true;
    });
    while (failures.length === 0) await new Promise((resolve) => setImmediate(resolve));

    expect(failures).toEqual([expect.stringContaining('locked')]);
    expect(isWritten).toBe(false);
    expect(() => journal.requireWritable()).toThrow(/nothing new is accepted until it can/);
    other.exec('COMMIT');
    other.close();
    await journal.written();

    expect(isWritten).toBe(true);
    expect(() => journal.requireWritable()).not.toThrow();
    await journal.close();
  });

  test.each([
    { durability: 'off', waits: 'nothing' },
    { durability: 'normal', waits: 'the file' },
  ] as const)('with durability $durability whoever appends waits for $waits, and all is written', async (mode) => {
    const { durability } = mode;
    const path = fileOf();
    const { journal } = await Journal.open(path, durability, () => {});
    const other = new DatabaseSync(path);
    other.exec('BEGIN IMMEDIATE');
    let isTold = false;
    journal.append(session('a'), () => {
      isTold = true;
    });
    const late = new Promise((resolve) => setTimeout(resolve, 300, 'late'));

    expect(isTold).toBe(durability === 'off');
    expect((await Promise.race([journal.written(), late])) === 'late').toBe(durability !== 'off');
    other.exec('COMMIT');
    other.close();
    await journal.close();

    expect(isTold).toBe(true);
    using reader = new JournalReader(path);
    expect([...reader.export()]).toHaveLength(1);
  });

  test('with durability off what is on disk can be read while the file cannot be written', async () => {
    const path = fileOf();
    written(path, ...wholeStory);
    const { journal } = await Journal.open(path, 'off', () => {});
    using other = new DatabaseSync(path);
    other.exec('BEGIN IMMEDIATE');
    journal.append(happened(2, 2, 'exited'));

    expect(await journal.finished([1, 2])).toMatchObject([{ number: 1 }]);
    expect([1, 2].map((number) => journal.isUnwritten(number))).toEqual([false, true]);
    other.exec('COMMIT');
    await eventually('the other is written', () => !journal.isUnwritten(2));
    expect(await journal.finished([1, 2])).toMatchObject([{ number: 1 }, { number: 2 }]);
    await journal.close();
  });

  test('an entry that can never be written is said, and holds up nothing behind it', async () => {
    const path = fileOf();
    const failures: (string | undefined)[] = [];
    const refused: string[] = [];
    const { journal } = await Journal.open(
      path,
      'normal',
      (failure) => failures.push(failure),
      (why) => refused.push(why),
    );
    let isTold = false;
    journal.append({ type: 'execution.event', number: null as never, event: event(1, 'pending') }, () => {
      isTold = true;
    });
    journal.append(session('a'));

    await journal.close();

    expect(isTold).toBe(true);
    expect({ failures, refused }).toEqual({ failures: [], refused: [expect.stringContaining('execution.event')] });
    using reader = new JournalReader(path);
    expect([...reader.export()]).toHaveLength(1);
  });

  test('a close also waits for what is appended when the last entries are written', async () => {
    const path = fileOf();
    const { journal } = await open(path);
    journal.append(session('a'), () => {
      journal.append(accepted(1), () => journal.append(accepted(2)));
    });

    await journal.close();

    using reader = new JournalReader(path);
    expect([...reader.export()]).toHaveLength(3);
  });

  test('any number of calls may wait for one entry', async () => {
    const { journal } = await open(fileOf());
    journal.append(session('a'));

    await Promise.all(Array.from({ length: 50_000 }, () => journal.written()));

    await journal.close();
  });

  test('a file it cannot use is a startup error', async () => {
    const path = fileOf();
    mkdirSync(path);
    await expect(open(path)).rejects.toMatchObject({ code: 'startup', message: expect.stringContaining(path) });
  });
});
