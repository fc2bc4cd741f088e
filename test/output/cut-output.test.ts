import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
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

test('what cannot be cut stays, and harms nobody', () => {
  const directory = temporaryDirectory();
  // A directory is the file that not even root can cut.
  const uncut = join(directory, 'stdout');
  mkdirSync(uncut);
  const { size } = statSync(uncut);
  writeFileSync(join(directory, 'stderr'), 'b'.repeat(size + 100));

  expect(cutOutput(directory, 10)).toEqual({ stdout: size, stderr: 0 });
});

test('what is not there has no length', () => {
  expect(cutOutput(temporaryDirectory(), 10)).toEqual({});
});
