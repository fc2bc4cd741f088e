import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, test } from 'vitest';
import { eventually } from '../support/daemon.ts';
import { endsWritten, FaultNode } from './node.ts';
import { endsJournaled, endsOnce, endWritten, handIn, LANGUAGES, startZygote } from './restarted.ts';

test('a run limit stands over a restart, and one that passed meanwhile is held at once', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "setInterval(() => {}, 1000); console.log('ready');";
  const [dueMs, laterMs] = [4_000, 16_000];
  await node.ready({ executionId: 'due', code, timeoutMs: dueMs });
  await node.ready({ executionId: 'later', code, timeoutMs: laterMs });
  const { times } = await node.client.getExecutionStatus('s', 'later');
  const started = times.startedAtMs as number;

  await node.end();
  await eventually('its time is up', () => Date.now() > started + dueMs + 1_000);
  const restartedMs = Date.now();
  await node.start();
  const due = await node.client.wait('s', 'due');
  const later = await node.client.wait('s', 'later');

  expect(due.result).toMatchObject({ reason: 'timed_out', signal: 'SIGTERM' });
  expect(later.result).toMatchObject({ reason: 'timed_out' });
  expect(due.times.exitedAtMs).toBeLessThan(later.times.exitedAtMs as number);
  expect((later.times.exitedAtMs as number) - started).toBeGreaterThan(laterMs - 100);
  // Counted from the restart it would be no less.
  expect((later.times.exitedAtMs as number) - restartedMs).toBeLessThan(laterMs);
});

test.each(LANGUAGES)(
  'a CPU limit that a %s guest passes while there is no daemon is held by the next one',
  { timeout: 180_000 },
  async (language) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const [go, burned] = [join(node.root, 'go'), join(node.root, 'burned')];
    const code = {
      javascript: `
      const { existsSync, writeFileSync } = require('fs');
      console.log('ready');
      const wait = setInterval(() => {
        if (!existsSync('${go}')) return;
        clearInterval(wait);
        while (process.threadCpuUsage().user < 1_500_000);
        writeFileSync('${burned}', '');
        for (;;);
      }, 20);`,
      python: `
import os, time
print('ready', flush=True)
while not os.path.exists('${go}'):
    time.sleep(0.02)
while time.process_time() < 1.5:
    pass
open('${burned}', 'w')
while True:
    pass`,
    }[language];
    await node.ready({ executionId: 'e', language, code, cpuTimeLimitMs: 500, graceMs: 100 });

    await node.end();
    writeFileSync(go, '');
    await eventually('it is far beyond its limit', () => existsSync(burned), 90_000);
    await node.start();

    const { result } = await node.client.wait('s', 'e', { timeoutMs: 60_000 });
    expect(result).toMatchObject({ reason: 'timed_out', message: expect.stringContaining('CPU time used') });
  },
);

test('a soft memory limit passed while there is no daemon is told of once by those that follow', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const [go, heard] = [join(node.root, 'go'), join(node.root, 'heard')];
  const code = `
    const { existsSync, writeFileSync } = require('fs');
    process.on('SIGUSR2', () => writeFileSync('${heard}', ''));
    console.log('ready');
    let held;
    setInterval(() => { if (existsSync('${go}')) held ??= Buffer.alloc(128 << 20, 1); }, 20);`;
  await node.ready({ executionId: 'e', code, memorySoftLimitMb: 64 });

  await node.end();
  writeFileSync(go, '');
  await eventually('it was sent its signal', () => existsSync(heard));

  for (const executionId of ['under the next daemon', 'under the one after it']) {
    await node.restart();
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code: '0' });
    await node.client.wait('s', executionId);
  }
  await node.client.cancelExecution('s', 'e');

  const { warnings } = await node.client.wait('s', 'e');
  expect(warnings).toEqual([expect.stringContaining('the soft memory limit is 64 MiB')]);
});

/** Passes its soft limit once told, and ends at once when it is sent the signal of that. */
const endsAtSoftLimit = (go: string) => `
  const { existsSync } = require('fs');
  process.on('SIGUSR2', () => process.exit());
  console.log('ready');
  let held;
  setInterval(() => { if (existsSync('${go}')) held ??= Buffer.alloc(128 << 20, 1); }, 20);`;

test.each(['its cell', 'the record of its cell'])(
  'a soft memory limit passed while there is no daemon, and the end behind it, are told of by %s as of when they were',
  async (by) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const go = join(node.root, 'go');
    await node.ready({ executionId: 'e', code: endsAtSoftLimit(go), memorySoftLimitMb: 64 });
    await node.end();
    writeFileSync(go, '');
    await eventually('it has ended', () => endsWritten(node).length > 0);
    const { end } = endWritten(node);
    if (by !== 'its cell') for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');

    await node.start();

    const { warnings, result, times } = await node.client.wait('s', 'e');
    expect(warnings).toEqual([expect.stringContaining('the soft memory limit is 64 MiB')]);
    expect(result?.reason).toBe('completed');
    expect(times.exitedAtMs).toBe(end.atMs);
    expect(endsJournaled(node)).toMatchObject({ exited: end.monotonicMs, lastExit: end.monotonicMs });
  },
);

test('a soft memory limit is told of once by a daemon whose journal is held up until the guest has ended', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const go = join(node.root, 'go');
  await node.ready({ executionId: 'e', code: endsAtSoftLimit(go), memorySoftLimitMb: 64 });
  const other = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'));
  other.exec('BEGIN IMMEDIATE');

  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  await eventually('the journal is held up', () => node.log.includes('the journal cannot be written'));
  other.close();

  const { warnings, result } = await node.client.wait('s', 'e');
  expect(warnings).toEqual([expect.stringContaining('the soft memory limit is 64 MiB')]);
  expect(result?.reason).toBe('completed');
});

test.each([1, -1])('a wall clock that is set %d h off between two daemons moves no deadline', async (hours) => {
  await using node = await FaultNode.start();
  await node.client.createSession('s', { totalTtlMs: 120_000 });
  const code = "setInterval(() => {}, 1000); console.log('ready');";
  await node.ready({ executionId: 'later', code, timeoutMs: 60_000 });
  await node.ready({ executionId: 'due', code, timeoutMs: 5_000 });
  await node.client.executeSnippet({ sessionId: 's', executionId: 'done', language: 'javascript', code: '0' });
  await node.client.wait('s', 'done');

  await node.end();
  await node.start({ retainedAgeMs: 60_000 }, { clockMs: hours * 3_600_000 });

  expect((await node.client.wait('s', 'due', { timeoutMs: 30_000 })).result?.reason).toBe('timed_out');
  expect((await node.client.getExecutionStatus('s', 'later')).state).toBe('running');
  expect((await node.client.wait('s', 'done')).result?.reason).toBe('completed');
});

test('what was learned late counts from when it was, also after another restart', { timeout: 180_000 }, async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s', { contextPoolSize: 1 });
  const zygote = await startZygote(node);
  const lateMs = 4_000;
  const keptMs = 3_500;
  const timeoutMs = 16_000;
  const [go, started] = [join(node.root, 'go'), join(node.root, 'started')];
  await node.ready({ executionId: 'exits', code: endsOnce(go) });
  process.kill(zygote, 'SIGSTOP');
  const code = `import time\nopen('${started}', 'w')\ntime.sleep(600)`;
  await handIn(node, { executionId: 'starts', code, timeoutMs });
  await node.end();
  expect(existsSync(started)).toBe(false);
  writeFileSync(go, '');
  process.kill(zygote, 'SIGCONT');
  await eventually('both have happened', () => existsSync(started) && endsWritten(node).length > 0);
  const happenedMs = Date.now();
  await eventually('that is long ago', () => Date.now() > happenedMs + lateMs);

  const restartedMs = Date.now();
  await node.start();
  expect((await node.client.getExecutionStatus('s', 'starts')).state).toBe('running');
  expect((await node.client.wait('s', 'exits')).result?.reason).toBe('failed');
  await node.restart({ retainedAgeMs: keptMs });

  await expect(node.client.wait('s', 'exits')).rejects.toMatchObject({ code: 'not_found' });
  const { result, times } = await node.client.wait('s', 'starts');
  expect(result?.reason).toBe('timed_out');
  expect((times.exitedAtMs as number) - (times.startedAtMs as number)).toBeGreaterThan(timeoutMs - 100);
  // Counted from when it was learned it would be no less.
  expect((times.exitedAtMs as number) - restartedMs).toBeLessThan(timeoutMs);
});

describe.each([1, -1])('an end that a daemon learns of late, with a wall clock that was set %d h off', (hours) => {
  test.each(['its cell', 'the record of its cell'])('from %s, counts from when it was', async (from) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s', { idleTtlMs: 600_000 });
    const go = join(node.root, 'go');
    await node.ready({ executionId: 'e', code: endsOnce(go) });
    await node.end();
    writeFileSync(go, '');
    await eventually('it has ended', () => endsWritten(node).length > 0);
    const { end } = endWritten(node);
    if (from !== 'its cell') for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');

    await node.start({ retainedAgeMs: 600_000 }, { clockMs: hours * 3_600_000 });

    expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
    expect((await node.client.getSession('s')).state).toBe('running');
    expect(endsJournaled(node)).toMatchObject({ exited: end.monotonicMs, lastExit: end.monotonicMs });
  });
});
