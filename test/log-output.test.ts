import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { expect, onTestFinished, test } from 'vitest';
import { LogOutput } from '../src/log-output.ts';
import { temporaryDirectory } from './support/daemon.ts';

/** 100 of them are more than may wait. */
const LINE = `${'x'.repeat(20_000)}\n`;

/** All that is in a pipe. */
function readAll(fd: number): string {
  const bytes = Buffer.alloc(2 ** 20);
  return bytes.toString('latin1', 0, readSync(fd, bytes));
}

test('of a slow reader what has no room is dropped, and how much is said before what follows', async () => {
  const taken: string[] = [];
  let take = () => {};
  const stream = new Writable({
    decodeStrings: false,
    write(line: string, _encoding, done) {
      take = () => {
        taken.push(line);
        done();
      };
    },
  });
  const log = new LogOutput(stream);

  for (let count = 0; count < 100; count += 1) log.write(LINE);
  const waiting = stream.writableLength / LINE.length;
  expect(waiting).toBeGreaterThan(50);
  expect(waiting).toBeLessThan(60);

  for (let count = 0; count < waiting; count += 1) {
    take();
    await new Promise(setImmediate);
  }
  expect(taken).toEqual(Array(waiting).fill(LINE));

  // It reads again: it is told at once, and whatever else there is to say after that.
  log.write('next\n');
  take();
  await new Promise(setImmediate);
  take();
  expect(JSON.parse(taken[waiting] as string)).toMatchObject({ level: 40, dropped: 100 - waiting });
  expect(taken[waiting + 1]).toBe('next\n');
});

test('a line that a file has no room for is dropped, and counted once there is some', () => {
  const directory = temporaryDirectory();
  execFileSync('mkfifo', [join(directory, 'log')]);
  // To whom writes to it, it is a file on a disk that is full until somebody reads.
  const fd = openSync(join(directory, 'log'), constants.O_RDWR | constants.O_NONBLOCK);
  onTestFinished(() => closeSync(fd));
  const line = `${'x'.repeat(999)}\n`;
  const log = new LogOutput(fd);

  for (let count = 0; count < 100; count += 1) log.write(line);
  const before = readAll(fd);
  log.write('next\n');
  const lines = (before + readAll(fd)).trim().split('\n');

  // A notice is short: there may be room for one where there was none for a line.
  const notices = lines.filter((each) => each.startsWith('{')).map((each) => JSON.parse(each));
  const kept = lines.filter((each) => each.startsWith('x')).length;
  expect(kept).toBeLessThan(100);
  expect(notices.reduce((sum, { dropped }) => sum + dropped, 0)).toBe(100 - kept);
  expect(lines.at(-1)).toBe('next');
});

test('nothing is kept for a reader that is gone', async () => {
  const stream = new Writable({ write: (_line, _encoding, done) => done(new Error('EPIPE')) });
  const log = new LogOutput(stream);
  log.write('first\n');
  await new Promise(setImmediate);

  for (let count = 0; count < 100; count += 1) log.write(LINE);

  expect(stream.writableLength).toBeLessThan(LINE.length);
});
