import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { ExecutionSummary } from '../../src/client/convert.ts';
import { eventually } from '../support/daemon.ts';
import { holdUp } from '../support/starve.ts';
import { fill, limited } from './faults.ts';
import { FaultNode } from './node.ts';

/** Real file systems of their own, which only root may mount. */
const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may mount a file system: full, broken and read-only disks');
const DISK_MB = 32;
const DEADLINE_MS = 4_000;
/** For what is answered at once. */
const QUICK_MS = 30_000;
const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

/**
 * The error that a snippet is refused with; undefined when it is accepted. One that was taken up as the disk got full waits
 * for room, as what it has begun cannot be taken back: its deadline is its answer.
 */
async function refusalOf(
  node: FaultNode,
  executionId: string,
  deadlineMs = DEADLINE_MS,
): Promise<{ code: string; message: string } | undefined> {
  const snippet = { sessionId: 's', executionId, language: 'javascript', code: '0' };
  return node.client.executeSnippet(snippet, { deadlineMs }).then(
    () => undefined,
    (error) => error,
  );
}

test.skipIf(!isRoot)('on a full disk new work is refused, and all goes on by itself when there is room', async () => {
  await using node = await FaultNode.start({}, { diskMb: DISK_MB });
  const ballast = join(node.root, 'ballast');
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });

  fill(ballast);
  // The first that finds no room is still accepted, with the room that is kept for the ends of what runs.
  let refusal: Awaited<ReturnType<typeof refusalOf>>;
  let count = 0;
  await eventually('new work is refused', async () => {
    fill(`${ballast}-2`);
    count += 1;
    refusal = await refusalOf(node, `full-${count}`);
    return refusal?.code === 'resource_exhausted';
  });
  expect(refusal?.message).toMatch(/^the journal cannot be written \(.*(full|ENOSPC)/);
  const cancelled = node.client.cancelExecution('s', 'e', { graceMs: 0 });
  rmSync(`${ballast}-2`);
  rmSync(ballast);
  await cancelled;
  const { result } = await node.client.wait('s', 'e', { timeoutMs: QUICK_MS });

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
  expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
  await node.restart();
  expect((await node.client.wait('s', 'e')).result).toEqual(result);
});

test.skipIf(!isRoot)('a snippet that the disk has no room for is refused, and holds up nothing', async () => {
  await using node = await FaultNode.start({}, { diskMb: 3 * DISK_MB });
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });
  const { bavail, bsize } = statfsSync(node.root);
  const large = {
    sessionId: 's',
    executionId: 'large',
    language: 'javascript',
    code: `/*${'x'.repeat(10 * 2 ** 20)}*/`,
  };

  writeFileSync(join(node.root, 'ballast'), Buffer.alloc(bavail * bsize - 5 * 2 ** 20));
  const refusal = await node.client.executeSnippet(large, { deadlineMs: QUICK_MS }).catch((error) => error);
  const small = await refusalOf(node, 'small', QUICK_MS);
  await node.client.cancelExecution('s', 'e', { graceMs: 0 }, { deadlineMs: QUICK_MS });
  const { result } = await node.client.wait('s', 'e', { deadlineMs: QUICK_MS });

  const message = /^the journal cannot be written \(the disk is full for \d+ bytes: \d+ are left\)/;
  expect(refusal).toMatchObject({ code: 'resource_exhausted', message: expect.stringMatching(message) });
  expect(small).toBeUndefined();
  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  rmSync(join(node.root, 'ballast'));
  await node.client.executeSnippet(large);
  expect((await node.client.wait('s', 'large')).result?.reason).toBe('completed');
});

test.skipIf(!isRoot)('what waits while the disk is full stays, and runs once there is room', async () => {
  await using node = await FaultNode.start({ maxRunning: 2 }, { diskMb: DISK_MB });
  const { client } = node;
  await client.createSession('s');
  for (const executionId of ['e', 'other']) await node.ready({ executionId, code: IDLE });
  const javascript = { language: 'javascript', code: "console.log('done')" };
  const waiting = [
    { executionId: 'thread', ...javascript },
    { executionId: 'process', ...javascript, isolation: 'process' as const },
    { executionId: 'python', language: 'python', code: "print('done')" },
  ];
  for (const snippet of waiting) await client.executeSnippet({ sessionId: 's', ...snippet });
  const ballast = join(node.root, 'ballast');

  fill(ballast);
  const ends = [];
  for (const executionId of ['e', 'other']) {
    await client.cancelExecution('s', executionId, { graceMs: 0 }, { deadlineMs: QUICK_MS });
    ends.push((await client.wait('s', executionId, { timeoutMs: QUICK_MS })).result);
  }
  const { counts } = await client.getSession('s');
  rmSync(ballast);

  expect(counts).toEqual({ pending: waiting.length, running: 0, exited: 2 });
  for (const end of ends) expect(end).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  for (const { executionId } of waiting) {
    expect((await client.wait('s', executionId)).result).toMatchObject({ reason: 'completed', exitCode: 0 });
    expect(await node.stdout(executionId)).toBe('done\n');
  }
});

test.skipIf(!isRoot)(
  'on a disk without inodes new work is refused, what runs ends, and all goes on when there are some',
  async () => {
    await using node = await FaultNode.start({}, { diskMb: DISK_MB, inodes: 500 });
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: IDLE });
    await node.ready({ executionId: 'writes', code: `setInterval(() => console.log('x'), 20); ${IDLE}` });

    const ballast = exhaust(node, 'inodes');
    const { stdoutBytes } = await node.client.getExecutionStatus('s', 'writes');
    const refused = await refusalOf(node, 'refused', QUICK_MS);
    const session = await node.client.createSession('new').catch((error) => error);
    await node.client.cancelExecution('s', 'e', { graceMs: 0 });
    const { result } = await node.client.wait('s', 'e', { deadlineMs: QUICK_MS });
    await eventually('it writes on', async () => {
      return (await node.client.getExecutionStatus('s', 'writes')).stdoutBytes > stdoutBytes;
    });
    rmSync(ballast, { recursive: true });

    for (const error of [refused, session]) {
      expect(error).toMatchObject({
        code: 'resource_exhausted',
        message: expect.stringMatching(
          /^the journal cannot be written \(the disk is full: \d inodes are left\); nothing new/,
        ),
      });
    }
    expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
    await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
    expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
    await node.restart();
    expect((await node.client.wait('s', 'e')).result).toEqual(result);
    expect((await node.client.getExecutionStatus('s', 'writes')).state).toBe('running');
  },
);

/** Uses up a disk, by bytes or by inodes; returns what to remove for there to be room again. */
function exhaust(node: FaultNode, what: 'bytes' | 'inodes'): string {
  const ballast = join(node.root, 'ballast');
  if (what === 'bytes') {
    fill(ballast);
    return ballast;
  }
  mkdirSync(ballast);
  for (let count = 0; ; count += 1) {
    try {
      closeSync(openSync(join(ballast, String(count)), 'w'));
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' });
      return ballast;
    }
  }
}

describe.skipIf(!isRoot)('a daemon that starts on a disk without', () => {
  test.each(['bytes', 'inodes'] as const)(
    '%s takes up what there is, refuses new work, and goes on by itself',
    async (what) => {
      await using node = await FaultNode.start({}, { diskMb: DISK_MB, inodes: 500 });
      await node.client.createSession('s');
      await node.client.executeSnippet({
        sessionId: 's',
        executionId: 'done',
        language: 'javascript',
        code: "console.log('done')",
      });
      const done = await node.client.wait('s', 'done');
      await node.ready({ executionId: 'e', code: IDLE });
      await node.end();
      const ballast = exhaust(node, what);

      await node.start();

      await requireReads(node, done, 'e');
      expect(await refusalOf(node, 'refused', QUICK_MS)).toMatchObject({
        code: 'resource_exhausted',
        message: expect.stringContaining('the disk is full'),
      });
      await node.client.cancelExecution('s', 'e', { graceMs: 0 });
      expect((await node.client.wait('s', 'e', { deadlineMs: QUICK_MS })).result).toMatchObject({
        reason: 'cancelled',
      });
      rmSync(ballast, { recursive: true });
      await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
      expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
    },
  );

  test.each(['bytes', 'inodes'] as const)(
    '%s and has never been there says so, and starts once there is room',
    async (what) => {
      await using node = await FaultNode.start({}, { diskMb: DISK_MB, inodes: 500 });
      await node.end('SIGTERM');
      rmSync(node.stateDir, { recursive: true });
      const ballast = exhaust(node, what);

      const refused = await node.start().catch((error: Error) => error.message);
      rmSync(ballast, { recursive: true });
      await node.start();

      expect(refused).toMatch(/^elide-daemon: .*(ENOSPC|full)/m);
      await node.client.createSession('s');
    },
  );
});

test.skipIf(!isRoot)(
  'a daemon that starts on a disk without room for the program of its cells takes up what there is, and runs what is installed',
  async () => {
    await using node = await FaultNode.start({}, { diskMb: DISK_MB });
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: IDLE });
    await node.end();
    // As one of a newer version finds it.
    const programs = join(node.stateDir, 'daemon', 'programs');
    rmSync(programs, { recursive: true });
    const ballast = exhaust(node, 'bytes');

    await node.start();

    expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
    expect(node.log).toMatch(
      new RegExp(`program of cells cannot be put into ${programs} \\(ENOSPC: [^)]+\\): they run`),
    );
    rmSync(ballast);
    await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
    expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
    expect(readdirSync(programs)).toEqual([]);
    await node.restart();
    expect(readdirSync(programs)).toHaveLength(1);
  },
);

test.skipIf(!isRoot)('on a read-only disk a daemon says so and ends, and the next one finds all', async () => {
  await using node = await FaultNode.start({}, { diskMb: DISK_MB });
  await node.client.createSession('s');
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code: '0' });
  const before = await node.client.wait('s', 'e');
  await node.end('SIGTERM');

  execFileSync('mount', ['-o', 'remount,ro', node.root]);
  const refused = await node.start().catch((error: Error) => error.message);
  execFileSync('mount', ['-o', 'remount,rw', node.root]);
  await node.start();

  expect(refused).toMatch(/^elide-daemon: journal: EROFS: read-only file system/m);
  expect(await node.client.wait('s', 'e')).toEqual(before);
});

/** Everything that reads goes on: of what ran before, of what runs, and of what lies in the journal only. */
async function requireReads(node: FaultNode, done: ExecutionSummary, running: string): Promise<void> {
  const quick = { deadlineMs: QUICK_MS };
  expect(await node.client.wait('s', done.executionId, quick)).toEqual(done);
  expect(await node.client.getExecutionStatus('s', done.executionId, quick)).toMatchObject({ result: done.result });
  expect(await node.stdout(done.executionId)).toBe('done\n');
  expect(await node.steps(done.executionId)).toEqual(['pending', 'running', 'exited']);
  const listed = await Array.fromAsync(node.client.listExecutions('s', quick));
  expect(listed).toContainEqual(done);
  expect(listed).toContainEqual(expect.objectContaining({ executionId: running, state: 'running' }));
  expect((await node.client.getExecutionMetrics('s', running, quick)).complete).toBe(false);
}

const COUNTS = "let n = 0; setInterval(() => console.log(n++), 20); process.stdin.on('data', () => process.exit(7));";

/** A node that has run one execution in an earlier daemon's time, with another that counts on. */
async function startCounting(): Promise<{ node: FaultNode; done: ExecutionSummary }> {
  const node = await FaultNode.start({}, { diskMb: DISK_MB });
  await node.client.createSession('s');
  const snippet = { sessionId: 's', language: 'javascript' };
  await node.client.executeSnippet({ ...snippet, executionId: 'done', code: "console.log('done')" });
  const done = await node.client.wait('s', 'done');
  await node.client.executeSnippet({ ...snippet, executionId: 'counts', code: COUNTS, stdin: true });
  await node.printed('counts', '1\n');
  await node.restart();
  return { node, done };
}

test.skipIf(!isRoot)(
  'while nothing can be written to the disk, what runs runs on, reads go on, and all is told later',
  async () => {
    const { node, done } = await startCounting();
    await using _node = node;
    await node.ready({
      executionId: 'ends',
      code: "process.stdin.on('data', () => process.exit(3)); console.log('ready')",
      stdin: true,
    });

    using failing = limited(node.pid, 'FSIZE', 0);
    let refusal: Awaited<ReturnType<typeof refusalOf>>;
    let count = 0;
    await eventually('new work is refused', async () => {
      count += 1;
      refusal = await refusalOf(node, `failed-${count}`);
      return refusal?.code === 'unavailable';
    });
    await node.client.writeInput('s', 'ends', Buffer.from('now'), false, { deadlineMs: QUICK_MS });
    const { stdoutBytes } = await node.client.getExecutionStatus('s', 'counts');
    await requireReads(node, done, 'counts');
    await eventually('it counts on', async () => {
      return (await node.client.getExecutionStatus('s', 'counts')).stdoutBytes > stdoutBytes;
    });
    const during = await node.client.getExecutionStatus('s', 'ends');
    failing[Symbol.dispose]();

    expect(refusal?.message).toBe(
      'the journal cannot be written (disk I/O error); nothing new is accepted until it can',
    );
    // Nobody is told what a crash could take back.
    expect(during.state).toBe('running');
    expect((await node.client.wait('s', 'ends', { timeoutMs: QUICK_MS })).result).toMatchObject({ exitCode: 3 });
    await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
    expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
    await node.client.writeInput('s', 'counts', Buffer.from('now'));
    const { result } = await node.client.wait('s', 'counts');
    expect(result?.exitCode).toBe(7);
    // What was asked for first, when nobody knew yet, was done once it could be.
    expect((await node.client.wait('s', 'failed-1')).result?.reason).toBe('completed');
    await node.restart();
    expect((await node.client.wait('s', 'counts')).result).toEqual(result);
  },
);

test.skipIf(!isRoot)(
  'on a disk that turns read-only new work is refused at once, and a cell that ends harms nothing',
  async () => {
    const { node, done } = await startCounting();
    await using _node = node;
    // Another session's cell, which is let go when it has been idle.
    await node.client.createSession('other');
    await node.client.executeSnippet({ sessionId: 'other', executionId: 'e', language: 'python', code: '0' });
    await node.client.wait('other', 'e');
    const cells = node.cellPids();
    const { pid } = node;

    node.setReadOnly(true);
    const refused = await refusalOf(node, 'refused', QUICK_MS);
    const session = await node.client.createSession('new').catch((error) => error);
    await eventually('the idle cell is gone', () => node.cellPids().length < cells.length);
    await requireReads(node, done, 'counts');
    await node.client.releaseExecution('other', 'e');
    await node.client.writeInput('s', 'counts', Buffer.from('now'));
    const { result } = await node.client.wait('s', 'counts');
    node.setReadOnly(false);

    for (const { code, message } of [refused, session]) {
      expect(code).toBe('unavailable');
      expect(message).toMatch(
        /^the journal cannot be written \(EROFS: read-only file system, .*nothing new is accepted/,
      );
    }
    expect(result).toMatchObject({ reason: 'failed', exitCode: 7 });
    expect(node.pid).toBe(pid);
    expect(await refusalOf(node, 'after', QUICK_MS)).toBeUndefined();
    expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
    const directories = (name: string) => {
      const parent = join(node.stateDir, name);
      return readdirSync(parent).flatMap((key) => readdirSync(join(parent, key)));
    };
    // Of `counts` the output is kept, that of the others is small and in the journal by then; nobody's work is kept.
    await eventually('what could not be removed is', () => directories('daemon/output').length <= 1);
    await eventually('nor is a workspace left', () => directories('work').length === 0);
    await node.end('SIGTERM');
    await node.start();
    expect(readdirSync(join(node.stateDir, 'daemon', 'cells'))).toEqual([]);
  },
);

test.each(['stop', 'detach'] as const)(
  'a daemon that can write nothing ends all the same when it is to, and nothing is lost: %s',
  async (onStop) => {
    await using node = await FaultNode.start({ onStop });
    await node.client.createSession('s');
    await node.ready({ executionId: 'runs', code: IDLE });
    await node.ready({
      executionId: 'ends',
      code: "process.stdin.on('data', () => process.exit(3)); console.log('ready')",
      stdin: true,
    });

    const failing = limited(node.pid, 'FSIZE', 0);
    await node.client.writeInput('s', 'ends', Buffer.from('now'));
    // Whoever is there sees that it fails.
    let count = 0;
    await eventually('it is known', async () => {
      count += 1;
      return (await refusalOf(node, `refused-${count}`))?.code === 'unavailable';
    });
    await node.end('SIGTERM');
    failing[Symbol.dispose]();
    await node.start();

    expect((await node.client.wait('s', 'ends')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
    const runs = await node.client.getExecutionStatus('s', 'runs');
    if (onStop === 'detach') expect(runs.state).toBe('running');
    else expect((await node.client.wait('s', 'runs')).result).toMatchObject({ reason: 'session_closed' });
  },
  180_000,
);

test.each(['stop', 'detach'] as const)(
  'a daemon whose disk does not answer ends all the same when it is to: %s',
  async (onStop) => {
    await using node = await FaultNode.start({ onStop });
    await node.client.createSession('s');
    await node.ready({ executionId: 'runs', code: IDLE });

    // As a write that waits for the disk does, its thread goes on with nothing.
    const goOn = await holdUp(threadOf(node.pid, 'journal'));
    const refused = await refusalOf(node, 'refused');
    await node.end('SIGTERM');
    goOn();
    await node.start();

    expect(refused?.code).toBe('deadline_exceeded');
    const runs = await node.client.getExecutionStatus('s', 'runs');
    if (onStop === 'detach') expect(runs.state).toBe('running');
    else expect((await node.client.wait('s', 'runs')).result).toMatchObject({ reason: 'session_closed' });
  },
  180_000,
);

/** The id of the thread of a process that has this name. */
function threadOf(pid: number, name: string): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  const thread = threads.find((id) => readFileSync(`/proc/${pid}/task/${id}/comm`, 'utf8').trim() === name);
  if (thread === undefined) throw new Error(`process ${pid} has no thread ${name}`);
  return Number(thread);
}

test.each([
  { durability: 'full', refusals: ['deadline_exceeded', 'unavailable'] },
  { durability: 'normal', refusals: [undefined, undefined] },
] as const)(
  'on a disk that keeps nothing, with durability $durability, new work is answered $refusals',
  async (mode) => {
    await using node = await FaultNode.start({ durability: mode.durability });
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: IDLE });

    await node.afflict({ fsync: true });
    // Whoever is first waits for the disk; then it is known that it fails.
    const codes = [(await refusalOf(node, 'first'))?.code, (await refusalOf(node, 'second', QUICK_MS))?.code];

    expect(codes).toEqual(mode.refusals);
    await node.restart();
    expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
  },
);

test('with durability off a list waits for no end that cannot be written, however many there are', {
  timeout: 180_000,
}, async () => {
  await using node = await FaultNode.start({ durability: 'off' });
  await node.client.createSession('s', { maxRunning: 1 });
  await node.client.executeSnippet({ sessionId: 's', executionId: 'old', language: 'javascript', code: '0' });
  await node.client.wait('s', 'old');
  await node.ready({ executionId: 'e', code: IDLE });
  const waiting = Array.from({ length: 70 }, (_, index) => `waits-${index}`);
  for (const executionId of waiting)
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code: '0' });
  using other = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { timeout: 30_000 });
  other.exec('BEGIN IMMEDIATE');

  for (const executionId of [...waiting, 'e']) await node.client.cancelExecution('s', executionId, { graceMs: 0 });
  await node.client.wait('s', 'e');
  await eventually('nothing can be written', () => node.log.includes('the journal cannot be written'));
  const listed = await Array.fromAsync(node.client.listExecutions('s', { deadlineMs: QUICK_MS }));

  const states = listed.map(({ executionId, state }) => `${executionId} ${state}`);
  expect(states.toSorted()).toEqual(['old', 'e', ...waiting].map((executionId) => `${executionId} exited`).toSorted());
});

test('nothing is acknowledged that the disk has not kept, whatever was asked for', async () => {
  await using node = await FaultNode.start({ durability: 'full' });
  const { client } = node;
  for (const sessionId of ['s', 'deleted']) await client.createSession(sessionId);
  await node.ready({ executionId: 'e', code: IDLE });
  await client.executeSnippet({ sessionId: 's', executionId: 'done', language: 'javascript', code: '0' });
  await client.wait('s', 'done');
  const quick = { deadlineMs: DEADLINE_MS };
  const snippet = { sessionId: 's', executionId: 'new', language: 'javascript', code: '0' };

  await node.afflict({ fsync: true });
  // Whoever is first is not refused, as nobody knows yet that the disk keeps nothing.
  const first = client.createSession('new', {}, quick);
  const others = [
    client.executeSnippet(snippet, quick),
    client.executeSnippet(snippet, quick),
    client.cancelExecution('s', 'e', { graceMs: 0 }, quick),
    client.releaseExecution('s', 'done', quick),
    client.deleteSession('deleted', quick),
  ];
  const codes = await Promise.all(
    [first, ...others].map((call) =>
      call.then(
        () => 'done',
        ({ code }) => code,
      ),
    ),
  );

  const waited = 'deadline_exceeded';
  expect(codes).toEqual([waited, expect.any(String), expect.any(String), waited, waited, waited]);
  for (const code of codes) expect([waited, 'unavailable']).toContain(code);
  // One that can write ends in good order.
  await node.restart();
});

test('what is cancelled while its start waits for the disk never runs', async () => {
  // No cell can be made meanwhile: the one that is there has to stay.
  await using node = await FaultNode.start({ maxRunning: 1, cellIdleMs: 60_000 });
  const { client } = node;
  for (const sessionId of ['s', 'other']) await client.createSession(sessionId);
  const snippet = { sessionId: 'other', language: 'javascript' };
  await client.executeSnippet({ ...snippet, executionId: 'first', code: '0' });
  await client.wait('other', 'first');
  const ends = "process.stdin.once('data', () => process.exit(3)); console.log('ready');";
  await node.ready({ executionId: 'ends', code: ends, stdin: true });
  const marker = join(node.root, 'marker');
  const code = `require('fs').writeFileSync('${marker}', '')`;
  await client.executeSnippet({ ...snippet, executionId: 'waits', code });

  using failing = limited(node.pid, 'FSIZE', 0);
  await client.writeInput('s', 'ends', Buffer.from('now'), false, { deadlineMs: QUICK_MS });
  await eventually('it has a place in the cell that is there', async () => {
    return (await client.getSession('other')).cells.some(({ executions }) => executions === 1);
  });
  const cancelled = client.cancelExecution('other', 'waits', { graceMs: 0 });
  // Answered behind it.
  await client.getSession('other');
  failing[Symbol.dispose]();

  expect(await cancelled).toBe(true);
  expect((await client.wait('other', 'waits')).result).toMatchObject({ reason: 'cancelled', exitCode: -1 });
  expect((await client.wait('s', 'ends')).result?.exitCode).toBe(3);
  await client.executeSnippet({ ...snippet, executionId: 'last', code: '0' });
  expect((await client.wait('other', 'last')).result?.reason).toBe('completed');
  expect(existsSync(marker)).toBe(false);
});

test('no start fails for the time in which the journal cannot be written', async () => {
  const startLimitMs = 3_000;
  await using node = await FaultNode.start({ maxRunning: 1, startLimitMs });
  const { client } = node;
  await client.createSession('s');
  await node.ready({
    executionId: 'ends',
    code: "process.stdin.once('data', () => process.exit(3)); console.log('ready');",
    stdin: true,
  });
  await client.executeSnippet({ sessionId: 's', executionId: 'waits', language: 'javascript', code: '0' });

  using failing = limited(node.pid, 'FSIZE', 0);
  await client.writeInput('s', 'ends', Buffer.from('now'), false, { deadlineMs: QUICK_MS });
  await eventually('nothing can be written', () => node.log.includes('the journal cannot be written'));
  await wait(1.5 * startLimitMs);
  failing[Symbol.dispose]();

  expect((await client.wait('s', 'waits')).result).toMatchObject({ reason: 'completed', rung: undefined });
});
