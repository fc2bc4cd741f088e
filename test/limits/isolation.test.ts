import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, isAlive, TestDaemon, type TestSession } from '../support/daemon.ts';

// What an execution shares its process with is a choice.

const IDLE = 'console.log("ready"); setInterval(() => {}, 1000)';

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

async function pidOf(code: string, isolation?: 'thread' | 'process') {
  const { stdout } = await session.run({ code: `console.log(process.pid);${code}`, isolation });
  return Number(stdout);
}

test('executions with a cell of their own share no process, with one another or with others', async () => {
  const pids = await Promise.all([
    pidOf('', 'process'),
    pidOf('', 'process'),
    pidOf('', 'thread'),
    pidOf('', 'thread'),
  ]);

  expect(new Set(pids).size).toBe(3);
  expect(pids[2]).toBe(pids[3]);
});

test('a cell of one execution ends with it, and is never used again', async () => {
  const pid = await pidOf('', 'process');

  await eventually('the end of the cell', () => !isAlive(pid));
  expect(await pidOf('', 'process')).not.toBe(pid);
});

test('what kills its cell reaches no other', async () => {
  const neighbours = [await session.ready(IDLE), await session.ready({ code: IDLE, isolation: 'process' })];
  // A call into native code that lasts minutes: only the end of the process ends it.
  const stuck = await session.ready({
    code: 'console.log("ready"); "x".repeat(2 ** 28).replace(/x/g, "yy")',
    isolation: 'process',
  });

  await stuck.cancel({ graceMs: 0 });
  const { result } = await stuck.end();

  expect(result).toMatchObject({ reason: 'cancelled', exitCode: 137 });
  for (const neighbour of neighbours) expect((await neighbour.snapshot()).state).toBe('running');
  for (const neighbour of neighbours) await neighbour.cancel({ signal: 'SIGKILL' });
});

test('once one was asked for, the next finds its cell ready', async () => {
  const warm = await node.session({ executionDefaults: { isolation: 'process' } });
  await warm.run('0');
  const ready = async () => {
    const { cells } = await node.daemon.getSession(warm.sessionId);
    return cells.filter(({ state, executions }) => state === 'ready' && executions === 0).map(({ pid }) => pid);
  };
  await eventually('a spare cell', async () => (await ready()).length > 0);
  const spares = await ready();

  const { stdout } = await warm.run('console.log(process.pid)');

  expect(spares).toContain(Number(stdout));
});

test('a spare is booted for the memory limit that was asked for last', async () => {
  const warm = await node.session({ executionDefaults: { isolation: 'process' } });
  // When its thread began to boot.
  const limited = {
    code: 'console.log(performance.timeOrigin + performance.nodeTiming.environment)',
    memoryLimitMb: 100,
  };
  await warm.run(limited);
  await eventually('spares', async () => {
    const { cells } = await node.daemon.getSession(warm.sessionId);
    return cells.filter(({ state, executions }) => state === 'ready' && executions === 0).length === 2;
  });
  // A cell is ready a moment before its context is.
  for (let tries = 0; ; tries += 1) {
    const askedMs = Date.now();
    const { stdout } = await warm.run(limited);
    if (Number(stdout) < askedMs) break;
    expect(tries).toBeLessThan(10);
  }
});

test('the isolation of a session is that of its executions, unless they say', async () => {
  const isolated = await node.session({ executionDefaults: { isolation: 'process' } });
  const run = async (isolation?: 'thread') =>
    Number((await isolated.run({ code: 'console.log(process.pid)', isolation })).stdout);

  const [own, other, shared, alsoShared] = [await run(), await run(), await run('thread'), await run('thread')];

  expect(new Set([own, other, shared]).size).toBe(3);
  expect(alsoShared).toBe(shared);
});

test.each(['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH'] as const)(
  'a %s to the process is one to its guest',
  async (name) => {
    const code = `process.on('${name}', () => process.exit(5)); console.log(process.pid); ${IDLE};`;
    const execution = await session.ready({ code, isolation: 'process' });
    const pid = Number((await execution.printed('ready')).split('\n')[0]);

    process.kill(pid, name);

    expect((await execution.end()).result).toMatchObject({ reason: 'failed', exitCode: 5 });
  },
);

test('a signal that ends is one that ended the guest, also when its process was sent it', async () => {
  const execution = await session.ready({ code: `console.log(process.pid); ${IDLE}`, isolation: 'process' });
  const pid = Number((await execution.printed('ready')).split('\n')[0]);

  process.kill(pid, 'SIGTERM');

  expect((await execution.end()).result).toMatchObject({ reason: 'signaled', signal: 'SIGTERM', exitCode: 143 });
});

test('signals, input, output and the working directory are as in a shared cell', async () => {
  const execution = await session.ready({
    code: `process.on('SIGTERM', () => { require('fs').writeFileSync('here', '1'); console.log(require('fs').readdirSync('.').join()); process.exit(3); });
      process.stdin.on('data', (text) => console.log('got ' + text)); console.log('ready');`,
    isolation: 'process',
    stdin: true,
  });
  await execution.write('word');
  await execution.printed('got word');
  await execution.cancel();

  const { result, stdout } = await execution.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3 });
  expect(stdout).toContain('here');
});
