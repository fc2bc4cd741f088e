import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cutOutput } from '../../src/output/output-files.ts';
import { temporaryDirectory } from '../support/daemon.ts';

test('of both streams together only so much is kept, from the larger one less', () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, 'stdout'), 'a'.repeat(100));
  writeFileSync(join(directory, 'stderr'), 'b'.repeat(30));

  expect(cutOutput(directory, 50)).toEqual({ stdout: 20, stderr: 30 });

  expect(readFileSync(join(directory, 'stdout'), 'utf8')).toBe('a'.repeat(20));
  expect(readFileSync(join(directory, 'stderr'), 'utf8')).toBe('b'.repeat(30));
});

test('what cannot be cut stays, and harms nobody', async () => {
  const directory = temporaryDirectory();
  // A program that runs is the file that not even root can cut.
  const uncut = join(directory, 'stdout');
  copyFileSync('/bin/sleep', uncut);
  const program = spawn(uncut, ['60']);
  await once(program, 'spawn');
  const { size } = statSync(uncut);
  writeFileSync(join(directory, 'stderr'), 'b'.repeat(size + 100));

  expect(cutOutput(directory, 10)).toEqual({ stdout: size, stderr: 0 });
  program.kill();
});

test.each<[string, (path: string, target: string) => void]>([
  ['a link', (path, target) => symlinkSync(target, path)],
  ['a pipe', (path) => void execFileSync('mkfifo', [path])],
  ['a directory', (path) => mkdirSync(path)],
])('%s has no length, and is not cut', (_, make) => {
  const directory = temporaryDirectory();
  const target = join(directory, 'target');
  writeFileSync(target, 'a'.repeat(100));
  make(join(directory, 'stdout'), target);
  writeFileSync(join(directory, 'stderr'), 'b'.repeat(100));

  expect(cutOutput(directory, 10)).toEqual({ stderr: 10 });

  expect(readFileSync(target, 'utf8')).toBe('a'.repeat(100));
});

test('what is not there has no length', () => {
  expect(cutOutput(temporaryDirectory(), 10)).toEqual({});
});
