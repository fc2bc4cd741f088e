import { readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { DaemonSpawner } from '../../src/client/index.ts';
import { eventually, openFiles, temporaryDirectory } from '../support/daemon.ts';

afterEach(() => void vi.unstubAllEnvs());

test('what somebody has put in the place of the log is not written to, and nothing is started', async () => {
  const directory = temporaryDirectory();
  vi.stubEnv('TMPDIR', directory);
  const log = join(directory, `elide-daemon-${process.getuid?.()}.log`);
  writeFileSync(join(directory, 'precious'), 'mine');
  symlinkSync(join(directory, 'precious'), log);

  const told = new DaemonSpawner().spawn('/bin/echo', ['started'], {});

  expect(told).toMatch(/^the daemon cannot be started: ELOOP: /);
  expect(told).toContain(log);
  expect(readFileSync(join(directory, 'precious'), 'utf8')).toBe('mine');
});

test('a program whose path leads through a file is told of as one that is not there, and nothing is left open', () => {
  const directory = temporaryDirectory();
  vi.stubEnv('TMPDIR', directory);
  writeFileSync(join(directory, 'file'), '');

  const told = new DaemonSpawner().spawn(join(directory, 'file', 'daemon'), [], {});

  expect(told).toMatch(/^the daemon cannot be started: .*ENOTDIR/);
  expect(openFiles().filter((path) => path.startsWith(directory))).toEqual([]);
});

test('a program that is not there is told of; another one logs, and its end is told of', async () => {
  const directory = temporaryDirectory();
  vi.stubEnv('TMPDIR', directory);
  const log = join(directory, `elide-daemon-${process.getuid?.()}.log`);
  const start = (path: string) => {
    const spawner = new DaemonSpawner();
    return () => spawner.spawn(path, ['started'], {});
  };
  const [none, echo] = [start(join(directory, 'none')), start('/bin/echo')];

  expect([none(), echo()]).toEqual(['the daemon is starting', 'the daemon is starting']);

  const missing = `the daemon cannot be started: spawn ${join(directory, 'none')} ENOENT`;
  await eventually('both are told of', () => none() === missing && echo() === `the daemon ended with 0, see ${log}`);
  expect(readFileSync(log, 'utf8')).toBe('started\n');
});
