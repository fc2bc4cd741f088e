import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { removeTree } from '../src/remove-tree.ts';
import { temporaryDirectory } from './support/daemon.ts';

test('many files are removed also where there is no program for it', async () => {
  const path = join(temporaryDirectory(), 'many');
  mkdirSync(path);
  for (let index = 0; index < 250; index += 1) writeFileSync(join(path, `${index}`), '');
  vi.stubEnv('PATH', '/nowhere');
  onTestFinished(() => void vi.unstubAllEnvs());

  expect(await removeTree(path)).toBe(true);

  expect(existsSync(path)).toBe(false);
});
