import { afterEach, expect, test, vi } from 'vitest';
import { createThreadPool, type ThreadPool } from '../../src/cell/thread-context.ts';
import { Harness, WORKER } from './javascript-harness.ts';

const pools: ThreadPool[] = [];
afterEach(async () => {
  vi.useRealTimers();
  await Promise.all(pools.splice(0).map((pool) => pool.close()));
});

function createPool(idleMs?: number): ThreadPool {
  const pool = createThreadPool({ workerUrl: WORKER, ...(idleMs !== undefined && { idleMs }) });
  pools.push(pool);
  return pool;
}

test('a start takes the thread that was booted ahead, and another is booted', async () => {
  const pool = createPool();
  pool.keepWarm(1);
  await vi.waitFor(() => expect(pool.bootedCount).toBe(1), 30_000);

  const first = pool.take();

  expect(first.state).toBe('booted');
  await vi.waitFor(() => expect(pool.bootedCount).toBe(1), 30_000);
  expect(pool.take().threadId).not.toBe(first.threadId);
});

test('without a ceiling nothing is booted ahead', async () => {
  const pool = createPool();

  const context = pool.take();
  context.terminate();
  await context.ended;

  expect(pool.spareCount).toBe(0);
  expect(pool.liveCount).toBe(0);
});

const booted = (pool: ThreadPool, count: number) => vi.waitFor(() => expect(pool.bootedCount).toBe(count), 30_000);

test('spares follow what is in use at once, up to the ceiling', async () => {
  const pool = createPool();
  pool.keepWarm(3);
  expect(pool.spareCount).toBe(1);

  // Each takes a spare that has booted, so that only the use counts.
  let before = 1;
  for (const after of [1, 2, 3, 3]) {
    await booted(pool, before);
    pool.take();
    await booted(pool, after);
    before = after;
  }

  pool.keepWarm(1);
  expect(pool.spareCount).toBe(1);
});

test('a start that comes before its spare has booted makes one more', async () => {
  const pool = createPool();
  pool.keepWarm(3);

  const early = pool.take();
  // By then the pool has seen that others have to wait for this one's turn to boot.
  await new Promise(setImmediate);
  early.terminate();
  await early.ended;

  await booted(pool, 2);
});

test('a spare is made a while after a start, not when its program ends: its end is to be heard of first', async () => {
  const pool = createPool();
  pool.keepWarm(1);
  await booted(pool, 1);
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });

  const program = pool.take();
  program.terminate();
  await program.ended;
  await new Promise(setImmediate);

  expect(pool.spareCount).toBe(0);
  vi.advanceTimersByTime(100);
  expect(pool.spareCount).toBe(1);
});

test('spares are let go when nothing starts', async () => {
  const pool = createPool(50);
  pool.keepWarm(2);
  const context = pool.take();
  context.terminate();

  await vi.waitFor(() => expect(pool.liveCount).toBe(0), 30_000);
});

test('one spare stays while a program runs, however long, and goes when none does', async () => {
  const pool = createPool(1_000_000);
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  pool.keepWarm(2);
  const programs = [pool.take(), pool.take()];
  vi.advanceTimersByTime(100);
  await booted(pool, 2);

  for (let times = 0; times < 2; times += 1) {
    vi.advanceTimersByTime(1_000_000);
    expect(pool.spareCount).toBe(1);
  }
  for (const program of programs) program.terminate();
  await Promise.all(programs.map(({ ended }) => ended));
  vi.advanceTimersByTime(1_000_000);
  vi.useRealTimers();

  expect(pool.spareCount).toBe(0);
  await vi.waitFor(() => expect(pool.liveCount).toBe(0), 30_000);
});

test('spares that fail to boot are not booted without end', async () => {
  const pool = createThreadPool({ workerUrl: '/nowhere/worker.js' });
  pools.push(pool);

  pool.keepWarm(2);
  expect(pool.liveCount).toBeGreaterThan(0);
  await vi.waitFor(() => expect(pool.liveCount).toBe(0), 30_000);

  await pool.take().ended;
  await vi.waitFor(() => expect(pool.liveCount).toBe(0), 30_000);
});

test('no thread runs two programs, and twenty run at once', async () => {
  await using harness = new Harness();
  harness.engine.keepWarm(4);

  const results = await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      harness.run(`globalThis.seen = (globalThis.seen ?? 0) + 1; require('fs').writeFileSync('mine', '${i}');
        setTimeout(() => console.log(seen, require('fs').readFileSync('mine', 'utf8')), 5)`),
    ),
  );

  expect(results.map(({ out, err }) => out + err)).toEqual(Array.from({ length: 20 }, (_, i) => `1 ${i}\n`));
}, 120_000);
