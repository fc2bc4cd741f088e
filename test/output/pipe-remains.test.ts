import { execFileSync } from 'node:child_process';
import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { PipeRemains } from '../../src/output/pipe-remains.ts';
import { temporaryDirectory } from '../support/daemon.ts';

/** What is left in the pipes of a guest: `late` in that of standard output. */
function remains(): PipeRemains & Disposable {
  const directory = temporaryDirectory();
  const [stdout, stderr] = ['out', 'err'].map((name) => {
    const path = join(directory, name);
    execFileSync('mkfifo', [path]);
    const fd = openSync(path, constants.O_RDWR);
    return { fd, inode: fstatSync(fd).ino };
  }) as [{ fd: number; inode: number }, { fd: number; inode: number }];
  writeSync(stdout.fd, 'late');
  const made = new PipeRemains(process.pid, { stdout, stderr });
  const dispose = () => {
    made.close();
    closeSync(stdout.fd);
    closeSync(stderr.fd);
  };
  return Object.assign(made, { [Symbol.dispose]: dispose });
}

test('what is left is appended to what is there', () => {
  using left = remains();
  const directory = temporaryDirectory();
  writeFileSync(join(directory, 'stdout'), 'early ');

  left.save(directory, undefined);

  expect(readFileSync(join(directory, 'stdout'), 'utf8')).toBe('early late');
});

test('what is left is not written to where a link leads', () => {
  using left = remains();
  const directory = temporaryDirectory();
  const target = join(directory, 'target');
  writeFileSync(target, 'its own');
  symlinkSync(target, join(directory, 'stdout'));

  left.save(directory, undefined);

  expect(readFileSync(target, 'utf8')).toBe('its own');
});
