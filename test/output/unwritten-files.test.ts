import fs, { closeSync, constants, openSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { OwnFile } from '../../src/output/own-file.ts';
import { unwrittenFiles } from '../../src/output/unwritten-files.ts';
import { temporaryDirectory } from '../support/daemon.ts';

function openFile(path: string, flags: number): OwnFile {
  const fd = openSync(path, flags | constants.O_CREAT);
  onTestFinished(() => closeSync(fd));
  return new OwnFile(fd);
}

test('one look answers all who have asked since the last one began', async () => {
  const directory = temporaryDirectory();
  const written = openFile(join(directory, 'written'), constants.O_RDWR);
  const files = Array.from({ length: 16 }, (_, each) => openFile(join(directory, `${each}`), constants.O_RDONLY));
  const list = vi.spyOn(fs, 'readdirSync');
  syncBuiltinESMExports();
  onTestFinished(() => {
    list.mockRestore();
    syncBuiltinESMExports();
  });

  const answers = await Promise.all(files.map((file) => unwrittenFiles([file, written])));

  for (const [at, file] of files.entries()) {
    expect(answers[at]?.has(file)).toBe(true);
    expect(answers[at]?.has(written)).toBe(false);
  }
  // The first one was asked for when nobody else had.
  expect(list.mock.calls.filter(([path]) => path === '/proc').length).toBe(2);
});
