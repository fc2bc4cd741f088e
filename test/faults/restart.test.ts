import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, onTestFinished, test } from 'vitest';
import { connectDaemon } from '../../src/client/client.ts';
import { now } from '../../src/clock.ts';
import { UnavailableError } from '../../src/errors.ts';
import type { Exited } from '../../src/gen/elide/cell/v1/cell.ts';
import { processName } from '../../src/processes.ts';
import type { ExecutionMetrics } from '../../src/supervisor/execution-metrics.ts';
import type { Snippet } from '../../src/supervisor/requests.ts';
import { EndRecord, readEndRecord } from '../../src/wire/end-record.ts';
import { childrenOf, descendants, eventually, isAlive, processesWith, TestDaemon } from '../support/daemon.ts';
import { endsWritten, FaultNode } from './node.ts';

/** Counts as fast as it can, asked by a line of its input, or on its own every 5 ms; ends with code 7 when told. */
const COUNTER = {
  javascript: `
    let count = 0;
    setInterval(() => console.log(count++), 5);
    process.stdin.on('data', (data) => { console.log('got ' + data); if (String(data).includes('end')) process.exit(7); });
    console.log('ready');`,
  python: `
import os, select, sys
print('ready', flush=True)
count = 0
while True:
    if select.select([0], [], [], 0.005)[0]:
        text = os.read(0, 100).decode()
        print('got', text, flush=True)
        if 'end' in text:
            sys.exit(7)
    print(count, flush=True)
    count += 1`,
};

const LANGUAGES = ['javascript', 'python'] as const;

/** Says `ready`, and ends with code 3 once there is this file. */
const endsOnce = (go: string, before = '') =>
  `setInterval(() => { if (require('fs').existsSync('${go}')) { ${before} process.exit(3); } }, 20); console.log('ready');`;

/** It has counted from 0 on, as far as it came, without a gap. */
function expectCounted(stdout: string): void {
  const counted = stdout.split('\n').filter((line) => /^\d+$/.test(line));
  expect(counted.length).toBeGreaterThan(0);
  expect(counted).toEqual(counted.map((_, index) => String(index)));
}

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
  const go = join(node.root, 'go');
  await node.ready({ executionId: 'e', code: endsOnce(go) });
  await node.end();
  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
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

test.each(LANGUAGES)(
  'what a %s guest has started ends with its cell, also while there is no daemon and without control groups',
  async (language) => {
    await using node = await FaultNode.start({ controlGroups: false });
    await node.client.createSession('s');
    const seconds = `600.${process.pid}${Date.now()}`;
    const code = {
      javascript: `require('child_process').spawn('sleep', ['${seconds}']).on('spawn', () => console.log('ready'));`,
      python: `import subprocess\nchild = subprocess.Popen(['sleep', '${seconds}'])\nprint('ready', flush=True)\nchild.wait()`,
    }[language];
    await node.ready({ executionId: 'e', language, code });
    const cells = node.cellPids();
    const started = () => processesWith(`sleep ${seconds}`);
    await eventually('what it has started is seen', () => started().length === 1);
    const left = started();

    await node.end();
    // With the zygote and its shepherds, stopped first: nobody is left to end anything.
    const all = cells.flatMap((pid) => [pid, ...descendants(pid)]).filter((pid) => !left.includes(pid));
    for (const signal of ['SIGSTOP', 'SIGKILL'] as const) for (const pid of all) process.kill(pid, signal);
    await node.start();
    const { result } = await node.client.wait('s', 'e');

    expect(result).toMatchObject({ reason: 'daemon_lost', exitCode: -1 });
    expect(left.filter(isAlive)).toEqual([]);
  },
);

test.each([
  ['socket is gone', (base: string) => rmSync(`${base}.sock`)],
  ['token is another', (base: string) => writeFileSync(`${base}.token`, 'another')],
])('a cell whose %s is ended with all that it holds, before that counts as lost', async (_, harm) => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  for (const language of LANGUAGES) await node.ready({ executionId: language, language, code: COUNTER[language] });
  const cells = node.cellPids();
  const all = cells.flatMap((pid) => [pid, ...descendants(pid)]);
  await node.end();
  const directory = join(node.stateDir, 'daemon', 'cells');
  for (const name of readdirSync(directory)) if (name.endsWith('.sock')) harm(join(directory, name.slice(0, -5)));

  await node.start();

  expect(cells).toHaveLength(2);
  for (const language of LANGUAGES) {
    const { result } = await node.client.wait('s', language);
    expect(result).toMatchObject({ reason: 'daemon_lost', exitCode: -1 });
    expect(await node.steps(language)).toEqual(['pending', 'running', 'exited']);
  }
  expect(all.filter(isAlive)).toEqual([]);
  expect(readdirSync(directory)).toEqual([]);
});

test('a cell that was made without control groups gets no guests whose limits the next daemon holds by them', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  await node.ready({ executionId: 'kept', language: 'python', code: COUNTER.python, stdin: true });
  const code = `
import os, time
try:
    for count in range(10):
        if os.fork() == 0: time.sleep(600)
    print('all were forked')
except OSError as error: print(error)`;

  await node.end();
  await node.start({});
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'python', code, processLimit: 3 });
  const { warnings } = await node.client.wait('s', 'e');
  const stdout = await node.stdout('e');
  await node.client.writeInput('s', 'kept', Buffer.from('end\n'));

  // Where there are none for this daemon either, it says so.
  expect(stdout.includes('all were forked')).toBe(warnings.length > 0);
  expect((await node.client.wait('s', 'kept')).result).toMatchObject({ exitCode: 7 });
});

test('what is kept warm is in the cell that new guests go to, also while an older one gets none', async () => {
  await using node = await FaultNode.start({ controlGroups: false, cellIdleMs: 600_000 });
  await node.client.createSession('s', { contextPoolSize: 1, executionDefaults: { isolation: 'process' } });
  await node.ready({ executionId: 'kept', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const [older = 0] = node.cellPids();
  await eventually('one is warm', () => childrenOf(older).length === 2);

  await node.restart({ cellIdleMs: 600_000 });
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code: '0' });
  await node.client.wait('s', 'e');

  // Where there are no control groups, the older one gets new guests.
  const cells = node.cellPids();
  const inOlder = cells.length === 1 ? 2 : 1;
  await eventually('one is kept, and one is warm where new guests go to', () => {
    return childrenOf(older).length === inOlder && cells.flatMap((pid) => childrenOf(pid)).length === 2;
  });
});

test.each(LANGUAGES)(
  'a cell that holds more %s guests than one may hold now goes on with them, and gets no more',
  async (language) => {
    await using node = await FaultNode.start({ contextsPerCell: 6, processesPerCell: 6 });
    await node.client.createSession('s');
    const ids = ['0', '1', '2', '3'];
    for (const executionId of ids) {
      await node.ready({ executionId, language, code: COUNTER[language], stdin: true });
    }
    const [full = 0] = node.cellPids();

    await node.end();
    await node.start({ contextsPerCell: 2, processesPerCell: 2 });
    await node.ready({ executionId: 'later', language, code: COUNTER[language], stdin: true });

    const { cells } = await node.client.getSession('s');
    expect(cells.map(({ pid, executions }) => [pid === full, executions])).toEqual([
      [true, 4],
      [false, 1],
    ]);
    for (const executionId of [...ids, 'later']) {
      await node.client.writeInput('s', executionId, Buffer.from('end\n'));
      expect((await node.client.wait('s', executionId)).result).toMatchObject({ reason: 'failed', exitCode: 7 });
    }
  },
);

/** Processes that look as if they were started for the node's one cell. */
function impostorsOf(node: FaultNode): number[] {
  const directory = join(node.stateDir, 'daemon', 'cells');
  const [socket = ''] = readdirSync(directory).filter((name) => name.endsWith('.sock'));
  const places = [socket, socket.replace('.sock', '.token')].map((name) => join(directory, name));
  return [1, 2].map(() => {
    const child = spawn('sh', ['-c', 'sleep 600; :', ...places], { detached: true, stdio: 'ignore' });
    onTestFinished(() => void (child.exitCode ?? child.signalCode ?? process.kill(-(child.pid as number), 'SIGKILL')));
    return child.pid as number;
  });
}

test('a cell is taken over, and can be ended, whatever else says that it is its process', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  const code = `console.log('ready');
    setTimeout(() => require('node:crypto').pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512'), 50);`;
  await node.ready({ executionId: 'stuck', code });
  const [cell] = node.cellPids();
  await node.end();
  impostorsOf(node);

  await node.start();

  const { cells } = await node.client.getSession('s');
  expect(cells.map(({ pid }) => pid)).toEqual([cell]);
  await node.client.cancelExecution('s', 'stuck', { graceMs: 0 });
  expect((await node.client.wait('s', 'stuck')).result).toMatchObject({ reason: 'cancelled', rung: 'cell' });
});

test('a cell that makes JavaScript of a large program is waited for, and its guests run on', {
  timeout: 120_000,
}, async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'neighbour', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const line = 'function f(a: number, b: string): string { return a + b; }\n';
  const code = `${line.repeat((16 * 2 ** 20) / line.length)}process.exit(3);`;
  const isWritten = () =>
    readdirSync(join(node.stateDir, 'work'), { recursive: true }).some((name) => String(name).endsWith('.ts'));

  await node.client.executeSnippet({ sessionId: 's', executionId: 'large', language: 'typescript', code });
  await eventually('the cell is at the large program', isWritten, 60_000);
  // It goes on once the next daemon asks.
  for (const pid of node.cellPids()) process.kill(pid, 'SIGSTOP');
  await node.restart();

  expect((await node.client.wait('s', 'large')).result).toMatchObject({ exitCode: 3 });
  expect((await node.client.getExecutionStatus('s', 'neighbour')).state).toBe('running');
});

test('where no cell answers, all that says it is its process is ended', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: "setInterval(() => {}, 1000); console.log('ready');" });
  await node.end();
  const impostors = impostorsOf(node);
  for (const pid of node.cellPids()) if (!impostors.includes(pid)) process.kill(pid, 'SIGKILL');

  await node.start();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost' });
  expect(impostors.filter(isAlive)).toEqual([]);
});

test('another process that has the id of a guest, or of its cell, by now is left alone', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', language: 'python', code: COUNTER.python });
  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  const other = spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
  onTestFinished(() => void other.kill('SIGKILL'));
  const [boot, pid, startTime] = (processName(other.pid as number) as string).split(' ');
  const name = `${boot} ${pid} ${Number(startTime) - 1}`;
  const daemonDirectory = join(node.stateDir, 'daemon');
  const [file = '', ...files] = readdirSync(join(daemonDirectory, 'cells')).filter((each) => /\.process$/.test(each));
  writeFileSync(join(daemonDirectory, 'cells', file), name);
  const journal = new DatabaseSync(join(daemonDirectory, 'journal.db'));
  const tell = journal.prepare(
    "UPDATE events SET event = json_set(event, '$.process', ?, '$.pid', ?) WHERE event ->> 'state' = 'running'",
  );
  expect(tell.run(name, Number(pid)).changes).toBe(1);
  journal.close();

  await node.start();

  expect(files).toEqual([]);
  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost' });
  expect(isAlive(other.pid as number)).toBe(true);
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

/** The monotonic times that the journal has of the one execution that has exited, and of the last end in its session. */
function endsJournaled(node: FaultNode): { started: number; exited: number; lastExit: number } {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const ends = database.prepare(`
    SELECT json_extract(event, '$.monotonicMs') AS started, exited_monotonic_ms AS exited,
      json_extract(last_exit, '$.monotonicMs') AS lastExit
    FROM executions JOIN sessions USING (session_key) JOIN events USING (number)
    WHERE exited_at_ms IS NOT NULL AND event ->> 'state' = 'running' AND event ->> 'warning' IS NULL`);
  const [found, ...others] = ends.all() as { started: number; exited: number; lastExit: number }[];
  if (found === undefined || others.length > 0) throw new Error(`${others.length} other ends`);
  return { ...found };
}

/** The one end that a cell has written down. */
function endWritten(node: FaultNode): { path: string; end: Exited } {
  const [name = '', ...others] = endsWritten(node);
  const path = join(node.stateDir, 'daemon', 'cells', name);
  const [end, ...more] = readEndRecord(path);
  if (end === undefined || others.length + more.length > 0) throw new Error('not one end');
  return { path, end };
}

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

test.each(['of another start of the machine', 'of a cell that knows no other'])(
  'an end counts by the wall clock that is %s',
  async (whose) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const go = join(node.root, 'go');
    await node.ready({ executionId: 'e', code: endsOnce(go) });
    await node.end();
    writeFileSync(go, '');
    await eventually('it has ended', () => endsWritten(node).length > 0);
    for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
    await eventually('no cell is left', () => node.cellPids().length === 0);
    const { path, end } = endWritten(node);
    const [monotonicMs, bootId] = whose.startsWith('of a cell') ? [undefined, ''] : [1e12, 'another'];
    rmSync(path);
    new EndRecord(path).keep({ ...end, monotonicMs, bootId });
    const { monotonicMs: beforeMs } = now();

    await node.start();

    expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
    // Neither with its start nor when it was learned.
    const { started, exited } = endsJournaled(node);
    expect(exited).toBeGreaterThan(started);
    expect(exited).toBeLessThan(beforeMs);
  },
);

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

test('the guest of a worn cell runs on under the next daemon, and its cell is let go after it', {
  timeout: 180_000,
}, async () => {
  await using node = await FaultNode.start({ cellIdleMs: 600_000 });
  await node.client.createSession('s');
  const code = "process.on('SIGUSR2', () => console.log('heard')); setInterval(() => {}, 1000); console.log('ready');";
  await node.ready({ executionId: 'stays', code });
  const [worn = 0] = node.cellPids();
  const run = async (executionId: string, program: string) => {
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code: program });
    expect((await node.client.wait('s', executionId)).result?.reason).toBe('completed');
  };
  const spawns = "for (let i = 0; i < 70; i += 1) require('child_process').spawn('sleep', ['600']); process.exit(0);";
  await run('spawns', spawns);
  let runs = 0;
  await eventually('others run in another cell', async () => {
    await run(`run-${runs++}`, '0');
    return node.cellPids().length === 2;
  });

  await node.restart();
  await run('later', '0');

  const { cells } = await node.client.getSession('s');
  expect(cells.find(({ pid }) => pid === worn)).toMatchObject({ state: 'ready', executions: 1 });
  await node.client.signalExecution('s', 'stays', 'SIGUSR2');
  await node.printed('stays', 'heard');
  await node.client.cancelExecution('s', 'stays');
  await eventually('its cell is gone', () => !isAlive(worn));
  expect(node.cellPids()).toHaveLength(1);
});

test('what waits goes on waiting, starts in its order, and starts once', async () => {
  await using node = await FaultNode.start({ maxRunning: 1 });
  await node.client.createSession('s');
  const file = join(node.root, 'started');
  await node.ready({ executionId: 'first', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const ids = Array.from({ length: 20 }, (_, index) => `waits-${index}`);
  for (const executionId of ids) {
    const code = `require('fs').appendFileSync(${JSON.stringify(file)}, process.env.ID + '\\n')`;
    await node.client.executeSnippet({
      sessionId: 's',
      executionId,
      language: 'javascript',
      code,
      env: { ID: executionId },
    });
  }

  await node.restart();
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 20, running: 1, exited: 0 });
  await node.client.cancelExecution('s', 'first', { graceMs: 0 });
  await eventually('some have started', () => existsSync(file) && readFileSync(file, 'utf8').split('\n').length > 3);
  await node.restart();
  for (const executionId of ids) {
    expect((await node.client.wait('s', executionId)).result?.reason).toBe('completed');
  }

  expect(readFileSync(file, 'utf8').trim().split('\n')).toEqual(ids);
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 0, running: 0, exited: 21 });
});

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

test('what has finished answers as before, and its id is taken', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s', { weight: 7 });
  const snippet = { sessionId: 's', executionId: 'e', language: 'javascript', code: "console.log('hello')" };
  await node.client.executeSnippet(snippet);
  const before = await node.client.wait('s', 'e');
  const status = await node.client.getExecutionStatus('s', 'e');

  await node.restart();

  expect(await node.client.wait('s', 'e')).toEqual(before);
  expect(await node.client.getExecutionStatus('s', 'e')).toEqual(status);
  expect(await node.stdout('e')).toBe('hello\n');
  expect(await Array.fromAsync(node.client.listExecutions('s'))).toEqual([before]);
  expect((await node.client.getSession('s')).config.weight).toBe(7);
  await node.client.executeSnippet(snippet);
  await expect(node.client.executeSnippet({ ...snippet, code: '1' })).rejects.toMatchObject({ code: 'already_exists' });
  await expect(node.client.createSession('s')).rejects.toMatchObject({ code: 'already_exists' });
  expect(await node.client.cancelExecution('s', 'e')).toBe(false);
});

test('small output is the same whether the daemon is killed before, while or after it goes into the journal', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.stdout.write('out'); process.stderr.write('err');";
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code });
  await node.client.wait('s', 'e');
  const look = async () => ({
    chunks: await Array.fromAsync(node.client.streamOutput('s', 'e')),
    status: await node.client.getExecutionStatus('s', 'e'),
  });
  const before = await look();
  const output = join(node.stateDir, 'daemon', 'output');
  const { sessionKey, executionKey } = keysOf(node, 'e');
  const directories = () => readdirSync(join(output, sessionKey));
  expect(before.chunks.map(({ stream, data }) => `${stream} ${data}`)).toEqual(['stdout out', 'stderr err']);

  await node.restart();
  expect(await look()).toEqual(before);
  await eventually('it is in the journal', () => directories().length === 0);
  await node.restart();
  expect(await look()).toEqual(before);

  // It had begun to remove the files: of them the second is left.
  await node.end();
  mkdirSync(join(output, sessionKey, executionKey));
  writeFileSync(join(output, sessionKey, executionKey, 'stderr'), 'err');
  await node.start();
  expect(await look()).toEqual(before);
  await eventually('what was left is removed', () => directories().length === 0);
  expect(await look()).toEqual(before);
});

test('a wait, a watch and an output stream that are open ride through a restart', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: COUNTER.javascript, stdin: true });
  using client = connectDaemon({ socket: node.socket });
  await client.health();
  const waiting = client.wait('s', 'e');
  const watching = Array.fromAsync(client.watchExecution('s', 'e'));
  const streaming = Array.fromAsync(client.streamOutput('s', 'e', { streams: ['stdout'] }));

  await node.restart();
  await node.client.writeInput('s', 'e', Buffer.from('end\n'));

  expect((await waiting).result).toMatchObject({ exitCode: 7 });
  expect((await watching).map(({ sequence, state }) => [sequence, state])).toEqual([
    [1, 'pending'],
    [2, 'running'],
    [3, 'exited'],
  ]);
  expectCounted(Buffer.concat((await streaming).map(({ data }) => data)).toString());
});

test('metrics that are watched ride through a restart, to their final figures, of one execution and of all', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: COUNTER.javascript, stdin: true });
  using client = connectDaemon({ socket: node.socket });
  await client.health();
  let [rounds, roundsOfAll] = [0, 0];
  const one = (async () => {
    const seen: ExecutionMetrics[] = [];
    for await (const round of client.watchExecutionMetrics({ sessionId: 's', executionId: 'e', intervalMs: 100 })) {
      seen.push(...round);
      rounds += 1;
    }
    return seen;
  })();
  const stop = new AbortController();
  const all = (async () => {
    for await (const round of client.watchExecutionMetrics({ intervalMs: 100, signal: stop.signal })) {
      roundsOfAll += round.length;
    }
  })();
  const impatient = Array.fromAsync(client.watchExecutionMetrics({ intervalMs: 100, patienceMs: 0 }));
  impatient.catch(() => {});
  await eventually('both have begun', () => rounds > 1 && roundsOfAll > 1);

  await node.end();
  const before = [rounds, roundsOfAll];
  await expect(impatient).rejects.toMatchObject({ code: 'unavailable' });
  await node.start();
  await eventually('both go on', () => rounds > (before[0] ?? 0) + 1 && roundsOfAll > (before[1] ?? 0) + 1);
  await node.client.writeInput('s', 'e', Buffer.from('end\n'));

  const seen = await one;
  expect(seen.map(({ complete }) => complete)).toEqual(seen.map((_, index) => index === seen.length - 1));
  expect(seen.at(-1)?.stdoutBytes).toBe((await node.stdout('e')).length);
  stop.abort();
  await expect(all).rejects.toThrow(/abort/);
});

test('input that is said again because nobody answered is written once', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.stdin.on('data', (data) => process.stdout.write(data)); console.log('ready');";
  await node.ready({ executionId: 'e', code, stdin: true });
  await node.client.writeInput('s', 'e', Buffer.from('one '), false, { position: 0 });

  await node.restart();
  await node.client.writeInput('s', 'e', Buffer.from('one two '), false, { position: 0 });
  const future = node.client.writeInput('s', 'e', Buffer.from('three'), true, { position: 9 });
  await expect(future).rejects.toMatchObject({
    code: 'out_of_range',
    message: expect.stringMatching(/future: 8 bytes/),
  });
  await node.client.writeInput('s', 'e', Buffer.from('two three'), true, { position: 4 });

  await node.client.wait('s', 'e');
  expect(await node.stdout('e')).toBe('ready\none two three');
});

test('a session that was being deleted is deleted, and one that was deleted stays so', async () => {
  await using node = await FaultNode.start({ graceMs: 60_000 });
  await node.client.createSession('gone');
  await node.client.deleteSession('gone');
  await node.client.createSession('s');
  await node.ready({
    executionId: 'e',
    code: "process.on('SIGTERM', () => { console.log('asked'); setTimeout(() => process.exit(0), 1500); }); setInterval(() => {}, 1000); console.log('ready');",
  });
  node.client.deleteSession('s').catch(() => {});
  await node.printed('e', 'asked');

  await node.restart();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'session_closed', exitCode: 0 });
  await eventually('both are gone', async () => (await node.client.listSessions()).length === 0);
});

/** Runs one execution to its end, and hands in another behind one that goes on: what is known of them. */
async function doneAndWaiting(node: FaultNode) {
  const snippet = { sessionId: 's', language: 'javascript', code: "console.log('x')" };
  await node.client.executeSnippet({ ...snippet, executionId: 'done' });
  const done = await node.client.wait('s', 'done');
  await node.client.executeSnippet({ ...snippet, executionId: 'runs', code: COUNTER.javascript, stdin: true });
  await node.printed('runs', '\n0\n');
  await node.client.executeSnippet({ ...snippet, executionId: 'waits' });
  return done;
}

test('a daemon that detaches leaves everything running, or waiting, to the next one', async () => {
  await using node = await FaultNode.start({ onStop: 'detach' });
  await node.client.createSession('s', { maxRunning: 2 });
  await node.ready({ executionId: 'python', language: 'python', code: COUNTER.python, stdin: true });
  const done = await doneAndWaiting(node);
  const pids = node.cellPids();

  await node.end('SIGTERM');
  expect(pids.filter(isAlive)).toEqual(pids);
  await node.start();

  expect(node.cellPids()).toEqual(pids);
  expect(await node.client.wait('s', 'done')).toEqual(done);
  expect(await node.stdout('done')).toBe('x\n');
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 1, running: 2, exited: 1 });
  for (const executionId of ['python', 'runs']) {
    await node.client.writeInput('s', executionId, Buffer.from('end\n'));
    expect((await node.client.wait('s', executionId)).result).toMatchObject({ exitCode: 7 });
    expectCounted(await node.stdout(executionId));
  }
  expect((await node.client.wait('s', 'waits')).result?.reason).toBe('completed');
  expect(await node.steps('waits')).toEqual(['pending', 'running', 'exited']);
});

test('a daemon that is stopped ends everything, and its sessions are there for the next one', async () => {
  await using node = await FaultNode.start({ graceMs: 500 });
  await node.client.createSession('s', { maxRunning: 1 });
  const done = await doneAndWaiting(node);
  const below = descendants(node.pid);

  await node.end('SIGTERM');
  expect(below.filter(isAlive)).toEqual([]);
  await node.start();

  expect((await node.client.wait('s', 'runs')).result).toMatchObject({ reason: 'session_closed', signal: 'SIGTERM' });
  expectCounted(await node.stdout('runs'));
  expect((await node.client.wait('s', 'waits')).result).toMatchObject({ reason: 'session_closed', exitCode: -1 });
  expect(await node.stdout('waits')).toBe('');
  expect(await node.client.wait('s', 'done')).toEqual(done);
  expect(await node.stdout('done')).toBe('x\n');
  await node.ready({ executionId: 'again', code: "console.log('ready')" });
});

test("the journal is its owner's alone, and keeps no environment of what has started", async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({
    executionId: 'e',
    code: "setInterval(() => {}, 1000); console.log('ready');",
    env: { KEY: 'a-secret-value' },
  });

  const directory = join(node.stateDir, 'daemon');
  const files = readdirSync(directory).filter((name) => name.startsWith('journal'));
  expect(files).toContain('journal.db');
  for (const name of files) expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600);
  // It runs: what it was started with is of no use any more.
  const database = new DatabaseSync(join(directory, 'journal.db'), { readOnly: true });
  await eventually('its request is gone', () => database.prepare('SELECT * FROM requests').all().length === 0);
  database.close();
  await node.end('SIGTERM');
  for (const name of readdirSync(directory).filter((file) => file.startsWith('journal'))) {
    expect(readFileSync(join(directory, name), 'latin1')).not.toContain('a-secret-value');
  }
  expect(node.log).not.toContain('a-secret-value');
});

/** How a journal is lost. */
const overwrite = (file: string) => writeFileSync(file, Buffer.alloc(8192, 'garbage'));
const remove = (file: string) => ['', '-wal', '-shm'].map((suffix) => rmSync(file + suffix));

test.each([
  ['was overwritten', overwrite],
  ['was emptied', (file: string) => truncateSync(file)],
  ['was emptied with its log', (file: string) => [file, `${file}-wal`].map((path) => truncateSync(path))],
  ['is not there', remove],
  ['was overwritten, also by a daemon that is killed before it is ready,', overwrite, true],
  ['is not there, also by a daemon that is killed before it is ready,', remove, true],
] as const)(
  'a journal that %s is said loudly, and nothing of what it knew is removed',
  async (_, lose, killed: boolean | undefined = false) => {
    await using node = await FaultNode.start();
    const daemonDirectory = join(node.stateDir, 'daemon');
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: COUNTER.javascript });
    const cells = node.cellPids();
    await node.end();
    const file = join(daemonDirectory, 'journal.db');
    const before = Object.fromEntries(['', '-wal'].map((suffix) => [suffix, statSync(file + suffix).ino]));
    lose(file);
    const isThere = ['', '-wal'].filter((suffix) => existsSync(file + suffix) && statSync(file + suffix).size > 0);
    if (killed) await startInVain(node, file);

    await node.start({});

    // Nobody could ask for the guest any more, or stop it; what it wrote is there for people, also for a later daemon.
    expect(cells).toHaveLength(1);
    await eventually('its cell is gone', () => !cells.some(isAlive));
    for (const daemon of ['this daemon', 'the next one']) {
      const aside = readdirSync(daemonDirectory).filter((name) => name.includes('.damaged-'));
      const inodes = aside.map((name) => statSync(join(daemonDirectory, name)).ino);
      for (const suffix of isThere) expect(inodes, daemon).toContain(before[suffix]);
      const names = readdirSync(daemonDirectory, { recursive: true, encoding: 'utf8' });
      const [written = '', ...others] = names.filter((name) => name.endsWith('/stdout'));
      expect([written, others], daemon).toEqual([expect.stringMatching(/^output\.set-aside-/), []]);
      expect(readFileSync(join(daemonDirectory, written), 'utf8'), daemon).toMatch(/^ready\n/);
      await node.restart();
    }
    expect(node.log.match(/the journal does not know output that is there: it was set aside/g)).toHaveLength(1);
    expect(node.log.includes('the journal was damaged')).toBe(isThere.length > 0);
    await node.client.createSession('s');
  },
);

/** Starts a daemon that waits for its Python, and kills it once it has begun a journal. */
async function startInVain(node: FaultNode, journal: string): Promise<void> {
  const [python, go] = [join(node.root, 'python'), join(node.root, 'go')];
  writeFileSync(python, `#!/bin/sh\nuntil [ -e ${go} ]; do sleep 0.05; done\n`, { mode: 0o700 });
  const started = node.start({ python }).catch((error: Error) => error.message);
  await eventually('a journal is begun', () =>
    /^SQLite/.test(existsSync(journal) ? readFileSync(journal, 'latin1') : ''),
  );
  await node.end();
  expect(await started).toMatch(/the daemon is gone: SIGKILL$/);
  writeFileSync(go, '');
}

/** The zygote of the one cell with Python guests of session `s`, in which `warm` answers each line. */
async function startZygote(node: FaultNode): Promise<number> {
  const code = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('heard', line, flush=True)";
  await node.ready({ executionId: 'warm', language: 'python', code, stdin: true });
  let zygotes: number[] = [];
  await eventually('its zygote is seen', () => {
    const children = node.cellPids().flatMap((cell) => childrenOf(cell));
    zygotes = processesWith('zygote.py').filter((pid) => children.includes(pid));
    return zygotes.length === 1;
  });
  return zygotes[0] as number;
}

/** Hands in Python for a cell whose zygote stands still, and waits until the cell has it: nothing of it runs by then. */
async function handIn(node: FaultNode, snippet: Pick<Snippet, 'executionId' | 'code' | 'timeoutMs'>): Promise<void> {
  const python = { sessionId: 's', language: 'python' };
  // They take what was forked ahead: the next one needs the zygote.
  for (const executionId of ['first', 'second', 'third']) {
    await node.client.executeSnippet({ ...python, executionId, code: 'import time\ntime.sleep(600)' });
  }
  await node.client.executeSnippet({ ...python, ...snippet });
  await eventually('a cell is about to have it', () => cellHas(node, snippet.executionId));
  // The daemon tells the cell once it hears that this is written: before it hears of what is written later.
  await node.client.createSession('later');
  // What the cell has not read yet when its daemon goes may be lost: it reads one after the other.
  await node.client.writeInput('s', 'warm', Buffer.from(`${snippet.executionId}\n`));
  await node.printed('warm', `heard ${snippet.executionId}\n`);
}

/** What the directories of an execution's output are called. */
function keysOf(node: FaultNode, executionId: string): { sessionKey: string; executionKey: string } {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const find = database.prepare('SELECT session_key, execution_key FROM executions WHERE execution_id = ?');
  const { session_key: sessionKey, execution_key: executionKey } = find.get(executionId) as Record<string, string>;
  return { sessionKey: sessionKey as string, executionKey: executionKey as string };
}

/** A cell was told of this execution, or is about to be: the journal says so. */
function cellHas(node: FaultNode, executionId: string): boolean {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const row = database.prepare('SELECT cell_key FROM executions WHERE execution_id = ?').get(executionId);
  return typeof row?.cell_key === 'string';
}

test('a session is the same to who asks for the same of a daemon with other defaults', async () => {
  await using node = await TestDaemon.start();
  const places = { stateDir: join(node.root, 's'), socket: node.endpoints.socket as string };
  const asked = {
    nothing: {},
    much: { enabledLanguages: ['js'], memoryLimitMb: 64, weight: 3, executionDefaults: { timeoutMs: 1_000 } },
    older: {},
  };
  const before = new Map<string, object>();
  for (const [id, config] of Object.entries(asked)) before.set(id, await node.daemon.createSession(id, config));
  await node.daemon.stop();
  const database = new DatabaseSync(join(places.stateDir, 'daemon', 'journal.db'));
  database.exec("UPDATE sessions SET fingerprint = NULL WHERE session_id = 'older'");
  database.close();

  const defaults = { contextPoolSize: 3, maxQueued: 7, executionDefaults: { processLimit: 50 } };
  const next = await TestDaemon.start({
    ...places,
    ...defaults,
    executionCeilings: { timeoutMs: 9_000 },
    graceMs: 6_000,
  });
  const create = (id: keyof typeof asked, more = {}) => next.daemon.createSession(id, { ...asked[id], ...more });

  for (const id of ['nothing', 'much'] as const) {
    expect(await create(id)).toEqual(before.get(id));
    await expect(create(id, { weight: 2 })).rejects.toThrow('exists with another configuration');
    await expect(create(id, { maxQueued: 7 })).rejects.toThrow('exists with another configuration');
  }
  // What was asked for is not known of it: all counts that it has.
  await expect(create('older')).rejects.toThrow('exists with another configuration');
  await next.daemon.stop();
  await using last = await TestDaemon.start(places);
  expect(await last.daemon.createSession('older')).toEqual(before.get('older'));
});

describe('a daemon of a program', () => {
  const stopped = { status: 'rejected', reason: new UnavailableError('the daemon has stopped') };
  const code = "console.log('ready'); setInterval(() => {}, 1000)";
  const idle = { executionId: 'e', language: 'javascript', code };

  test('ends its own calls when it leaves what runs to the next one', async () => {
    await using node = await TestDaemon.start();
    const { daemon, root, endpoints } = node;
    for (const sessionId of ['s', 'closing']) {
      await daemon.createSession(sessionId);
      await daemon.executeSnippet({ ...idle, sessionId });
    }
    const sleeper = { executionId: 'input', language: 'python', code: 'import time\ntime.sleep(600)', stdin: true };
    await daemon.executeSnippet({ ...sleeper, sessionId: 's' });
    await daemon.executeSnippet({
      ...idle,
      sessionId: 'closing',
      executionId: 'stubborn',
      code: `process.on('SIGTERM', () => {}); ${code}`,
    });
    for await (const { data } of daemon.streamOutput('closing', 'stubborn')) if (String(data) === 'ready\n') break;
    const [sessionId, executionId, intervalMs] = ['s', 'e', 3_600_000];
    const open = [
      daemon.watchExecution(sessionId, executionId, { fromSequence: 2 }),
      daemon.streamOutput(sessionId, executionId),
      daemon.watchExecutionMetrics({ sessionId, executionId, intervalMs }),
      daemon.watchExecutionMetrics({ intervalMs }),
    ];
    for (const stream of open) await stream.next();
    const calls = () => [
      daemon.wait(sessionId, executionId),
      daemon.deleteSession('closing', { graceMs: 600_000 }),
      daemon.writeInput(sessionId, 'input', Buffer.alloc(1_000_000)),
    ];
    const underWay = Promise.allSettled([...open.map((stream) => stream.next()), ...calls()]);
    // Of what the daemon is to have begun with before it is stopped the last is this.
    await daemon.getExecutionMetrics(sessionId, executionId);

    await daemon.stop({ detach: true });

    expect(await underWay).toEqual(new Array(7).fill(stopped));
    const later = [...calls(), daemon.cancelExecution('s', 'e'), daemon.signalExecution('s', 'e', 'SIGHUP')];
    expect(await Promise.allSettled(later)).toEqual(later.map(() => stopped));
    await using next = await TestDaemon.start({ stateDir: join(root, 's'), socket: endpoints.socket as string });
    expect((await next.daemon.getExecution('s', 'e')).state).toBe('running');
    await expect(next.daemon.getSession('closing')).rejects.toThrow('is closing');
  });

  test('acknowledges nothing any more once it is stopped', async () => {
    await using node = await TestDaemon.start();
    const { daemon, root, endpoints } = node;
    await daemon.createSession('s');
    await daemon.executeSnippet({ ...idle, sessionId: 's', code: '1' });
    await daemon.wait('s', 'e');
    const rounds = daemon.watchExecutionMetrics({ intervalMs: 3_600_000 });
    await rounds.next();
    const watching = Promise.allSettled([rounds.next()]);

    await daemon.stop();

    expect(await watching).toEqual([stopped]);
    const calls = [daemon.deleteSession('s'), daemon.releaseExecution('s', 'e')];
    expect(await Promise.allSettled(calls)).toEqual([stopped, stopped]);
    await using other = await TestDaemon.start({ stateDir: join(root, 's'), socket: endpoints.socket as string });
    expect((await other.daemon.getExecution('s', 'e')).result?.reason).toBe('completed');
    expect((await other.daemon.getSession('s')).state).toBe('running');
  });
});
