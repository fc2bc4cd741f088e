import { status } from '@grpc/grpc-js';
import { expect, test } from 'vitest';
import { connectDaemon, ResourceExhaustedError } from '../../src/index.ts';
import { TestDaemon } from '../support/daemon.ts';

const IDLE = 'console.log("ready"); setInterval(() => {}, 1000)';

test('a full queue is refused by name, with a hint when to try again, and takes again when there is room', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1 });
  const session = await node.session({ maxQueued: 2 });
  using client = connectDaemon({ socket: node.endpoints.socket as string });
  const holder = await session.ready(IDLE);
  const snippet = (executionId: string) => ({
    sessionId: session.sessionId,
    executionId,
    language: 'javascript',
    code: '0',
  });
  await client.executeSnippet(snippet('q1'));
  await client.executeSnippet(snippet('q2'));

  const refused = await client.executeSnippet(snippet('q3')).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(ResourceExhaustedError);
  expect(refused).toMatchObject({
    message: expect.stringMatching(/2 executions wait in session "session-1".*try again in 1000 ms/),
    retryAfterMs: 1_000,
    cause: { code: status.RESOURCE_EXHAUSTED },
  });
  expect((await node.daemon.listExecutions()).map(({ executionId }) => executionId)).not.toContain('q3');

  await holder.cancel({ signal: 'SIGKILL' });
  await client.wait(session.sessionId, 'q2');
  await client.executeSnippet(snippet('q3'));
  expect(await client.wait(session.sessionId, 'q3')).toMatchObject({ result: { reason: 'completed' } });
});

test('the queue of all sessions together has a limit too', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1, maxQueuedInAll: 2 });
  const [one, other] = [await node.session(), await node.session()];
  await one.ready(IDLE);
  await one.submit('0');
  await other.submit('0');

  await expect(other.submit('0')).rejects.toThrow(/2 executions wait in all sessions/);
});

test('one session more than there may be is refused, and one that is there is not', async () => {
  await using node = await TestDaemon.start({ maxSessions: 1 });
  using client = connectDaemon({ socket: node.endpoints.socket as string });
  const session = await node.session();

  await expect(node.session()).rejects.toThrow(ResourceExhaustedError);
  // Not what a client takes it for where the daemon does not say.
  await expect(client.createSession('other')).rejects.toMatchObject({
    code: 'resource_exhausted',
    retryAfterMs: 5_000,
  });
  await node.daemon.createSession(session.sessionId);
  await session.close();

  await node.session();
});

test('no more of a session run than it may have, and each end makes place for one', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ maxRunning: 2 });
  const other = await node.session();
  const executions = [await session.ready(IDLE), await session.ready(IDLE), await session.submit(IDLE)];

  // A place in the node is not a place in the session.
  await other.ready(IDLE);
  expect((await executions[2]?.snapshot())?.state).toBe('pending');
  await executions[0]?.cancel({ signal: 'SIGKILL' });

  await executions[2]?.printed('ready');
  expect((await node.daemon.getSession(session.sessionId)).counts).toMatchObject({ running: 2, pending: 0 });
});

test('one that is cancelled while it waits takes no place, also when one comes free before its end is journaled', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1, durability: 'full' });
  const session = await node.session();
  const holder = await session.ready(IDLE);
  const waiting = await Promise.all(Array.from({ length: 300 }, () => session.submit(IDLE)));

  // From the head of the queue on: whenever the place comes free, the next in turn was cancelled a moment before.
  const cancelled = [holder.cancel({ signal: 'SIGKILL' })];
  for (const execution of waiting) {
    cancelled.push(execution.cancel());
    await new Promise(setImmediate);
  }
  await Promise.all(cancelled);

  expect((await session.run('console.log(1)')).stdout).toBe('1\n');
  for (const execution of waiting) expect((await execution.end()).steps).not.toContain('running');
});

test('a session with a thousand waiting keeps another’s first one waiting for one place', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1 });
  const [busy, late] = [await node.session(), await node.session()];
  const holder = await busy.ready(IDLE);
  for (let count = 0; count < 1_000; count += 1) await busy.submit('0');

  const first = await late.submit('0');
  await holder.cancel({ signal: 'SIGKILL' });
  const { snapshot } = await first.end();

  // With the one that held the place.
  const startedMs = snapshot.times.startedAtMs ?? Number.NaN;
  const before = (await node.daemon.listExecutions(busy.sessionId)).filter(
    ({ times }) => (times.startedAtMs ?? Number.POSITIVE_INFINITY) < startedMs,
  );
  expect(startedMs).toBeGreaterThan(0);
  expect(before.length).toBeLessThanOrEqual(2);
});
