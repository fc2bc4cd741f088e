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
  const errors: Error[] = [];

  new DaemonSpawner().spawn('/bin/echo', ['started'], {}, (error) => errors.push(error));

  expect(errors).toEqual([expect.objectContaining({ code: 'ELOOP', message: expect.stringContaining(log) })]);
  expect(readFileSync(join(directory, 'precious'), 'utf8')).toBe('mine');
});

test('a program whose path leads through a file is told of as one that is not there, and nothing is left open', () => {
  const directory = temporaryDirectory();
  vi.stubEnv('TMPDIR', directory);
  writeFileSync(join(directory, 'file'), '');
  const errors: Error[] = [];

  new DaemonSpawner().spawn(join(directory, 'file', 'daemon'), [], {}, (error) => errors.push(error));

  expect(errors).toEqual([expect.objectContaining({ code: 'ENOTDIR' })]);
  expect(openFiles().filter((path) => path.startsWith(directory))).toEqual([]);
});

test('a program that is not there is told of; another one logs', async () => {
  const directory = temporaryDirectory();
  vi.stubEnv('TMPDIR', directory);
  const errors: Error[] = [];
  const onError = (error: Error) => errors.push(error);

  new DaemonSpawner().spawn(join(directory, 'none'), [], {}, onError);
  new DaemonSpawner().spawn('/bin/echo', ['started'], {}, onError);

  await eventually('both are told of', () => errors.length === 1);
  expect(errors).toEqual([expect.objectContaining({ code: 'ENOENT' })]);
  const log = join(directory, `elide-daemon-${process.getuid?.()}.log`);
  await eventually('it has written', () => readFileSync(log, 'utf8') === 'started\n');
});
