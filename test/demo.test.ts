import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { processesWith } from './support/processes.ts';

const DEMO = fileURLToPath(new URL('../dist/examples/demo.js', import.meta.url));
const LIMIT_MS = 180_000;

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'elide-test-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

/** Starts the demo with a directory of its own for temporary files. */
function startDemo(more: NodeJS.ProcessEnv = {}): { child: ChildProcess; output: () => string } {
  const env = { ...process.env, TMPDIR: directory, ...more };
  const child = spawn(process.execPath, [DEMO], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (data) => {
      text += data;
    });
  }
  return { child, output: () => text };
}

test('the demo ends by itself, with every result as it should be and nothing left', { timeout: LIMIT_MS }, async () => {
  const { child, output } = startDemo();

  const [code] = await once(child, 'close');

  expect(output()).toContain('ended as they should.');
  expect(output()).toMatch(/^cleanup +javascript +cancelled +graceful +3 /m);
  expect(output()).toMatch(/^stubborn-js +javascript +cancelled +forced +137 /m);
  expect(output()).toMatch(/^overtime +javascript +timed_out +graceful +143 /m);
  expect(output()).toMatch(/\| tick 10 of 10$/m);
  expect(output()).toMatch(/^Nothing left behind: \d+ processes have ended/m);
  expect(code).toBe(0);
  expect(await readdir(directory)).toEqual([]);
  expect(processesWith(directory)).toEqual([]);
});

test('the demo shows the rest where there is no Python', { timeout: LIMIT_MS }, async () => {
  const { child, output } = startDemo({ PATH: directory });

  const [code] = await once(child, 'close');

  expect(output()).toMatch(/^Python is not shown: python3: not found/m);
  expect(output()).toContain('All 6 ended as they should.');
  expect(code).toBe(0);
});

test('the demo leaves nothing behind when it is interrupted', { timeout: LIMIT_MS }, async () => {
  const { child, output } = startDemo();
  while (!output().includes('| tick 2')) await once(child.stdout as NodeJS.EventEmitter, 'data');

  child.kill('SIGINT');
  const [code] = await once(child, 'close');

  expect(output()).toContain('demo: SIGINT: stopping');
  expect(output()).toMatch(/^Nothing left behind: \d+ processes have ended/m);
  expect(code).toBe(130);
  expect(await readdir(directory)).toEqual([]);
  expect(processesWith(directory)).toEqual([]);
});

test('the demo leaves nothing behind when nobody reads it any more', { timeout: LIMIT_MS }, async () => {
  const { child } = startDemo();
  const exited = once(child, 'exit');
  await once(child.stdout as NodeJS.EventEmitter, 'data');

  for (const stream of [child.stdout, child.stderr]) stream?.destroy();
  const [code] = await exited;

  expect(code).toBe(1);
  expect(await readdir(directory)).toEqual([]);
  expect(processesWith(directory)).toEqual([]);
});
