import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, test } from 'vitest';
import { Journal } from '../../src/journal/journal.ts';
import { JournalReader } from '../../src/journal/reader.ts';
import { eventually } from '../support/daemon.ts';
import { accepted, event, fileOf, happened, session, wholeStory, written } from './entries.ts';

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
