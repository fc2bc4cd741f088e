import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs, { closeSync, existsSync, openSync, truncateSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import { expect, onTestFinished, test, vi } from 'vitest';
import { Spool } from '../../src/output/spool.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { eventually } from '../support/eventually.ts';

/** Appends to a file what it is told, and has others open too. */
function startWriter(script: string, path: string, ...others: string[]) {
  const [fd, ...more] = [path, ...others].map((each) => openSync(each, 'a')) as [number, ...number[]];
  const shell = spawn('sh', ['-c', script], { stdio: ['ignore', fd, 'inherit', 'pipe', ...more] });
  for (const each of [fd, ...more]) closeSync(each);
  const orders = shell.stdio[3] as Writable;
  onTestFinished(() => void orders.destroy());
  return { shell, orders };
}

const APPEND = 'while read -r line <&3; do echo "$line"; done';

/** As a program that was left in the background by another, which is gone. */
async function startOrphan(path: string, ...others: string[]): Promise<{ write(line: string): void; end(): void }> {
  const { shell, orders } = startWriter(`${APPEND} &`, path, ...others);
  await once(shell, 'exit');
  return { write: (line) => orders.write(`${line}\n`), end: () => orders.destroy() };
}

/** Has the spool read, and returns what it has yielded until now. */
function reading(spool: Spool): () => string {
  const given = new AbortController();
  let read = '';
  const done = (async () => {
    for await (const data of spool.read(new Promise(() => {}), given.signal)) read += data;
  })();
  onTestFinished(() => {
    given.abort();
    return done;
  });
  return () => read;
}

test('what a program in the background writes late is read, also where its parent is gone, and its file is removed after it', {
  timeout: 180_000,
}, async () => {
  const path = join(temporaryDirectory(), 'stdout.spool');
  const orphan = await startOrphan(`${path}.0`);
  for (const number of [0, 1, 2]) writeFileSync(`${path}.${number}`, `${number}\n`, { flag: 'a' });
  const read = reading(new Spool(path, false));
  await eventually('what nobody writes to is removed', () => !existsSync(`${path}.1`));

  for (const line of ['late 1', 'late 2', 'late 3']) {
    orphan.write(line);
    await eventually(`${line} is read`, () => read().endsWith(`${line}\n`));
  }
  expect(existsSync(`${path}.0`)).toBe(true);
  orphan.end();
  // How soon depends on how long it takes to look at all processes that there are.
  await eventually('its file is removed', () => !existsSync(`${path}.0`), 120_000);

  expect(read()).toBe('0\n1\n2\nlate 1\nlate 2\nlate 3\n');
  expect(existsSync(`${path}.2`)).toBe(true);
});

/** How often this thread has looked at what there is of processes. */
function looksAtProcesses(): () => number {
  const list = vi.spyOn(fs, 'readdirSync');
  syncBuiltinESMExports();
  onTestFinished(() => {
    list.mockRestore();
    syncBuiltinESMExports();
  });
  return () => list.mock.calls.filter(([path]) => String(path).startsWith('/proc')).length;
}

test('nobody looks for who has the first file, of whoever keeps that to the end', async () => {
  const path = join(temporaryDirectory(), 'stdout.spool');
  for (const number of [0, 1]) writeFileSync(`${path}.${number}`, `${number}\n`);
  const looks = looksAtProcesses();
  const read = reading(new Spool(path, true));
  for (const line of ['more', 'of', 'it']) {
    await eventually('all is read', () => read().endsWith('\n'));
    writeFileSync(`${path}.1`, `${line}\n`, { flag: 'a' });
    await eventually(`${line} is read`, () => read().endsWith(`${line}\n`));
  }
  expect(looks()).toBe(0);

  writeFileSync(`${path}.2`, '2\n');
  await eventually('what nobody writes to is removed', () => !existsSync(`${path}.1`));

  expect(looks()).toBeGreaterThan(0);
  expect(existsSync(`${path}.0`)).toBe(true);
});

test('while it is not known who has what was read, only so many files of it are kept, and those that a process below has', async () => {
  const path = join(temporaryDirectory(), 'stdout.spool');
  const numbers = Array.from({ length: 40 }, (_, number) => number);
  for (const number of numbers) writeFileSync(`${path}.${number}`, 'x');
  // Whose are all others is seen only by a look at all processes, which is not over then.
  const others = numbers.filter((number) => number !== 3).map((number) => `${path}.${number}`) as [string, ...string[]];
  await startOrphan(...others);
  const { orders } = startWriter(APPEND, `${path}.3`);

  const read = reading(new Spool(path, false));
  await eventually('all is read', () => read().length === numbers.length);
  await eventually('what is too much is removed', () => !existsSync(`${path}.6`));
  orders.write('late\n');
  await eventually('what comes late is read', () => read().endsWith('late\n'));

  expect(numbers.filter((number) => existsSync(`${path}.${number}`))).toEqual([3, ...numbers.slice(7)]);
});

test('a file that was begun anew since it was read is not removed before that is read too', async () => {
  const path = join(temporaryDirectory(), 'stdout.spool');
  let size = 60_000;
  const beginAnew = () => writeFileSync(`${path}.0`, 'x'.repeat(--size));
  beginAnew();
  for (const number of [1, 2]) writeFileSync(`${path}.${number}`, `${number}`);
  const [ended, given] = [Promise.withResolvers<void>(), new AbortController()];
  onTestFinished(() => given.abort());
  let read = 0;

  for await (const data of new Spool(path, false).read(ended.promise, given.signal)) {
    if (data.includes('x')) {
      read = data.byteLength;
      // Nobody writes to the second, which is known at the same time of the first.
      if (existsSync(`${path}.1`)) writeFileSync(`${path}.2`, '2', { flag: 'a' });
      else ended.resolve();
    }
    if (data.includes('2')) beginAnew();
  }

  expect(read).toBe(size);
});

test('of a file that somebody has made larger than all disks no more than the newest is read', async () => {
  const path = join(temporaryDirectory(), 'stdout.spool');
  const most = 100 * 2 ** 20;
  writeFileSync(`${path}.0`, 'first');
  truncateSync(`${path}.0`, 2 ** 40);
  writeFileSync(`${path}.0`, 'last', { flag: 'a' });

  let bytes = 0;
  let last = '';
  for await (const data of new Spool(path, true).read(Promise.resolve(), new AbortController().signal)) {
    bytes += data.byteLength;
    last = data.toString('latin1').slice(-4);
    if (bytes > most) break;
  }

  expect(bytes).toBe(most);
  expect(last).toBe('last');
});
