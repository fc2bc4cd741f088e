import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { PythonGuest } from '../../src/cell/python-guest.ts';
import { eventually } from '../support/eventually.ts';
import { Host, MB } from './python-harness.ts';

const host = new Host();
const start = host.start.bind(host);

afterAll(() => host[Symbol.asyncDispose]());

test('standard input arrives, and its end', async () => {
  const run = start('import sys\nfor line in sys.stdin: print("got", line, end="")\nprint("end")');

  await run.guest.write(Buffer.from('one\n'), false);
  await run.guest.write(Buffer.from('two\n'), true);

  await run.exited;
  expect(run.stdout()).toBe('got one\ngot two\nend\n');
});

test('without standard input it is at its end', async () => {
  const run = start('import sys, os\nprint(repr(sys.stdin.read()), os.readlink("/proc/self/fd/0"))', { stdin: false });

  await run.exited;

  expect(run.stdout()).toBe("'' /dev/null\n");
});

test('input waits for a program that does not read, and is let go at its end', async () => {
  const run = start('import time\nprint("ready")\ntime.sleep(1000)');
  await eventually('the start', () => run.stdout() === 'ready\n');
  let taken = false;
  const write = run.guest.write(Buffer.alloc(MB), false).then(() => {
    taken = true;
  });
  // A turn of the loop is enough for a pipe that has room.
  await new Promise((resolve) => setImmediate(resolve));
  expect(taken).toBe(false);

  run.guest.kill();

  await run.exited;
  await write;
});

test('input that a program has closed is let go while it runs', async () => {
  const run = start('import os, time\nos.close(0)\nprint("ready")\ntime.sleep(1000)');
  await eventually('the start', () => run.stdout() === 'ready\n');

  await run.guest.write(Buffer.alloc(MB), false);

  expect(run.isOver()).toBe(false);
  run.guest.kill();
  await run.exited;
});

test('large input is passed on whole', async () => {
  const run = start('import sys\nprint(len(sys.stdin.buffer.read()))');

  await run.guest.write(Buffer.alloc(5 * MB), true);

  await run.exited;
  expect(run.stdout()).toBe(`${5 * MB}\n`);
});

test('20,000 lines written before a kill are kept', async () => {
  const run = start('import os\nfor i in range(20000): print(i)\nos.kill(os.getpid(), 9)');

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });

  expect(run.stdout().split('\n')).toHaveLength(20_001);
});

test('streams that somebody else still holds do not keep a program from its end, and what is in them is kept', async () => {
  const run = start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")');
  const pid = await run.started;
  await eventually('the start', () => run.stdout() === 'ready\n');
  const held = [1, 2].map((fd) => openSync(`/proc/${pid}/fd/${fd}`, 'w'));

  await run.guest.write(Buffer.alloc(0), true);
  while (!(run.guest as PythonGuest).isOver) await new Promise((resolve) => setImmediate(resolve));
  // From here on only the limit ends it. Until after that this process is too busy to look at the streams.
  for (const fd of held) writeSync(fd, 'late\n');
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);

  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\nlate\n');
  expect(run.stderr()).toBe('late\n');
  for (const fd of held) closeSync(fd);
});

test('an output file that cannot be written neither stops the program nor the engine', async () => {
  const dir = join(host.root, 'full');
  mkdirSync(dir);
  for (const name of ['stderr', 'marks']) writeFileSync(join(dir, name), '');
  execFileSync('ln', ['-s', '/dev/full', join(dir, 'stdout')]);
  const run = start('import sys\nfor i in range(100000): print(i)\nsys.exit(4)', { outputDir: dir });

  const exit = await run.exited;

  expect(exit).toMatchObject({ exitCode: 4 });
  expect(exit.message).toContain('ENOSPC');
});

test('of rotated files only what could not be written is missing', async () => {
  const dir = mkdtempSync(join(host.root, 'rotated-'));
  const outputFiles = { stdout: join(dir, 'out'), stderr: join(dir, 'err'), maxFiles: 10, maxFileBytes: 1024n };
  const code =
    'import os, sys\nsys.stdin.readline()\nos.write(1, b"x" * 1500)\nsys.stdin.readline()\nprint("there is room")';
  const run = start(code, { outputFiles });
  await run.started;
  // For a moment there is no room for a second file.
  mkdirSync(join(dir, 'out.1'));
  await run.guest.write(Buffer.from('\n'), false);
  await eventually('the first file is full', () => statSync(join(dir, 'out.0')).size === 1024);
  rmdirSync(join(dir, 'out.1'));

  await run.guest.write(Buffer.from('\n'), true);
  const exit = await run.exited;

  expect(readFileSync(join(dir, 'out.1'), 'utf8')).toBe('there is room\n');
  expect(exit).toMatchObject({ exitCode: 0, message: expect.stringContaining('output could not be written') });
});
