import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setImmediate as turn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { expect, onTestFinished, test } from 'vitest';
import { crowdingOf, watchForStuck } from '../../src/supervisor/stuck-watch.ts';
import { starve } from '../support/starve.ts';

const LIMIT_MS = 100;

function run(command: string): ChildProcess & { pid: number } {
  const child = spawn('sh', ['-c', command], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  return child as ChildProcess & { pid: number };
}

/** How long it has run on a processor, in ms. */
function ranMs(pid: number): number {
  return Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e6;
}

/** After how many ms the watch of these processes says that one is stuck. */
function stuckAfter(
  children: { pid: number }[],
  limitMs = LIMIT_MS,
  isHeldUp = () => false,
  crowding = () => 1,
): Promise<number> {
  const startedMs = performance.now();
  const { promise, resolve } = Promise.withResolvers<number>();
  const end = watchForStuck(
    children.map(({ pid }) => pid),
    limitMs,
    () => resolve(performance.now() - startedMs),
    undefined,
    isHeldUp,
    crowding,
  );
  onTestFinished(end);
  return promise;
}

test('what sleeps, computes or is stopped is stuck once its time is over', async () => {
  const stopped = run('exec sleep 600');
  stopped.kill('SIGSTOP');

  for (const child of [run('exec sleep 600'), run('while :; do :; done'), stopped]) {
    expect(await stuckAfter([child])).toBeGreaterThanOrEqual(LIMIT_MS - 1);
  }
});

test('the time in which one of them waits for a processor does not count', async () => {
  const busy = run('while :; do :; done');
  const idle = run('exec sleep 600');
  const endHogs = await starve(busy.pid);

  const ranBeforeMs = ranMs(busy.pid);
  const starved = stuckAfter([idle, busy], LIMIT_MS);
  const first = await Promise.race([
    starved.then(() => 'starved'),
    stuckAfter([idle], 3 * LIMIT_MS).then(() => 'idle'),
  ]);
  endHogs();
  await starved;
  const hadMs = ranMs(busy.pid) - ranBeforeMs;

  expect(first).toBe('idle');
  // Until the first look, a fifth of the limit, nothing is known.
  expect(hadMs).toBeGreaterThan(LIMIT_MS / 2);
});

test('the time in which something else holds it up does not count', async () => {
  const idle = run('exec sleep 600');
  let isHeldUp = true;

  const heldUp = stuckAfter([idle], LIMIT_MS, () => isHeldUp).then(() => 'held up');
  const first = await Promise.race([heldUp, stuckAfter([idle], 3 * LIMIT_MS).then(() => 'idle')]);
  isHeldUp = false;

  expect(first).toBe('idle');
  expect(await heldUp).toBe('held up');
});

test.each([
  [3, 3],
  [1_000, 10],
  [0.5, 1],
])('what shares each processor with %d threads has its time %d times', async (sharing, times) => {
  const idle = run('exec sleep 600');

  const afterMs = stuckAfter([idle], LIMIT_MS, undefined, () => sharing);

  expect(await afterMs).toBeGreaterThanOrEqual(times * LIMIT_MS - 1);
});

test('what has shared its processors until a moment ago has used its share of the time', async () => {
  const idle = run('exec sleep 600');
  let looks = 0;
  const crowding = () => {
    looks += 1;
    return looks < 20 ? 10 : 1;
  };

  await stuckAfter([idle], LIMIT_MS, undefined, crowding);

  // Of each look, a fifth of the limit, only a tenth had counted until then.
  expect(looks).toBeGreaterThan(20);
});

test('what has told of its end while this process was busy is not stuck', async () => {
  const shared = new Int32Array(new SharedArrayBuffer(8));
  const code = `
    const { parentPort, workerData } = require('node:worker_threads');
    Atomics.wait(workerData, 0, 0);
    parentPort.postMessage('ended');
    Atomics.store(workerData, 1, 1);
    Atomics.notify(workerData, 1);`;
  const telling = new Worker(code, { eval: true, workerData: shared });
  await once(telling, 'online');
  // Timers come next, before messages.
  await turn();
  const said: string[] = [];
  const end = watchForStuck([], 1, () => said.push('stuck'));
  onTestFinished(end);
  const told = once(telling, 'message').then(end);

  Atomics.store(shared, 0, 1);
  Atomics.notify(shared, 0);
  Atomics.wait(shared, 1, 0);
  // All of its time.
  Atomics.wait(shared, 1, 1, 20);
  await told;

  expect(said).toEqual([]);
});

test('the threads of a process that are busy are told from those that sleep', async () => {
  const before = crowdingOf(process.pid);
  const code = "require('node:worker_threads').parentPort.postMessage('ready'); for (;;);";
  const busy = Array.from({ length: 3 * availableParallelism() }, () => new Worker(code, { eval: true }));

  try {
    await Promise.all(busy.map((worker) => once(worker, 'message')));

    expect(crowdingOf(process.pid) - before).toBeGreaterThan(2);
  } finally {
    await Promise.all(busy.map((worker) => worker.terminate()));
  }
});

test('it says nothing once it was ended, and takes a process that is gone for stuck', async () => {
  const idle = run('exec sleep 600');
  const said: string[] = [];
  watchForStuck([idle.pid], LIMIT_MS, () => said.push('ended'))();

  idle.kill('SIGKILL');
  await stuckAfter([idle], 2 * LIMIT_MS);

  expect(said).toEqual([]);
});
