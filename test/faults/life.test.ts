import { mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { JournalReader } from '../../src/journal/reader.ts';
import { eventually } from '../support/daemon.ts';
import { FaultNode } from './node.ts';

const FOREVER = "setInterval(() => {}, 1000); console.log('ready');";

/** Ids of the sessions there are. */
const sessions = async (node: FaultNode) => (await node.client.listSessions()).map(({ sessionId }) => sessionId);

test('a TTL counts from what it counts from over a restart, and one that passed meanwhile closes at once', {
  timeout: 180_000,
}, async () => {
  await using node = await FaultNode.start();
  const [ttlMs, dueMs, idleMs] = [30_000, 12_000, 5_000];
  await node.client.createSession('s', { totalTtlMs: ttlMs });
  const createdMs = Date.now();
  await node.client.createSession('due', { totalTtlMs: dueMs });
  await node.ready({ executionId: 'e', code: FOREVER });
  await node.client.createSession('busy', { idleTtlMs: idleMs });
  const long = { executionId: 'e', language: 'javascript', code: FOREVER };
  for (const sessionId of ['busy', 'due']) {
    await node.client.executeSnippet({ ...long, sessionId });
    for await (const { state } of node.client.watchExecution(sessionId, 'e')) if (state === 'running') break;
  }
  await node.client.createSession('idle', { idleTtlMs: idleMs });
  await node.client.executeSnippet({ ...long, sessionId: 'idle', code: '0' });
  const { times } = await node.client.wait('idle', 'e');

  await node.end();
  await eventually(
    'two have had their time',
    () => Date.now() > Math.max((times.exitedAtMs as number) + idleMs, createdMs + dueMs) + 100,
  );
  const restartedMs = Date.now();
  await node.start();
  await eventually('both are closed', async () => (await sessions(node)).length === 2);

  expect(await sessions(node)).toEqual(['s', 'busy']);
  expect((await node.client.wait('due', 'e')).result).toMatchObject({ reason: 'session_closed', signal: 'SIGTERM' });
  expect((await node.client.wait('idle', 'e')).result?.reason).toBe('completed');
  const { result, times: ended } = await node.client.wait('s', 'e');
  expect(result).toMatchObject({ reason: 'session_closed' });
  expect((ended.exitedAtMs as number) - createdMs).toBeGreaterThan(ttlMs - 100);
  // Counted from the restart it would be no less.
  expect((ended.exitedAtMs as number) - restartedMs).toBeLessThan(ttlMs);
  await eventually('one is left', async () => (await sessions(node)).length === 1);
  await node.restart();
  expect(await sessions(node)).toEqual(['busy']);
});

/**
 * Makes everything that the journal knows so many ms older: for so long there was no daemon. Of the session `closing` it
 * knows no more than that: its daemon was killed before it could write down what that means for its execution.
 */
function age(node: FaultNode, ms: number): void {
  const journal = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'));
  const older = (json: string) => `json_set(${json}, '$.monotonicMs', json_extract(${json}, '$.monotonicMs') - ${ms})`;
  journal.exec(`
    DELETE FROM events WHERE event ->> 'state' = 'signaled'
      AND number IN (SELECT number FROM executions WHERE session_id = 'closing');
    UPDATE events SET event = ${older('event')};
    UPDATE executions SET exited_monotonic_ms = exited_monotonic_ms - ${ms};
    UPDATE sessions SET created_monotonic_ms = created_monotonic_ms - ${ms},
      closing = ${older('closing')}, last_exit = ${older('last_exit')}`);
  journal.close();
}

test('whatever was due while there was no daemon happens at once, and nothing before it is due', async () => {
  await using node = await FaultNode.start();
  const [dueMs, agedMs] = [600_000, 700_000];
  const { client } = node;
  await client.createSession('s', { maxRunning: 2 });
  const stubborn = `process.on('SIGTERM', () => {}); ${FOREVER}`;
  await node.ready({ executionId: 'limited', code: FOREVER, timeoutMs: dueMs });
  await node.ready({ executionId: 'stopped', code: stubborn });
  const javascript = (sessionId: string, executionId: string, code = '0') =>
    client.executeSnippet({ sessionId, executionId, language: 'javascript', code });
  await client.executeSnippet({
    sessionId: 's',
    executionId: 'waits',
    language: 'javascript',
    code: '0',
    queueTimeoutMs: dueMs,
  });
  await client.cancelExecution('s', 'stopped', { graceMs: dueMs });
  await client.createSession('closing');
  await javascript('closing', 'e', stubborn);
  for await (const { data } of client.streamOutput('closing', 'e')) if (String(data).includes('ready')) break;
  const closing = client.deleteSession('closing', { graceMs: dueMs }).catch(() => {});
  for await (const { rung } of client.watchExecution('closing', 'e')) if (rung === 'graceful') break;
  await client.createSession('idle', { idleTtlMs: dueMs });
  await client.createSession('total', { totalTtlMs: dueMs });
  await client.createSession('kept', { retainedAgeMs: dueMs });
  await javascript('kept', 'e');
  await client.wait('kept', 'e');

  await node.restart();
  await closing;
  expect((await sessions(node)).toSorted()).toEqual(['closing', 'idle', 'kept', 's', 'total']);
  const stands: [sessionId: string, executionId: string, state: string][] = [
    ['s', 'limited', 'running'],
    ['s', 'stopped', 'signaled'],
    ['s', 'waits', 'pending'],
    ['closing', 'e', 'signaled'],
    ['kept', 'e', 'exited'],
  ];
  for (const [sessionId, executionId, state] of stands) {
    expect((await node.client.getExecutionStatus(sessionId, executionId)).state, `${sessionId} ${executionId}`).toBe(
      state,
    );
  }
  await node.end();
  age(node, agedMs);
  await node.start();

  const reasonOf = async (sessionId: string, executionId: string) => {
    const { result } = await node.client.wait(sessionId, executionId, { timeoutMs: 50_000 });
    return [result?.reason, result?.rung];
  };
  expect(await reasonOf('s', 'waits')).toEqual(['queue_timed_out', undefined]);
  expect(await reasonOf('s', 'limited')).toEqual(['timed_out', 'graceful']);
  expect(await reasonOf('s', 'stopped')).toEqual(['cancelled', 'forced']);
  expect(await reasonOf('closing', 'e')).toEqual(['session_closed', 'forced']);
  await eventually('three sessions are gone', async () => (await sessions(node)).toSorted().join() === 'kept,s');
  await expect(node.client.wait('kept', 'e')).rejects.toMatchObject({ code: 'not_found' });
});

test('a closed session stays closed over a restart, its executions queryable, and a busy one is still busy', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: FOREVER });
  await node.client.createSession('closed');
  await node.client.executeSnippet({ sessionId: 'closed', executionId: 'e', language: 'javascript', code: '0' });
  const ended = await node.client.wait('closed', 'e');
  await node.client.deleteSession('closed', { refuseIfBusy: true });

  await node.restart();

  expect(await node.client.wait('closed', 'e')).toEqual(ended);
  expect(await Array.fromAsync(node.client.listExecutions('closed'))).toEqual([ended]);
  await expect(node.client.getSession('closed')).rejects.toMatchObject({ code: 'not_found' });
  await expect(node.client.deleteSession('s', { refuseIfBusy: true })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: 'session "s" is busy: 1 executions run, and 0 wait',
  });
  await node.client.deleteSession('s', { force: true });
  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
});

test('retention goes on over a restart, for closed sessions too, and what went stays gone', async () => {
  await using node = await FaultNode.start({ outputBudgetBytes: 25_000 });
  const run = async (sessionId: string, executionId: string, code: string) => {
    await node.client.executeSnippet({ sessionId, executionId, language: 'javascript', code });
    return await node.client.wait(sessionId, executionId);
  };
  const known = async (sessionId: string) => {
    const found = (await Array.fromAsync(node.client.listExecutions())).filter((one) => one.sessionId === sessionId);
    return found.map(({ executionId }) => executionId);
  };
  const write = "process.stdout.write('x'.repeat(10_000))";
  await node.client.createSession('s');
  for (const executionId of ['evicted', 'released', 'kept', 'last']) await run('s', executionId, write);
  await node.client.releaseExecution('s', 'released');
  await node.client.createSession('short', { retainedAgeMs: 2_500 });
  const { times } = await run('short', 'e', 'console.log(1)');
  await node.client.deleteSession('short');
  await node.client.createSession('few', { retainedExecutions: 2, outputBudgetBytes: 1_000 });
  for (const executionId of ['a', 'b', 'c']) await run('few', executionId, 'console.log(1)');
  await node.client.deleteSession('few');
  const left = join(node.stateDir, 'daemon', 'output');
  await eventually('three are removed, and three are small', () => outputs(left).length === 2);

  await node.end();
  await eventually('one is too old', () => Date.now() > (times.exitedAtMs as number) + 2_600);
  await node.start({ outputBudgetBytes: 15_000 });

  expect(await known('s')).toEqual(['evicted', 'kept', 'last']);
  expect(await known('few')).toEqual(['b', 'c']);
  await eventually('it is forgotten', async () => (await known('short')).length === 0);
  await eventually('the output of the next is gone', () => outputs(left).length === 1);
  for (const executionId of ['evicted', 'kept']) {
    expect(await node.client.getExecutionStatus('s', executionId)).toMatchObject({
      result: { reason: 'completed' },
      stdoutBytes: 10_000,
      outputEvicted: true,
    });
    await expect(node.stdout(executionId)).rejects.toMatchObject({
      code: 'out_of_range',
      message: expect.stringContaining('it now begins at 10000, its end'),
    });
  }
  expect(await node.stdout('last')).toBe('x'.repeat(10_000));
  await expect(node.client.wait('s', 'released')).rejects.toMatchObject({ code: 'not_found' });
  const future = Array.fromAsync(node.client.watchExecution('s', 'last', { fromSequence: 9 }));
  await expect(future).rejects.toMatchObject({
    code: 'out_of_range',
    message: expect.stringMatching(/sequence 9 is in the future/),
  });

  await node.restart();
  expect(await node.client.getExecutionStatus('s', 'kept')).toMatchObject({ stdoutBytes: 10_000, outputEvicted: true });
  expect(await known('s')).toEqual(['evicted', 'kept', 'last']);
  // Nor is there output in it of what is forgotten.
  using journal = new JournalReader(join(node.stateDir, 'daemon', 'journal.db'));
  expect(journal.verify()).toEqual([]);
});

test('what a killed daemon has left of deleted sessions goes with the next one, which follows no link', async () => {
  await using node = await FaultNode.start();
  const [output, work] = [join(node.stateDir, 'daemon', 'output'), join(node.stateDir, 'work')];
  const others = join(node.root, 'others');
  for (const path of [others, join(others, 'kept')]) mkdirSync(path);
  writeFileSync(join(others, 'kept', 'file'), '');
  const run = async (sessionId: string) => {
    await node.client.createSession(sessionId);
    const code = 'console.log(1)';
    await node.client.executeSnippet({ sessionId, executionId: 'e', language: 'javascript', code });
    await node.client.wait(sessionId, 'e');
  };
  await run('s');
  await node.ready({ executionId: 'runs', code: FOREVER });
  const [open = ''] = readdirSync(work);
  for (const sessionId of ['first', 'second']) await run(sessionId);
  for (const sessionId of ['first', 'second']) await node.client.deleteSession(sessionId);
  await node.client.releaseExecution('first', 'e');

  await node.end();
  // As a daemon leaves it that is killed a moment earlier, and as a guest may.
  for (const directory of [output, work]) {
    mkdirSync(join(directory, 'empty'));
    mkdirSync(join(directory, 'left', 'execution'), { recursive: true });
    symlinkSync(others, join(directory, 'link'));
    writeFileSync(join(directory, 'file'), '');
  }
  rmSync(join(work, open), { recursive: true });
  symlinkSync(others, join(work, open));
  await node.start();

  await eventually('only the open session has output', () => readdirSync(output).join() === open);
  await eventually('nothing that was left is there', () => readdirSync(work).length === 0);
  expect(readdirSync(others)).toEqual(['kept']);
  expect(readdirSync(join(others, 'kept'))).toEqual(['file']);
  expect((await Array.fromAsync(node.client.listExecutions('second'))).length).toBe(1);
  await node.printed('runs', 'ready');
});

test('output of executions that ended with their cell while there was no daemon counts, over a restart too', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = `process.stdout.write('x'.repeat(10_000)); ${FOREVER}`;
  for (const executionId of ['first', 'second']) await node.ready({ executionId, code });
  const evicted = async (executionId: string) => (await node.client.getExecutionStatus('s', executionId)).outputEvicted;

  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  await node.start();
  expect((await node.client.wait('s', 'second')).result?.reason).toBe('daemon_lost');
  expect(await evicted('first')).toBe(false);
  await node.end('SIGTERM');
  await node.start({ outputBudgetBytes: 15_000 });

  await eventually('the first is evicted', () => evicted('first'));
  expect(await evicted('second')).toBe(false);
  expect((await node.client.getExecutionStatus('s', 'first')).stdoutBytes).toBe(10_006);
});

/** Directories of output that there are. */
function outputs(directory: string): string[] {
  return readdirSync(directory).flatMap((sessionKey) => readdirSync(join(directory, sessionKey)));
}
