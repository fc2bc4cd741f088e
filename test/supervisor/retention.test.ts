import { chmodSync, existsSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { connectDaemon } from '../../src/client/index.ts';
import type { FinishedEntry } from '../../src/journal/entries.ts';
import { Retention, type RetentionLimits } from '../../src/supervisor/retention.ts';
import { eventually, openFiles, TestDaemon, TestSession } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';

/** Writes so much that it stays in files. */
const LARGE = "process.stdout.write('x'.repeat(5_000));";

test('only so many finished executions stay queryable, the newest, and the output of the others is gone', async () => {
  await using node = await TestDaemon.start({ retainedExecutions: 3 });
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");

  for (let index = 0; index < 5; index += 1) await session.run({ executionId: `done-${index}`, code: LARGE });

  const known = (await node.daemon.listExecutions(session.sessionId)).map(({ executionId }) => executionId);
  expect(known).toEqual([running.executionId, 'done-2', 'done-3', 'done-4']);
  await expect(node.daemon.getExecutionStatus(session.sessionId, 'done-1')).rejects.toMatchObject({
    code: 'not_found',
  });
  expect(await node.daemon.cancelExecution(session.sessionId, 'done-1')).toBe(false);
  const output = join(node.root, 's', 'daemon', 'output');
  const [sessionKey = ''] = readdirSync(output);
  await eventually('the outputs of two are removed', () => readdirSync(join(output, sessionKey)).length === 4);
  // The id is free again.
  expect((await session.run({ executionId: 'done-0', code: "console.log('again')" })).stdout).toBe('again\n');
});

test('what guests leave in their private directories is removed with them', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { stdout } = await session.run(`
    const fs = require('node:fs');
    fs.mkdirSync('deep/er', { recursive: true });
    fs.writeFileSync('deep/er/file', 'x');
    fs.symlinkSync('/etc', 'link');
    fs.chmodSync('deep', 0o000);
    console.log(process.cwd());`);
  const cwd = stdout.trim();

  await eventually('the private directory is gone', () => !existsSync(cwd));
  expect(existsSync('/etc/passwd')).toBe(true);
});

test('a great many files are removed without a great many requests of the daemon at a time', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { stdout } = await session.run(`
    const fs = require('node:fs');
    for (let index = 0; index < 1_000; index += 1) fs.closeSync(fs.openSync('file-' + index, 'w'));
    console.log(process.cwd());`);
  const cwd = stdout.trim();
  let most = 0;

  await eventually('the private directory is gone', () => {
    const requests = process.getActiveResourcesInfo().filter((name) => name.startsWith('FSReq'));
    most = Math.max(most, requests.length);
    return !existsSync(cwd);
  });

  expect(most).toBeLessThan(100);
});

test('what guests have locked is removed, also by a daemon without rights, and nothing behind a link is opened', async () => {
  await using own = await DaemonProcess.startWithoutRights();
  using client = connectDaemon({ socket: own.socket });
  await client.createSession('s');
  const elsewhere = join(own.directory, 'elsewhere');
  const code = `
    const fs = require('node:fs');
    fs.mkdirSync('module/part/closed', { recursive: true });
    fs.writeFileSync('module/part/file', '');
    fs.mkdirSync('${elsewhere}', { mode: 0o500 });
    fs.symlinkSync('${elsewhere}', 'module/link');
    for (const [name, mode] of [['/closed', 0o000], ['', 0o555]]) fs.chmodSync('module/part' + name, mode);
    console.log(process.cwd());`;
  await client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code });
  await client.wait('s', 'e');
  const said: string[] = [];
  for await (const { data } of client.streamOutput('s', 'e')) said.push(`${data}`);
  const cwd = said.join('').trim();

  await eventually('the private directory is gone', () => !existsSync(cwd));

  expect(cwd).toContain(own.directory);
  expect(statSync(elsewhere).mode & 0o777).toBe(0o500);
});

/** Directories of sessions that there are, for output and for what guests work with. */
function sessionDirectories({ root }: TestDaemon): { output: string[]; work: string[] } {
  return { output: readdirSync(join(root, 's', 'daemon', 'output')), work: readdirSync(join(root, 's', 'work')) };
}

test('nothing of a deleted session is left once its last output is gone, and that of others stays', async () => {
  await using node = await TestDaemon.start();
  const emptied = async (left: number) => {
    await eventually(`${left} directories of output are left`, () => sessionDirectories(node).output.length === left);
  };
  const open = await node.session();
  await open.run("console.log('small')");
  const [small, large, unused] = [await node.session(), await node.session(), await node.session()];
  await small.run("console.log('small')");
  await large.run({ executionId: 'released', code: LARGE });
  await large.run({ executionId: 'kept', code: LARGE });

  for (const session of [small, large, unused]) await session.close();
  expect(sessionDirectories(node).work).toHaveLength(1);
  // Of the small ones output goes into the journal first.
  await emptied(2);
  // The next session of that name has nothing to do with what the last one has left.
  await node.daemon.createSession(large.sessionId);
  const again = new TestSession(node.daemon, large.sessionId);
  await again.run({ executionId: 'again', code: LARGE });
  await node.daemon.releaseExecution(large.sessionId, 'released');
  await emptied(3);
  await node.daemon.releaseExecution(large.sessionId, 'kept');
  await emptied(2);

  expect((await open.run({ executionId: 'later', code: LARGE })).stdout).toHaveLength(5_000);
  expect((await again.run({ executionId: 'later', code: LARGE })).stdout).toHaveLength(5_000);
});

/** Directories of output that there are. */
const outputs = (node: TestDaemon): string[] => {
  const output = join(node.root, 's', 'daemon', 'output');
  return readdirSync(output).flatMap((sessionKey) => readdirSync(join(output, sessionKey)));
};

test('a session keeps its finished executions by its own age, number and output, within those of the daemon', async () => {
  await using node = await TestDaemon.start({ retainedExecutions: 6 });
  const few = await node.session({ retainedExecutions: 2 });
  const short = await node.session({ retainedAgeMs: 1_500 });
  const other = await node.session();
  const known = async ({ sessionId }: { sessionId: string }) =>
    (await node.daemon.listExecutions()).flatMap((found) => (found.sessionId === sessionId ? [found.executionId] : []));

  const brief = await short.run({ executionId: 'brief', code: LARGE });
  for (const executionId of ['a', 'b', 'c']) await few.run({ executionId, code: LARGE });
  expect(await known(few)).toEqual(['b', 'c']);
  await eventually('the old one is forgotten', async () => (await known(short)).length === 0);
  expect(Date.now() - (brief.snapshot.times.exitedAtMs as number)).toBeGreaterThanOrEqual(1_499);
  for (const executionId of ['1', '2', '3', '4', '5']) await other.run({ executionId, code: LARGE });

  expect(await known(few)).toEqual(['c']);
  expect(await known(other)).toEqual(['1', '2', '3', '4', '5']);
  await eventually('only their output is left', () => outputs(node).length === 6);
});

test('a daemon forgets what finished too long ago', async () => {
  await using node = await TestDaemon.start({ retainedAgeMs: 1_500 });
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  await session.run({ executionId: 'brief', code: '0' });

  await eventually('one is forgotten', async () => (await node.daemon.listExecutions(session.sessionId)).length === 1);

  expect((await running.snapshot()).state).toBe('running');
  await running.cancel({ graceMs: 0 });
});

test('a client gives up a finished execution, and only that', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { sessionId } = session;
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  await session.run({ executionId: 'done', code: LARGE });
  const release = (executionId: string) => node.daemon.releaseExecution(sessionId, executionId);

  await expect(release(running.executionId)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('has not exited'),
  });
  await expect(release('nope')).rejects.toMatchObject({ code: 'not_found' });
  await release('done');

  await expect(release('done')).rejects.toMatchObject({ code: 'not_found' });
  await expect(node.daemon.getExecutionStatus(sessionId, 'done')).rejects.toMatchObject({ code: 'not_found' });
  expect((await running.snapshot()).state).toBe('running');
  await eventually('its output is gone', () => outputs(node).length === 1);
  expect((await session.run({ executionId: 'done', code: "console.log('again')" })).stdout).toBe('again\n');
  await running.cancel({ graceMs: 0 });
});

test('output beyond the budget is that of the oldest finished; results stay, and a read says what is gone', async () => {
  await using node = await TestDaemon.start({ outputBudgetBytes: 35_000 });
  const session = await node.session();
  const { sessionId } = session;
  const write = "process.stdout.write('x'.repeat(9_000)); process.stderr.write('y'.repeat(1_000));";
  const running = await session.ready(`${write} setInterval(() => {}, 1000); console.log('ready');`);
  for (const executionId of ['first', 'second', 'third']) await session.run({ executionId, code: write });
  await eventually('one is removed', () => outputs(node).length === 3);

  const first = await node.daemon.getExecutionStatus(sessionId, 'first');
  expect(first).toMatchObject({
    result: { reason: 'completed' },
    stdoutBytes: 9_000,
    stderrBytes: 1_000,
    outputEvicted: true,
  });
  const read = (executionId: string, options = {}) =>
    Array.fromAsync(node.daemon.streamOutput(sessionId, executionId, options));
  await expect(read('first')).rejects.toMatchObject({
    code: 'out_of_range',
    message: 'stdout of execution "first" was evicted to make room: position 0 is gone, it now begins at 9000, its end',
  });
  await expect(read('first', { streams: ['stderr'], stderrPosition: 999 })).rejects.toMatchObject({
    message: expect.stringContaining('stderr of execution "first" was evicted'),
  });
  expect(await read('first', { stdoutPosition: 9_000, stderrPosition: 1_000 })).toEqual([]);
  expect(await node.daemon.tailOutput(sessionId, 'first', 'stdout', 100)).toEqual({
    position: 9_000,
    data: Buffer.alloc(0),
  });
  expect(await node.daemon.getExecutionStatus(sessionId, 'second')).toMatchObject({ outputEvicted: false });
  expect((await read('second', { streams: ['stderr'] })).map(({ data }) => data.length)).toEqual([1_000]);
  await running.cancel({ graceMs: 0 });
});

test('a reader that has begun reads to the end of what is evicted meanwhile', async () => {
  await using node = await TestDaemon.start({ outputBudgetBytes: 1_500_000 });
  const session = await node.session();
  const { sessionId } = session;
  const code = "process.stdout.write('x'.repeat(1_000_000)); process.stderr.write('y');";
  await session.run({ executionId: 'first', code });
  const reader = node.daemon.streamOutput(sessionId, 'first');
  const begun = await reader.next();
  await session.run({ executionId: 'second', code });
  await eventually('the first is gone', () => outputs(node).length === 1);

  const rest = await Array.fromAsync(reader);

  const bytes = (begun.value?.data.length ?? 0) + rest.reduce((sum, { data }) => sum + data.length, 0);
  expect(begun.value?.data.length).toBeLessThan(1_000_000);
  expect(bytes).toBe(1_000_001);
  await expect(Array.fromAsync(node.daemon.streamOutput(sessionId, 'first'))).rejects.toMatchObject({
    code: 'out_of_range',
  });
});

test('what runs takes room from what has finished, and is never evicted; output of a lost cell counts', async () => {
  await using node = await TestDaemon.start({ outputBudgetBytes: 50_000 });
  const session = await node.session();
  const { sessionId } = session;
  const writing = (bytes: number) => `process.stdout.write('x'.repeat(${bytes - 6})); console.log('ready');`;
  await session.run({ executionId: 'finished', code: writing(10_000) });
  const lost = await session.ready({ executionId: 'lost', code: `${writing(30_000)} setInterval(() => {}, 1000);` });
  const evicted = async (executionId: string) =>
    (await node.daemon.getExecutionStatus(sessionId, executionId)).outputEvicted;

  process.kill(await session.cellPid(), 'SIGKILL');
  expect((await lost.end()).result.reason).toBe('cell_lost');
  const running = await session.ready(`${writing(15_000)} setInterval(() => {}, 1000);`);
  await eventually('the oldest is evicted', () => evicted('finished'));
  expect(await evicted('lost')).toBe(false);
  const large = await session.ready({ code: `${writing(60_000)} setInterval(() => {}, 1000);` });
  await eventually('all that has finished is', () => evicted('lost'));

  expect(await node.daemon.getExecutionStatus(sessionId, 'lost')).toMatchObject({ stdoutBytes: 30_000 });
  for (const one of [running, large]) expect((await one.snapshot()).state).toBe('running');
  expect((await large.output()).stdout).toHaveLength(60_000);
  await session.close();
});

test.each([
  ['runs', 'truncate -s 2T /dev/stdout', undefined],
  ['runs', 'while :; do truncate -s 2T /dev/stdout; done', 1_000],
  ['has ended', 'truncate -s 2T /dev/stdout', undefined],
])('of what %s counts what its files take of the disk, not how long they are (%s)', async (state, command, limit) => {
  await using node = await TestDaemon.start({ outputBudgetBytes: 1_000_000 });
  const session = await node.session();
  await session.run({ executionId: 'finished', code: LARGE });
  const narrow = await node.session({ outputBudgetBytes: 10_000 });
  await narrow.run({ executionId: 'first', code: LARGE });
  const evicted = async ({ sessionId }: TestSession, executionId: string) =>
    (await node.daemon.getExecutionStatus(sessionId, executionId)).outputEvicted;

  const long = await session.submit({
    code: `require('node:child_process').spawn('sh', ['-c', ${JSON.stringify(command)}], { stdio: 'inherit' });
      ${state === 'runs' ? 'setInterval(() => {}, 1000);' : ''}`,
    outputLimitBytes: limit,
  });
  const length = async () => (await node.daemon.getExecutionStatus(session.sessionId, long.executionId)).stdoutBytes;
  if (state === 'runs') await eventually('it is long', async () => (await length()) > 10 ** 12);
  else await long.reached('exited');
  // All that runs is looked at together.
  await narrow.ready(`${LARGE} ${LARGE} console.log('ready'); setInterval(() => {}, 1000);`);
  await eventually('it was looked at', () => evicted(narrow, 'first'));

  expect(await evicted(session, 'finished')).toBe(false);
  if (state === 'has ended') expect(await length()).toBe(2 ** 41);
  await session.close();
  await narrow.close();
});

test('a guest whose output cannot be looked at keeps no room from others, and loses its own', {
  timeout: 180_000,
}, async () => {
  await using node = await DaemonProcess.startWithoutRights();
  using client = connectDaemon({ socket: node.socket });
  await client.createSession('s', { outputBudgetBytes: 50_000 });
  await client.createSession('other');
  const submit = (sessionId: string, executionId: string, bytes: number, then = '') => {
    const code = `process.stdout.write('x'.repeat(${bytes})); ${then}`;
    return client.executeSnippet({ sessionId, executionId, language: 'javascript', code });
  };
  const output = join(node.directory, 'state', 'daemon', 'output');
  const start = async (sessionId: string, executionId: string, bytes: number) => {
    await submit(sessionId, executionId, bytes, 'setInterval(() => {}, 1000);');
    await eventually('all is written', async () => {
      return (await client.getExecutionStatus(sessionId, executionId)).stdoutBytes === bytes;
    });
  };
  /** Where a guest writes its output that stays. */
  const started = async (sessionId: string, executionId: string, bytes: number) => {
    const before = readdirSync(output, { recursive: true, encoding: 'utf8' });
    await start(sessionId, executionId, bytes);
    const made = readdirSync(output, { recursive: true, encoding: 'utf8' }).filter((path) => !before.includes(path));
    return join(output, dirname(made.find((path) => path.endsWith('stdout')) as string));
  };
  await submit('s', 'finished', 10_000);
  await client.wait('s', 'finished');

  const replaced = await started('other', 'replaced', 10);
  rmSync(replaced, { recursive: true });
  writeFileSync(replaced, '');
  const locked = await started('other', 'locked', 10);
  chmodSync(locked, 0o000);
  await start('s', 'large', 60_000);

  const evicted = async () => (await client.getExecutionStatus('s', 'finished')).outputEvicted;
  // A look that took long is not soon followed by another.
  await eventually('what has finished makes room', evicted, 60_000);
  await client.cancelExecution('other', 'replaced', { graceMs: 0 });
  await client.wait('other', 'replaced');
  expect(await client.getExecutionStatus('other', 'replaced')).toMatchObject({ stdoutBytes: 10 });
  await expect(Array.fromAsync(client.streamOutput('other', 'replaced'))).rejects.toMatchObject({ code: 'data_loss' });
  chmodSync(locked, 0o700);
});

test('what has slept takes room again as soon as it writes', async () => {
  await using node = await TestDaemon.start({ outputBudgetBytes: 50_000 });
  const session = await node.session();
  await session.run({ executionId: 'finished', code: "process.stdout.write('x'.repeat(20_000));" });
  const code = `process.on('SIGHUP', () => process.stdout.write('x'.repeat(40_000)));
    console.log('ready'); setInterval(() => {}, 1e6);`;
  const sleeper = await session.ready({ code });
  const { sessionId } = session;
  const evicted = async () => (await node.daemon.getExecutionStatus(sessionId, 'finished')).outputEvicted;
  await eventually('its cell sleeps', async () => openFiles().includes(`/proc/${await session.cellPid()}/stat`));
  // Its output was looked at since, and is not again while it sleeps.
  await setTimeout(2_500);
  expect(await evicted()).toBe(false);

  await sleeper.signal('SIGHUP');

  await eventually('the finished one is evicted', evicted);
  expect((await sleeper.snapshot()).state).toBe('running');
  await session.close();
});

test('a position or a sequence in the future is out of range, the next one is not', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { sessionId } = session;
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const { executionId } = running;
  const read = (options: object) =>
    Array.fromAsync(node.daemon.streamOutput(sessionId, executionId, { follow: false, ...options }));
  const watch = (fromSequence: number) =>
    Array.fromAsync(node.daemon.watchExecution(sessionId, executionId, { fromSequence }));

  await expect(read({ stdoutPosition: 7 })).rejects.toMatchObject({
    code: 'out_of_range',
    message: `stdout of execution "${executionId}" has 6 bytes, from 0 on; position 7 is in the future`,
  });
  await expect(read({ stderrPosition: 1, follow: true })).rejects.toMatchObject({ code: 'out_of_range' });
  expect(await read({ stdoutPosition: 6 })).toEqual([]);
  expect(await read({ streams: ['stdout'], stderrPosition: 1 })).toHaveLength(1);
  await expect(watch(4)).rejects.toMatchObject({
    code: 'out_of_range',
    message: `execution "${executionId}" has 2 status events; sequence 4 is in the future`,
  });
  const next = watch(3);
  await running.cancel({ graceMs: 0 });
  expect((await next)[0]).toMatchObject({ sequence: 3, state: 'signaled' });

  const { snapshot } = await running.end();
  expect(await watch(snapshot.sequence + 1)).toEqual([]);
  await expect(watch(snapshot.sequence + 2)).rejects.toMatchObject({ code: 'out_of_range' });
});

const limits = fc.record(
  { executions: fc.integer({ min: 1, max: 6 }), outputBytes: fc.integer({ min: 1, max: 40 }) },
  { requiredKeys: [] },
);

test('whatever ends in whatever order, each session and the daemon keep their newest within their limits', () => {
  fc.assert(
    fc.property(
      limits,
      fc.array(limits, { minLength: 1, maxLength: 3 }),
      fc.array(fc.record({ of: fc.nat(), bytes: fc.nat({ max: 15 }), release: fc.boolean() }), { maxLength: 40 }),
      (daemon, sessions, ends) => {
        const kept: FinishedEntry[] = [];
        const withOutput: FinishedEntry[] = [];
        const take = (from: FinishedEntry[], entry: FinishedEntry) => {
          expect(from).toContain(entry);
          from.splice(from.indexOf(entry), 1);
        };
        const retention = new Retention({
          limits: daemon,
          onReleased: (entry) => {
            take(kept, entry);
            if (withOutput.includes(entry)) take(withOutput, entry);
          },
          onOutputEvicted: (entry) => take(withOutput, entry),
        });
        const excess = (bound: RetentionLimits, key?: string): string[] => {
          const mine = (all: FinishedEntry[]) => all.filter(({ sessionKey }) => (key ?? sessionKey) === sessionKey);
          const bytes = mine(withOutput).reduce((sum, { outputBytes }) => sum + outputBytes, 0);
          return [
            ...(mine(kept).length > (bound.executions ?? 1e9) ? ['executions'] : []),
            ...(bytes > (bound.outputBytes ?? 1e9) ? ['output'] : []),
          ];
        };

        for (const [number, { of, bytes, release }] of ends.entries()) {
          const at = of % sessions.length;
          const entry: FinishedEntry = {
            number,
            sessionId: `${at}`,
            sessionKey: `${at}`,
            executionId: `${number}`,
            executionKey: `${number}`,
            exited: { atMs: 0, monotonicMs: 0 },
            outputBytes: bytes,
            outputEvicted: undefined,
            retention: sessions[at],
          };
          const before = [...kept];
          kept.push(entry);
          if (bytes > 0) withOutput.push(entry);
          retention.add(entry);

          expect(excess(daemon)).toEqual([]);
          for (const [index, bound] of sessions.entries()) expect(excess(bound, `${index}`)).toEqual([]);
          // No more than needed: with a place for each, the newest is there.
          expect(kept).toContain(entry);
          expect(before.length - kept.length).toBeLessThanOrEqual(1);
          if (release) retention.release(entry);
        }
        retention.close();
      },
    ),
  );
});
