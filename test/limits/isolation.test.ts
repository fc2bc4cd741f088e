import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { childrenOf } from '../../src/processes.ts';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { eventually, isAlive, processesWith, TestDaemon, type TestSession } from '../support/daemon.ts';

// What an execution shares its process with is a choice.

const IDLE = 'console.log("ready"); setInterval(() => {}, 1000)';

const groups = ControlGroups.open();
const hasGroups = groups.version > 0;
await groups.close();
if (!hasGroups) console.info(`left out, as this user cannot make control groups (${groups.why}): what ran away`);

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

test('executions with a process of their own share it neither with one another nor with others', async () => {
  const pids = await Promise.all([
    pidOf('', 'process'),
    pidOf('', 'process'),
    pidOf('', 'thread'),
    pidOf('', 'thread'),
  ]);

  expect(new Set(pids).size).toBe(3);
  expect(pids[2]).toBe(pids[3]);
});

test('the process of an execution ends with it, and is never used again', async () => {
  const pid = await pidOf('', 'process');

  expect(isAlive(pid)).toBe(false);
  expect(await pidOf('', 'process')).not.toBe(pid);
});

test('one that is stuck in native code is ended without its cell', async () => {
  const neighbours = [await session.ready(IDLE), await session.ready({ code: IDLE, isolation: 'process' })];
  // A call into native code that lasts minutes: only the end of its process ends it.
  const stuck = await session.ready({
    code: 'console.log("ready"); "x".repeat(2 ** 28).replace(/x/g, "yy")',
    isolation: 'process',
  });

  await stuck.cancel({ graceMs: 0 });
  const { result } = await stuck.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
  for (const neighbour of neighbours) expect((await neighbour.snapshot()).state).toBe('running');
  for (const neighbour of neighbours) await neighbour.cancel({ signal: 'SIGKILL' });
});

/** Processes that a session's cell keeps booted ahead, by their heap limit in MB if that is given. */
async function sparesOf({ sessionId }: TestSession, heapLimitMb?: number): Promise<number[]> {
  const { cells } = await node.daemon.getSession(sessionId);
  const flag = heapLimitMb === undefined ? '' : `--max-old-space-size=${heapLimitMb}`;
  const isSpare = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(flag);
  return cells.flatMap(({ pid }) => childrenOf(pid)).filter(isSpare);
}

test('once one was asked for, the next finds its process booted', async () => {
  const warm = await node.session({ executionDefaults: { isolation: 'process' } });
  await warm.run('0');
  await eventually('a spare process', async () => (await sparesOf(warm)).length > 0);
  const spares = await sparesOf(warm);

  const { stdout } = await warm.run('console.log(process.pid)');

  expect(spares).toContain(Number(stdout));
});

test('spares are booted for the memory limit that is asked for again', async () => {
  const warm = await node.session({ executionDefaults: { isolation: 'process' } });
  const limited = { code: 'console.log(process.pid)', memoryLimitMb: 100 };
  await warm.run(limited);
  await warm.run(limited);
  await eventually('a spare for it', async () => (await sparesOf(warm, 100)).length > 0);
  const spares = await sparesOf(warm, 100);

  const { stdout } = await warm.run(limited);

  expect(spares).toContain(Number(stdout));
});

test('a cell that dies takes its processes along, and what they wrote stays', async () => {
  const lone = await node.session({ executionDefaults: { isolation: 'process' } });
  const guest = await lone.ready('process.on("SIGTERM", () => {}); console.log("ready"); for (;;);');
  const { pid } = await guest.snapshot();

  process.kill(await lone.cellPid(), 'SIGKILL');

  const { result, stdout } = await guest.end();
  expect(result).toMatchObject({ reason: 'cell_lost' });
  expect(stdout).toBe('ready\n');
  expect(isAlive(pid)).toBe(false);
});

test('a process is stopped and continued as any other', async () => {
  const guest = await session.ready({
    code: 'setInterval(() => console.log("tick"), 5); console.log("ready");',
    isolation: 'process',
  });
  const { pid } = await guest.snapshot();
  const state = () => /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];

  await guest.signal('SIGSTOP');
  await eventually('it has stopped', () => state() === 'T');
  await guest.signal('SIGCONT');
  await eventually('it goes on', () => state() !== 'T');
  await guest.cancel();

  expect((await guest.end()).result).toMatchObject({ reason: 'cancelled', rung: 'graceful', signal: 'SIGTERM' });
});

test.each([
  ['its heap', 'const held = []; for (;;) held.push(new Array(1e5).fill(1.5));'],
  ['buffers', 'const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1));'],
  ['WebAssembly memory', 'new Uint8Array(new WebAssembly.Memory({ initial: 4096 }).buffer).fill(1); for (;;);'],
  [
    'a child process',
    `require("child_process").spawnSync(process.execPath, ["-e", "const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1))"]); for (;;);`,
  ],
])('a process that holds more than it may in %s is ended for that', async (_, code) => {
  const { result } = await session.run({ code, isolation: 'process', memoryLimitMb: 64 });

  expect(result).toMatchObject({ reason: 'memory_exceeded', exitCode: 137, signal: 'SIGKILL' });
});

test('what a process uses is that of the guest, not of its boot', async () => {
  const code = `const begun = process.cpuUsage(); const held = Buffer.alloc(100 << 20, 1);
    const until = process.cpuUsage().user + 300_000;
    while (process.cpuUsage().user < until) for (let count = 0; count < 1e6; count += 1);
    const { user, system } = process.cpuUsage(begun);
    console.log('ready', (user + system) / 1e6); setInterval(() => held.length, 1e6);`;
  const guest = await session.ready({ code, isolation: 'process' });

  const { memoryBytes, userSeconds, systemSeconds, processes } = await node.daemon.getExecutionMetrics(
    guest.sessionId,
    guest.executionId,
  );

  expect(processes).toBe(1);
  expect(memoryBytes / 2 ** 20).toBeGreaterThan(100);
  expect(memoryBytes / 2 ** 20).toBeLessThan(130);
  const used = Number(/ready (\S+)/.exec((await guest.output()).stdout)?.[1]);
  expect(used).toBeGreaterThan(0.27);
  expect(userSeconds + systemSeconds).toBeGreaterThan(used * 0.95);
  expect(userSeconds + systemSeconds).toBeLessThan(used * 1.1 + 0.05);
  await guest.cancel();
});

test.each([
  ['exits', 'process.exit(0)', 0],
  ['fails', 'throw new Error("x")', 1],
  ['signals itself', 'process.kill(process.pid, "SIGTERM"); setInterval(() => {}, 1e6)', 143],
])('a process that %s tells itself what it has used', async (_, end, exitCode) => {
  const burn = 'const until = process.cpuUsage().user + 100_000; while (process.cpuUsage().user < until);';
  const { result } = await session.run({ code: `${burn} ${end}`, isolation: 'process' });

  expect(result?.exitCode).toBe(exitCode);
  expect(result?.usage?.userSeconds).toBeGreaterThan(0.09);
});

test.each(['truncate', 'kill'] as const)('output of a process past its limit: %s', async (outputPolicy) => {
  const code = `const fs = require('fs'); process.stdout.write('a'.repeat(60)); fs.writeSync(1, 'b'.repeat(60));
    require('child_process').execSync('printf %0100d 0', { stdio: 'inherit' });
    new (require('worker_threads').Worker)("require('fs').writeSync(2, 'c'.repeat(60))", { eval: true });`;
  const { result, stdout, stderr } = await session.run({
    code,
    isolation: 'process',
    outputLimitBytes: 100,
    outputPolicy,
  });

  expect(result?.reason).toBe(outputPolicy === 'kill' ? 'output_exceeded' : 'completed');
  expect(stdout + stderr).toBe('a'.repeat(60) + 'b'.repeat(40));
  if (outputPolicy === 'truncate') expect(result?.usage?.droppedBytes).toBe(20 + 100 + 60);
});

test('children of a process end with it, those of its threads and those in sessions of their own too', async () => {
  const spawn = `require('child_process').spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' })`;
  const code = `const { Worker, isMainThread } = require('worker_threads');
    const tell = (child) => child.on('spawn', () => require('fs').writeSync(1, child.pid + '\\n'));
    tell(${spawn});
    if (isMainThread) { new Worker(__filename); setInterval(() => {}, 1e6); }`;
  const guest = await session.submit({ code, isolation: 'process' });
  const pids: number[] = [];
  for await (const { data } of node.daemon.streamOutput(guest.sessionId, guest.executionId)) {
    pids.push(...data.toString().trim().split('\n').map(Number));
    if (pids.length === 2) break;
  }

  await guest.cancel();

  await guest.end();
  expect(pids).toHaveLength(2);
  expect(pids.filter(isAlive)).toEqual([]);
});

test.skipIf(!hasGroups)(
  'what ran away from a process, and has nothing of it, ends with it where there are control groups',
  async () => {
    const sleep = `sleep 60${process.hrtime.bigint() % 1_000_000_000n}`;
    const detach = `require('node:child_process').execSync("setsid sh -c '${sleep} <&- >&- 2>&- & exit 0'")`;
    const { result } = await session.run({ code: detach, isolation: 'process' });

    expect(result.exitCode).toBe(0);
    await eventually('it is gone', () => processesWith(sleep).length === 0);
  },
);

test('a process counts its children, and may have no more than it may', async () => {
  const code = `const { spawn } = require('child_process');
    const start = () => new Promise((resolve) => spawn('sleep', ['1000']).on('spawn', () => resolve('started')).on('error', (error) => resolve(error.code)));
    (async () => { console.log(await start(), await start(), await start()); process.exit(); })();`;

  const { stdout } = await session.run({ code, isolation: 'process', processLimit: 3 });

  expect(stdout).toBe('started started EAGAIN\n');
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
