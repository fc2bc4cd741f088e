import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { now } from '../../src/clock.ts';
import { EndRecord } from '../../src/wire/end-record.ts';
import { eventually, isAlive } from '../support/daemon.ts';
import { endsWritten, FaultNode } from './node.ts';
import {
  COUNTER,
  cellHas,
  endsJournaled,
  endsOnce,
  endUnseen,
  endWritten,
  expectCounted,
  handIn,
  LANGUAGES,
  startZygote,
} from './restarted.ts';

test.each(LANGUAGES)(
  'a %s guest runs on while its daemon is killed and replaced, and nothing of it is lost',
  async (language) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', language, code: COUNTER[language], stdin: true });
    const before = await node.client.getExecutionStatus('s', 'e');

    await node.restart();

    const after = await node.client.getExecutionStatus('s', 'e');
    expect(after).toMatchObject({ state: 'running', pid: before.pid, times: before.times, sequence: before.sequence });
    await node.client.writeInput('s', 'e', Buffer.from('end\n'));
    const { result } = await node.client.wait('s', 'e');
    expect(result).toMatchObject({ reason: 'failed', exitCode: 7 });
    expectCounted(await node.stdout('e'));
    expect(await node.steps('e')).toEqual(['pending', 'running', 'exited']);
  },
);

test.each(LANGUAGES)('the end of a %s guest while there is no daemon is known to the next one', async (language) => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const go = join(node.root, 'go');
  const code = {
    javascript: endsOnce(go, "console.log('last');"),
    python: `import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('${go}'): time.sleep(0.02)\nprint('last')\nexit(3)`,
  }[language];
  await node.ready({ executionId: 'e', language, code });

  await node.end();
  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  await node.start();

  const { state, result, times } = await node.client.getExecutionStatus('s', 'e');
  expect(state).toBe('exited');
  expect(result).toMatchObject({ reason: 'failed', exitCode: 3 });
  expect(times.exitedAtMs).toBeGreaterThan(times.startedAtMs as number);
  expect(await node.stdout('e')).toBe('ready\nlast\n');
  expect(await node.steps('e')).toEqual(['pending', 'running', 'exited']);
});

test('an end is known even when its cell is gone as well', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const go = join(node.root, 'go');
  await node.ready({ executionId: 'e', code: endsOnce(go) });
  await node.ready({ executionId: 'other', code: "setInterval(() => {}, 1000); console.log('ready');" });

  await node.end();
  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  await node.start();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
  expect((await node.client.wait('s', 'other')).result).toMatchObject({ reason: 'daemon_lost', exitCode: -1 });
  expect(await node.steps('other')).toEqual(['pending', 'running', 'exited']);
  await node.restart();
  expect((await node.client.wait('s', 'other')).result).toMatchObject({ reason: 'daemon_lost' });
  expect(await node.steps('other')).toEqual(['pending', 'running', 'exited']);
  for (const executionId of ['e', 'other']) expect(await node.stdout(executionId)).toBe('ready\n');
});

test('an end that a dead cell wrote down outlives a daemon that has not journaled it', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await endUnseen(node);
  const other = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'));
  other.exec('BEGIN IMMEDIATE');

  await node.start();
  await eventually('the journal is held up', () => node.log.includes('the journal cannot be written'));
  await node.end();
  other.close();
  await node.start();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
  await eventually('what its cell has left is removed', () => endsWritten(node).length === 0);
});

test.each(['its own', "the caller's"] as const)(
  'what a guest printed last, into %s files, is there also when a cell that was taken over dies before it has read it',
  async (whose) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const [begun, go, printed] = ['begun', 'go', 'printed'].map((name) => join(node.root, name)) as [
      string,
      string,
      string,
    ];
    const path = (stream: string) => join(node.root, stream);
    const files = { stdout: path('stdout'), stderr: path('stderr'), maxFiles: 2, maxFileBytes: 1024 };
    const outputFiles = whose === 'its own' ? undefined : files;
    const code = `
import os, time
print('ready', flush=True)
open('${begun}', 'w').close()
while not os.path.exists('${go}'): time.sleep(0.02)
print('important', flush=True)
open('${printed}', 'w').close()
time.sleep(600)`;
    await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'python', code, outputFiles });
    await eventually('it has begun', () => existsSync(begun));
    await node.restart();
    const [cell = 0] = node.cellPids();

    process.kill(cell, 'SIGSTOP');
    writeFileSync(go, '');
    await eventually('it has printed', () => existsSync(printed));
    process.kill(cell, 'SIGKILL');

    expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'cell_lost' });
    const copy = await node.stdout('e');
    const written = outputFiles === undefined ? copy : readFileSync(`${outputFiles.stdout}.0`, 'utf8');
    expect(written).toBe('ready\nimportant\n');
    expect(copy).toBe(outputFiles === undefined ? written : '');
  },
);

test('an end of another start of the machine counts by the wall clock', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await endUnseen(node);
  const { path, end } = endWritten(node);
  rmSync(path);
  new EndRecord(path).keep({ ...end, monotonicMs: 1e12, bootId: 'another' });
  const { monotonicMs: beforeMs } = now();

  await node.start();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
  // Neither with its start nor when it was learned.
  const { started, exited } = endsJournaled(node);
  expect(exited).toBeGreaterThan(started);
  expect(exited).toBeLessThan(beforeMs);
});

test('a stop under way goes on: its signal comes once, and force when the grace period has passed', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.on('SIGTERM', () => console.log('asked')); setInterval(() => {}, 1000); console.log('ready');";
  await node.ready({ executionId: 'e', code });
  const graceMs = 16_000;
  await node.client.cancelExecution('s', 'e', { graceMs });
  await node.printed('e', 'asked');

  const asked = Date.now();
  await node.end();
  await eventually('some of its grace has passed', () => Date.now() > asked + 5_000);
  const restartedMs = Date.now();
  await node.start();

  expect(await node.client.getExecutionStatus('s', 'e')).toMatchObject({ state: 'signaled', rung: 'graceful' });
  const { result, times } = await node.client.wait('s', 'e');
  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect((times.exitedAtMs as number) - (times.signaledAtMs as number)).toBeGreaterThan(graceMs - 100);
  // Counted from the restart it would be no less.
  expect((times.exitedAtMs as number) - restartedMs).toBeLessThan(graceMs);
  expect(await node.stdout('e')).toBe('ready\nasked\n');
  expect(await node.steps('e')).toEqual(['pending', 'running', 'signaled.graceful', 'signaled.forced', 'exited']);
});

test('a stop that was given less time, by its own daemon or by the next one, has no more with another', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.on('SIGTERM', () => console.log('asked')); setInterval(() => {}, 1000); console.log('ready');";
  for (const executionId of ['first', 'second']) {
    await node.ready({ executionId, code });
    await node.client.cancelExecution('s', executionId, { graceMs: 2_000_000 });
    await node.printed(executionId, 'asked');
  }
  await node.client.cancelExecution('s', 'first', { graceMs: 1_000 });

  await node.restart();
  await node.client.cancelExecution('s', 'second', { graceMs: 1_000 });
  await node.restart();

  for (const executionId of ['first', 'second']) {
    const { result } = await node.client.wait('s', executionId);
    expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
    expect(await node.stdout(executionId)).toBe('ready\nasked\n');
    expect(await node.steps(executionId)).toEqual([
      'pending',
      'running',
      'signaled.graceful',
      'signaled.forced',
      'exited',
    ]);
  }
});

test.each(['its cell', 'the record of its cell'])(
  'a guest that has ended in its grace period was not forced, though that passed before a daemon heard of it from %s',
  async (from) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const go = join(node.root, 'go');
    const code = `process.on('SIGTERM', () => console.log('asked')); ${endsOnce(go)}`;
    await node.ready({ executionId: 'e', code });
    const graceMs = 4_000;
    await node.client.cancelExecution('s', 'e', { graceMs });
    await node.printed('e', 'asked');
    const asked = Date.now();

    await node.end();
    writeFileSync(go, '');
    await eventually('it has ended', () => endsWritten(node).length > 0);
    if (from !== 'its cell') for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
    await eventually('its grace has passed', () => Date.now() > asked + graceMs);
    await node.start();

    const { result } = await node.client.wait('s', 'e');
    expect(result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3 });
    expect(await node.steps('e')).toEqual(['pending', 'running', 'signaled.graceful', 'exited']);
  },
);

test.each(LANGUAGES)(
  'a stop that no daemon could write down is the reason of the end all the same: %s',
  async (language) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const code = {
      javascript: "setInterval(() => {}, 1000); console.log('ready');",
      python: "import time\nprint('ready', flush=True)\ntime.sleep(600)",
    }[language];
    await node.ready({ executionId: 'e', language, code, timeoutMs: 6_000 });

    // Whoever else writes to the journal keeps the daemon from it.
    const other = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'));
    other.exec('BEGIN IMMEDIATE');
    await eventually('it has ended', () => endsWritten(node).length > 0);
    expect(await node.client.getExecutionStatus('s', 'e')).toMatchObject({ state: 'running' });
    await node.end();
    other.close();
    await node.start();

    const { result } = await node.client.wait('s', 'e');
    expect(result).toMatchObject({ reason: 'timed_out', rung: 'graceful', signal: 'SIGTERM' });
    expect(await node.steps('e')).toEqual(['pending', 'running', 'exited']);
  },
);

test.each(['with its cell', 'by itself'])(
  'what has waited longer than it may, for a place that a guest left %s while there was no daemon, starts no more',
  async (how) => {
    await using node = await FaultNode.start({ maxRunning: 1 });
    await node.client.createSession('s');
    const [go, file] = [join(node.root, 'go'), join(node.root, 'started')];
    await node.ready({ executionId: 'first', code: endsOnce(go) });
    const code = `require('fs').appendFileSync('${file}', process.env.ID)`;
    const waits = { sessionId: 's', language: 'javascript', code };
    const queueTimeoutMs = 500;
    await node.client.executeSnippet({ ...waits, executionId: 'waits', env: { ID: 'waits' }, queueTimeoutMs });
    const waited = Date.now();
    await node.client.executeSnippet({ ...waits, executionId: 'patient', env: { ID: 'patient' } });

    await node.end();
    if (how === 'by itself') {
      writeFileSync(go, '');
      await eventually('it has ended', () => endsWritten(node).length > 0);
    }
    for (const pid of how === 'by itself' ? [] : node.cellPids()) process.kill(pid, 'SIGKILL');
    await eventually('it has waited too long', () => Date.now() > waited + queueTimeoutMs);
    await node.start();

    expect((await node.client.wait('s', 'waits')).result).toMatchObject({ reason: 'queue_timed_out', exitCode: -1 });
    expect(await node.steps('waits')).toEqual(['pending', 'exited']);
    expect((await node.client.wait('s', 'patient')).result).toMatchObject({ reason: 'completed' });
    expect(readFileSync(file, 'utf8')).toBe('patient');
  },
);

test('what was handed to a cell that is gone starts no second time, though nobody saw it start', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s', { contextPoolSize: 1 });
  const zygote = await startZygote(node);
  const file = join(node.root, 'started');
  process.kill(zygote, 'SIGSTOP');
  await handIn(node, { executionId: 'handed', code: `open('${file}', 'a').write('x')` });

  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  for (const daemon of ['the next', 'the one after it']) {
    await node.restart();
    expect((await node.client.wait('s', 'handed')).result, daemon).toMatchObject({ reason: 'daemon_lost' });
    expect(await node.steps('handed'), daemon).toEqual(['pending', 'exited']);
  }

  expect(existsSync(file)).toBe(false);
});

test('a process that nobody saw start ends with the cell that started it', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  const options = { language: 'javascript', isolation: 'process' } as const;
  await node.ready({ ...options, executionId: 'first', code: `console.log('ready'); setInterval(() => {}, 1e6);` });
  const [cell = 0] = node.cellPids();
  const file = join(node.root, 'started');
  const code = `require('fs').writeFileSync('${file}', 'process ' + process.pid + '.'); setInterval(() => {}, 1e6);`;
  process.kill(cell, 'SIGSTOP');
  await node.client.executeSnippet({ ...options, sessionId: 's', executionId: 'handed', code });
  await eventually('a cell has it', () => cellHas(node, 'handed'));
  // What is journaled later is acknowledged later: by now it was handed over.
  await node.client.createSession('later');

  await node.end();
  process.kill(cell, 'SIGCONT');
  await eventually('it runs', () => existsSync(file) && readFileSync(file, 'utf8').endsWith('.'));
  process.kill(cell, 'SIGKILL');
  await node.start();

  expect((await node.client.wait('s', 'handed')).result).toMatchObject({ reason: 'daemon_lost' });
  const [pid] = /\d+/.exec(readFileSync(file, 'utf8')) as RegExpExecArray;
  expect(Number(pid)).not.toBe(cell);
  expect(isAlive(Number(pid))).toBe(false);
});

test('guests that no daemon comes back to in time are killed, and that is their result', async () => {
  await using node = await FaultNode.start({ orphanGraceMs: 300 });
  await node.client.createSession('s', { maxRunning: 2 });
  for (const language of LANGUAGES) {
    await node.ready({ executionId: language, language, code: COUNTER[language], stdin: true });
  }
  const waits = { sessionId: 's', executionId: 'waits', language: 'javascript', code: "console.log('at last')" };
  await node.client.executeSnippet(waits);

  await node.end();
  await eventually('their cells are gone', () => node.cellPids().length === 0);
  await node.start();

  for (const language of LANGUAGES) {
    const { result } = await node.client.wait('s', language);
    const message = 'no daemon came back within 300 ms (orphanGraceMs)';
    expect(result).toMatchObject({ reason: 'signaled', signal: 'SIGKILL', exitCode: 137, message });
    expectCounted(await node.stdout(language));
  }
  expect((await node.client.wait('s', 'waits')).result?.reason).toBe('completed');
  expect(await node.stdout('waits')).toBe('at last\n');
});
