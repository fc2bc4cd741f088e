import { statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { processName } from '../../src/processes.ts';
import { ProcessRecord, readProcessRecord } from '../../src/wire/process-record.ts';
import { temporaryDirectory } from '../support/daemon.ts';

test('the record names those that were added and not removed, whatever was there before, and no more room than for most at a time', () => {
  const path = join(temporaryDirectory(), 'guests');
  new ProcessRecord(path).add('older', 'somebody');
  const record = new ProcessRecord(path);
  expect(readProcessRecord(path)).toEqual([]);
  const own = processName(process.pid) as string;

  record.add('a', own);
  record.add('b', 'boot 2 20');
  record.add('c', 'boot 3 30');
  const { size } = statSync(path);
  record.add('b', 'boot 4 40');
  record.remove('a');
  record.remove('unknown');
  expect(readProcessRecord(path)).toEqual(['boot 4 40', 'boot 3 30']);

  for (let count = 0; count < 1_000; count += 1) {
    record.add(`d${count}`, own);
    record.remove(`d${count}`);
  }
  record.add('d', own);
  expect(readProcessRecord(path)).toEqual([own, 'boot 4 40', 'boot 3 30']);
  expect(statSync(path).size).toBe(size);
});

test('the longest name of a process has room in a line', () => {
  const path = join(temporaryDirectory(), 'guests');
  const most = 2n ** 64n - 1n;
  const longest = `${'b'.repeat(36)} ${2 ** 22} ${most} ${most}:${most}`;
  const record = new ProcessRecord(path);

  record.add('a', longest);
  record.add('b', longest);

  expect(readProcessRecord(path)).toEqual([longest, longest]);
});

test('where there is no record nobody is named', () => {
  expect(readProcessRecord(join(temporaryDirectory(), 'guests'))).toEqual([]);
});
