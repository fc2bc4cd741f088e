import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { createDaemon } from '../../src/create-daemon.ts';
import { TestClient } from '../support/client.ts';
import { eventually, TestDaemon, type TestExecution, temporaryDirectory } from '../support/daemon.ts';

const FOREVER = "setInterval(() => {}, 1000); console.log('ready');";

test('a session is deleted once it was idle for its TTL, and what it ran stays queryable', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ idleTtlMs: 3_000 });
  const running = await session.ready("setTimeout(() => {}, 4_000); console.log('ready');");
  const { snapshot } = await running.end();

  // It ran for longer than the TTL.
  expect((await node.daemon.getSession(session.sessionId)).state).toBe('running');
  await eventually('the session is gone', async () => (await node.daemon.listSessions()).length === 0);

  expect(Date.now() - (snapshot.times.exitedAtMs as number)).toBeGreaterThanOrEqual(2_999);
  expect((await running.end()).stdout).toBe('ready\n');
  await expect(node.daemon.getSession(session.sessionId)).rejects.toMatchObject({ code: 'not_found' });
});

test('a session whose whole time is up stops what runs and what waits, with the ladder', async () => {
  await using node = await TestDaemon.start({ graceMs: 30_000 });
  const session = await node.session({ totalTtlMs: 6_000, maxRunning: 1 });
  const asked = await session.ready(
    `process.on('SIGTERM', () => { console.log('asked'); process.exit(0); }); ${FOREVER}`,
  );
  const waiting = await session.submit(FOREVER);

  const { result, stdout } = await asked.end();

  expect(result).toMatchObject({ reason: 'session_closed', rung: 'graceful', exitCode: 0 });
  expect(stdout).toBe('ready\nasked\n');
  expect((await waiting.end()).result).toMatchObject({ reason: 'session_closed', exitCode: -1 });
  await eventually('the session is gone', async () => (await node.daemon.listSessions()).length === 0);
});

test('a session that is busy is left alone when that was asked for', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ maxRunning: 1 });
  const running = await session.ready(FOREVER);
  const waiting = await session.submit(FOREVER);
  const { sessionId } = session;

  await expect(node.daemon.deleteSession(sessionId, { refuseIfBusy: true })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: `session "${sessionId}" is busy: 1 executions run, and 1 wait`,
  });
  await expect(node.daemon.deleteSession(sessionId, { refuseIfBusy: true, force: true })).rejects.toMatchObject({
    code: 'invalid_argument',
  });
  expect((await running.snapshot()).state).toBe('running');
  expect((await waiting.snapshot()).state).toBe('pending');

  await running.cancel({ graceMs: 0 });
  await waiting.cancel({ graceMs: 0 });
  await Promise.all([running.end(), waiting.end()]);
  await node.daemon.deleteSession(sessionId, { refuseIfBusy: true });
  expect(await node.daemon.listSessions()).toEqual([]);
});

test('a forced deletion gives no grace, also to a session that is being deleted', async () => {
  await using node = await TestDaemon.start({ graceMs: 60_000 });
  const stubborn = `process.on('SIGTERM', () => console.log('asked')); ${FOREVER}`;
  const [first, second] = [await node.session(), await node.session()];
  const [forced, asked] = [await first.ready(stubborn), await second.ready(stubborn)];

  await node.daemon.deleteSession(first.sessionId, { force: true });
  const deleted = node.daemon.deleteSession(second.sessionId);
  await asked.printed('asked');
  await node.daemon.deleteSession(second.sessionId, { force: true });
  await deleted;

  expect(await forced.end()).toMatchObject({
    result: { reason: 'session_closed', rung: 'forced' },
    stdout: 'ready\n',
  });
  expect((await asked.end()).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
});

test('a deletion that gives long holds up no daemon that is stopped', async () => {
  await using node = await TestDaemon.start({ graceMs: 300 });
  const session = await node.session();
  const stubborn = await session.ready(`process.on('SIGTERM', () => console.log('asked')); ${FOREVER}`);

  const deleted = node.daemon.deleteSession(session.sessionId, { graceMs: 3_600_000 });
  await stubborn.printed('asked');
  const ended = stubborn.end();
  await node.daemon.stop();

  expect((await ended).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
  await deleted;
});

test('a stop that comes after its daemon has left what runs to the next one is refused', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(FOREVER);

  await node.daemon.stop({ detach: true });
  const refused = await Promise.allSettled([running.cancel(), running.signal('SIGTERM'), running.signal('SIGKILL')]);
  await using next = await TestDaemon.start({ stateDir: join(node.root, 's') });

  for (const { status, reason } of refused as PromiseRejectedResult[]) {
    expect({ status, reason }).toMatchObject({
      status: 'rejected',
      reason: { code: 'unavailable', message: 'the daemon has stopped' },
    });
  }
  const { state } = await next.daemon.getExecutionStatus(session.sessionId, running.executionId);
  expect(state).toBe('running');
});

test('what onStop says holds for a stop that does not say, and for what forces it later', async () => {
  await using node = await TestDaemon.start({ onStop: 'detach' });
  const session = await node.session();
  const running = await session.ready(FOREVER);

  await Promise.all([node.daemon.stop(), node.daemon.stop({ force: true })]);
  await using next = await TestDaemon.start({ stateDir: join(node.root, 's'), onStop: 'detach' });

  const { state } = await next.daemon.getExecutionStatus(session.sessionId, running.executionId);
  expect(state).toBe('running');
});

test('a stop that says so ends everything, whatever onStop says', async () => {
  await using node = await TestDaemon.start({ onStop: 'detach' });
  const session = await node.session();
  const running = await session.ready(FOREVER);
  const ended = running.end();

  await node.daemon.stop({ detach: false });

  expect((await ended).result.reason).toBe('session_closed');
});

test('a daemon that was not started can be stopped, whatever onStop says', async () => {
  for (const onStop of ['stop', 'detach'] as const) {
    const stateDir = join(temporaryDirectory(), 's');
    await using _ = createDaemon({ logLevel: 'silent', stateDir, onStop });
  }
});

test.each([1024.5, 2 ** 64])(
  'a place is given back where a start cannot be put into words: a size of %d',
  async (size) => {
    await using node = await TestDaemon.start({ maxRunning: 1 });
    const session = await node.session();
    const running = await session.ready(FOREVER);
    const files = join(node.directory(), 'file');
    const outputFiles = { stdout: files, stderr: files, maxFiles: 1, maxFileBytes: 1024 };
    const { executionId } = await session.submit({ code: '0', outputFiles });
    await node.daemon.stop({ detach: true });
    // As a daemon has accepted it that did not look at that.
    const stateDir = join(node.root, 's');
    using journal = new DatabaseSync(join(stateDir, 'daemon', 'journal.db'));
    journal.prepare("UPDATE requests SET request = json_set(request, '$.outputFiles.maxFileBytes', ?)").run(size);
    await using next = await TestDaemon.start({ stateDir, maxRunning: 1 });

    await next.daemon.cancelExecution(session.sessionId, running.executionId, { graceMs: 0 });
    const { result } = await next.daemon.wait(session.sessionId, executionId);

    expect(result?.reason).toBe('start_failed');
    const { cells } = await next.daemon.getSession(session.sessionId);
    expect(cells.filter(({ executions }) => executions > 0)).toEqual([]);
  },
);

test('a session with a long queue is deleted while others are served, and starts nothing of it', async () => {
  await using node = await TestDaemon.start();
  await using client = new TestClient(`unix:${node.endpoints.socket}`);
  const session = await node.session({ maxRunning: 1 });
  const running = await session.ready(FOREVER);
  const queue = await Promise.all(Array.from({ length: 3_000 }, () => session.submit('0')));
  const last = queue.at(-1) as TestExecution;
  await client.call('health', {});

  const deleted = node.daemon.deleteSession(session.sessionId, { force: true });
  const cancelled = await client.call('cancelExecution', { ...last, signal: '', timeoutSeconds: 0 });
  await deleted;

  // It had not been told yet.
  expect(cancelled).toMatchObject({ success: true });
  expect((await last.end()).result.reason).toBe('cancelled');
  expect((await running.end()).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
  const others = (await node.daemon.listExecutions(session.sessionId)).slice(1, -1);
  expect(others).toHaveLength(2_999);
  for (const { result, times } of others) {
    expect([result?.reason, times.startedAtMs]).toEqual(['session_closed', undefined]);
  }
});

test('a closed session takes nothing any more, and its executions answer as before', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({}, 'closed');
  const { sessionId } = session;
  const snippet = { sessionId, executionId: 'e', language: 'javascript', code: "console.log('hello')", stdin: true };
  await node.daemon.executeSnippet(snippet);
  const ended = await node.daemon.wait(sessionId, 'e');
  const before = {
    status: await node.daemon.getExecutionStatus(sessionId, 'e'),
    events: await Array.fromAsync(node.daemon.watchExecution(sessionId, 'e')),
    output: await Array.fromAsync(node.daemon.streamOutput(sessionId, 'e')),
    metrics: await node.daemon.getExecutionMetrics(sessionId, 'e'),
    list: await node.daemon.listExecutions(sessionId),
  };
  expect(before).toMatchObject({ events: { length: 3 }, output: { length: 1 }, list: [{ executionId: 'e' }] });

  await session.close();

  expect({
    status: await node.daemon.getExecutionStatus(sessionId, 'e'),
    events: await Array.fromAsync(node.daemon.watchExecution(sessionId, 'e')),
    output: await Array.fromAsync(node.daemon.streamOutput(sessionId, 'e')),
    metrics: await node.daemon.getExecutionMetrics(sessionId, 'e'),
    list: await node.daemon.listExecutions(sessionId),
  }).toEqual(before);
  expect(await node.daemon.wait(sessionId, 'e')).toEqual(ended);
  expect(await node.daemon.cancelExecution(sessionId, 'e')).toBe(false);
  expect(await node.daemon.signalExecution(sessionId, 'e', 'SIGTERM')).toBe(false);
  await expect(node.daemon.writeInput(sessionId, 'e', Buffer.from('x'))).rejects.toMatchObject({
    code: 'failed_precondition',
  });
  const refused = [
    () => node.daemon.getSession(sessionId),
    () => node.daemon.deleteSession(sessionId),
    () => node.daemon.executeSnippet(snippet),
    () => node.daemon.executeSnippet({ ...snippet, executionId: 'other' }),
  ];
  for (const call of refused) await expect(call()).rejects.toMatchObject({ code: 'not_found' });

  // The same name is another session, in which the ids of the first are taken.
  await node.daemon.createSession(sessionId, { weight: 7 });
  expect(await node.daemon.executeSnippet(snippet)).toEqual(ended);
  await expect(node.daemon.executeSnippet({ ...snippet, code: '1' })).rejects.toMatchObject({ code: 'already_exists' });
  expect((await node.daemon.getSession(sessionId)).counts).toEqual({ pending: 0, running: 0, exited: 0 });
});
