import { randomBytes } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { createDaemon } from '../../src/create-daemon.ts';
import { FromCell, ToCell } from '../../src/gen/elide/cell/v1/cell.ts';
import { killTrees } from '../../src/processes.ts';
import { FramedSocket, PROTOCOL_VERSION } from '../../src/wire/framing.ts';
import {
  childrenOf,
  closedAgain,
  descendants,
  eventually,
  isAlive,
  openDescriptors,
  processesWith,
  TestDaemon,
  TestSession,
  temporaryDirectory,
} from '../support/daemon.ts';
import { cellsBelow } from '../support/processes.ts';
import { holdUp, starve } from '../support/starve.ts';

const IDLE = "setInterval(() => {}, 1000); console.log('ready');";
const PYTHON_IDLE = { language: 'python', code: 'import time\nprint("ready", flush=True)\ntime.sleep(600)' };

test('a killed cell takes its executions along, at once and honestly, and nobody else', async () => {
  await using node = await TestDaemon.start();
  const [session, other] = [await node.session(), await node.session()];
  const running = [await session.ready(IDLE), await session.ready(IDLE)];
  const pid = await session.cellPid();
  const python = await session.ready(PYTHON_IDLE);
  const elsewhere = await other.ready(IDLE);

  const killedAtMs = performance.now();
  process.kill(pid, 'SIGKILL');
  const ends = await Promise.all(running.map((execution) => execution.end()));
  const tookMs = performance.now() - killedAtMs;
  const next = await session.run("console.log('new cell')");

  for (const { result, steps } of ends) {
    expect(steps).toEqual(['pending', 'running', 'exited']);
    expect(result).toMatchObject({ reason: 'cell_lost', rung: undefined, exitCode: -1, signal: undefined });
    expect(result.message).toContain('SIGKILL');
  }
  console.info(`cell_lost told ${tookMs.toFixed(0)} ms after the kill`);
  // Nobody would ask for it otherwise.
  expect(tookMs).toBeLessThan(20_000);
  expect(next.stdout).toBe('new cell\n');
  expect((await python.snapshot()).state).toBe('running');
  expect((await elsewhere.snapshot()).state).toBe('running');
});

test('what a guest had written before its cell was killed is there', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.submit("for (let i = 0; i < 5000; i += 1) console.log('x'.repeat(100)); for (;;);");
  await running.printed(`${'x'.repeat(100)}\n`.repeat(5000));

  process.kill(await session.cellPid(), 'SIGKILL');

  expect((await running.end()).stdout).toHaveLength(5000 * 101);
});

test('a stop that was under way when the cell died keeps cell_lost as its reason before force, its own after', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(`process.on('SIGTERM', () => console.log('asked')); ${IDLE}`);

  await running.cancel({ graceMs: 1_000_000 });
  await running.printed('asked');
  process.kill(await session.cellPid(), 'SIGKILL');

  expect((await running.end()).result).toMatchObject({ reason: 'cell_lost', rung: 'graceful', exitCode: -1 });
});

test('children that guests of a killed cell had are gone when the executions are', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const [mine, theirs] = [1, 2].map(() => `60${Math.floor(Math.random() * 1e9)}`);
  const javascript = await session.ready(`
    const child = require('node:child_process').spawn('sleep', ['${mine}']);
    child.once('spawn', () => console.log('ready'));`);
  const python = await session.ready({
    language: 'python',
    code: `
import subprocess, time
subprocess.Popen(["sleep", "${theirs}"])
subprocess.Popen(["sleep", "${theirs}"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)`,
  });
  const { pid } = await python.snapshot();

  await eventually('all children run', () => processesWith(`sleep ${mine}`).length === 1);
  await eventually('all children run', () => processesWith(`sleep ${theirs}`).length === 2);
  for (const cell of await session.cellPids()) process.kill(cell, 'SIGKILL');
  const left = await Promise.all([
    javascript.end().then(() => processesWith(`sleep ${mine}`)),
    python.end().then(() => isAlive(pid)),
  ]);

  expect(left).toEqual([[], false]);
  expect((await javascript.end()).result.reason).toBe('cell_lost');
  expect((await python.end()).result.reason).toBe('cell_lost');
  await eventually('all children are gone', () => processesWith(`sleep ${theirs}`).length === 0);
});

test('an idle cell that is killed is replaced when it is needed', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  await session.run('0');
  const pid = await session.cellPid();

  process.kill(pid, 'SIGKILL');

  // Whether the daemon has noticed yet or not: an execution runs, or says honestly that its cell was lost.
  const first = await session.run('0');
  expect(['completed', 'cell_lost', 'start_failed']).toContain(first.result.reason);
  expect((await session.run('0')).result.reason).toBe('completed');
  expect(await session.cellPid()).not.toBe(pid);
});

test('a program that exhausts its heap ends memory_exceeded or cell_lost, and the session goes on', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ memoryLimitMb: 32 });

  const slow = await session.run('const kept = []; for (;;) kept.push({ at: kept.length });');
  const atOnce = await session.run("const all = 'x'.repeat(2 ** 20); const kept = []; for (;;) kept.push([...all]);");
  const next = await session.run("console.log('goes on')");

  for (const { result } of [slow, atOnce]) {
    expect(['memory_exceeded', 'cell_lost']).toContain(result.reason);
    expect(result.message).toMatch(/heap|memory/i);
  }
  expect(next.stdout).toBe('goes on\n');
});

test('a heap below its limit is enough for an ordinary program', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ memoryLimitMb: 32 });

  const { result, stdout } = await session.run(
    'const list = Array.from({ length: 100000 }, (_, i) => ({ i })); console.log(list.length)',
  );

  expect(result.reason).toBe('completed');
  expect(stdout).toBe('100000\n');
});

test('a running Python guest survives the death of its zygote, and more can be started', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready({
    language: 'python',
    stdin: true,
    code: 'print("ready", flush=True)\nprint("got " + input(), flush=True)\nraise SystemExit(4)',
  });
  const cell = await session.cellPid();
  const [zygote] = childrenOf(cell);

  process.kill(zygote as number, 'SIGKILL');
  await eventually('the zygote is gone', () => !isAlive(zygote as number));
  await running.write('more\n', true);
  const ended = await running.end();
  const next = await session.run({ language: 'python', code: 'print("again")' });

  expect(ended.stdout).toBe('ready\ngot more\n');
  expect(ended.result).toMatchObject({ reason: 'failed', exitCode: 4 });
  expect(next.stdout).toBe('again\n');
});

test('a cell that crashes again and again is not restarted without end', async () => {
  await using node = await TestDaemon.start({ restartIntensity: 2, restartPeriodMs: 8_000 });
  const session = await node.session();
  const crash = async () => {
    const running = await session.ready(IDLE);
    process.kill(await session.cellPid(), 'SIGKILL');
    await running.end();
  };

  const begunAtMs = performance.now();
  for (let crashes = 0; crashes < 3; crashes += 1) await crash();
  // More than two crashes within eight seconds: the next start waits until one of them is older.
  const last = await session.run("console.log('in the end')");
  const tookMs = performance.now() - begunAtMs;

  expect(last.stdout).toBe('in the end\n');
  expect(tookMs).toBeGreaterThan(8_000);
});

test('a cell that is not ready in time is told as that, and counts as one that has crashed', async () => {
  await using node = await TestDaemon.start({ startLimitMs: 1, restartIntensity: 0, restartPeriodMs: 1_000_000 });
  const session = await node.session();

  const first = await session.run('0');
  const second = await session.run({ code: '0', queueTimeoutMs: 100 });

  const message = expect.stringContaining('the cell was not ready within 1 ms (startLimitMs)');
  expect(first.result).toMatchObject({ reason: 'start_failed', message });
  expect(second.result).toMatchObject({ reason: 'queue_timed_out' });
});

test('an execution that waits for the restart intensity can be cancelled', async () => {
  await using node = await TestDaemon.start({ restartIntensity: 0, restartPeriodMs: 1_000_000 });
  const session = await node.session();
  const running = await session.ready(IDLE);
  process.kill(await session.cellPid(), 'SIGKILL');
  await running.end();
  const waiting = await session.submit('0');

  expect((await waiting.snapshot()).state).toBe('pending');
  await waiting.cancel({ graceMs: 0 });

  expect((await waiting.end()).result).toMatchObject({ reason: 'cancelled', exitCode: -1 });
});

test('an execution that waits for the restart intensity of its session takes no place of another session', async () => {
  await using node = await TestDaemon.start({
    maxRunning: 1,
    maxStarting: 1,
    restartIntensity: 0,
    restartPeriodMs: 600_000,
  });
  const [crashing, other] = [await node.session(), await node.session()];
  const running = await crashing.ready(IDLE);
  process.kill(await crashing.cellPid(), 'SIGKILL');
  await running.end();
  const waiting = await crashing.submit('0');

  const { result } = await other.run({ code: '0', queueTimeoutMs: 30_000 });

  expect(result.reason).toBe('completed');
  expect((await waiting.snapshot()).state).toBe('pending');
});

test('an execution that waits for the restart intensity holds up none of its session that has a cell', async () => {
  await using node = await TestDaemon.start({ restartIntensity: 0, restartPeriodMs: 600_000 });
  const session = await node.session();
  const neighbour = await session.ready(PYTHON_IDLE);
  const [cell] = await session.cellPids();
  const running = await session.ready(IDLE);
  for (const pid of await session.cellPids()) if (pid !== cell) process.kill(pid, 'SIGKILL');
  await running.end();
  const waiting = await session.submit('0');

  const { result } = await session.run({ language: 'python', code: '0', queueTimeoutMs: 30_000 });

  expect(result.reason).toBe('completed');
  expect((await waiting.snapshot()).state).toBe('pending');
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('what a guest has started goes with its cell, also where the guest itself was gone before', async () => {
  await using node = await TestDaemon.start({ controlGroups: false });
  const session = await node.session();
  const seconds = `600.${process.pid}7`;
  const code = `require('child_process').spawn('sleep', ['${seconds}'], { stdio: 'ignore' }); ${IDLE}`;
  const guest = await session.ready({ isolation: 'process', code });
  const cell = await session.cellPid();
  const { pid } = await guest.snapshot();

  // The cell does not see it.
  process.kill(cell, 'SIGSTOP');
  process.kill(pid, 'SIGKILL');
  await eventually('the guest is gone', () => !isAlive(pid));
  expect(processesWith(`sleep ${seconds} `)).toHaveLength(1);
  process.kill(cell, 'SIGKILL');

  expect((await guest.end()).result.reason).toBe('cell_lost');
  expect(processesWith(`sleep ${seconds} `)).toEqual([]);
});

test('a stopped cell does not keep its guests from ending', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const neighbour = await session.ready(IDLE);

  process.kill(await session.cellPid(), 'SIGSTOP');
  await running.cancel({ graceMs: 100 });
  const { result, steps } = await running.end();

  // Force wakes the cell: it costs the neighbour nothing.
  expect(steps.slice(2)).toEqual(['signaled.graceful', 'signaled.forced', 'exited.forced']);
  // It hears the signal it was sent before first.
  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  await stillWorks(session, neighbour);
});

/** Longer than a thread is given, and not nearly as long as a process is; longer than anybody. */
const BUSY_MS = { forced: 1_000, cell: 40_000 };

test.each([
  ['javascript', 'process', 'running', 'forced'],
  ['python', 'thread', 'running', 'forced'],
  // What runs in the cell itself may be what holds it up.
  ['javascript', 'thread', 'exited', 'cell'],
] as const)(
  'a busy cell is given time to tell of the end of a process: %s, %s',
  async (language, isolation, state, rung) => {
    await using node = await TestDaemon.start({ forcedLimitMs: 500 });
    const session = await node.session({ executionDefaults: { isolation } });
    const idle = language === 'python' ? PYTHON_IDLE : { code: IDLE };
    const neighbour = await session.ready(idle);
    const guest = await session.ready(idle);
    const cell = await session.cellPid();

    const wake = await holdUp(cell);
    await guest.cancel({ graceMs: 0 });
    const patience = setTimeout(wake, BUSY_MS[rung]);
    const { result } = await guest.end();
    clearTimeout(patience);
    await neighbour.reached(state);

    expect(result).toMatchObject({ reason: 'cancelled', rung });
    expect((await neighbour.snapshot()).state).toBe(state);
  },
);

test('a cell that makes JavaScript of a large program is not killed for the guest that is forced meanwhile', async () => {
  await using node = await TestDaemon.start({ forcedLimitMs: undefined });
  const session = await node.session();
  const neighbour = await session.ready(IDLE);
  const guest = await session.ready(IDLE);
  const lines = Array.from(
    { length: 12_000 },
    (_, i) => `export function f${i}(a: number, b: string): string {
    enum E { A, B }
    return a + b + E.A;
  }`,
  );
  const isWritten = () =>
    readdirSync(join(node.root, 's', 'work'), { recursive: true }).some((name) => String(name).endsWith('.ts'));

  await session.submit({ language: 'typescript', code: lines.join('\n') });
  await eventually('the cell is at the large program', isWritten);
  await guest.cancel({ graceMs: 0 });
  const { result } = await guest.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test.each([
  ['threads', { code: IDLE }, 500],
  ['processes', PYTHON_IDLE, 20],
])(
  'a cell that has no processor to tell of the end of %s is not killed for it',
  {
    timeout: 240_000,
  },
  async (_, idle, forcedLimitMs) => {
    await using node = await TestDaemon.start({ forcedLimitMs });
    const session = await node.session({ contextPoolSize: 0 });
    const neighbour = await session.ready(idle);
    const guests = await Promise.all(Array.from({ length: 6 }, () => session.ready(idle)));

    const endHogs = await starve(await session.cellPid());
    await Promise.all(guests.map((guest) => guest.cancel({ graceMs: 0 })));
    const ends = await Promise.all(guests.map((guest) => guest.end()));
    endHogs();

    expect(ends.map(({ result }) => result.rung)).toEqual(guests.map(() => 'forced'));
    expect((await neighbour.snapshot()).state).toBe('running');
  },
);

test('starts that a cell holds up keep no other session from starting', async () => {
  await using node = await TestDaemon.start({ maxStarting: 2, startLimitMs: 50_000 });
  const [session, other] = [await node.session(), await node.session()];
  await session.ready(IDLE);

  const wake = await holdUp(await session.cellPid());
  const held = [await session.submit('0'), await session.submit('0'), await session.submit('0')];
  const { result } = await other.run('0');
  const meanwhile = await Promise.all(held.map((execution) => execution.snapshot()));
  wake();

  expect(result.reason).toBe('completed');
  expect(meanwhile.map(({ state }) => state)).toEqual(['pending', 'pending', 'pending']);
});

test('a stopped cell does not keep its session from closing', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  await session.ready(PYTHON_IDLE);
  const pid = await session.cellPid();

  process.kill(pid, 'SIGSTOP');
  await session.close(100);

  expect(isAlive(pid)).toBe(false);
});

/** The head of a frame so long. */
const A_GIBIBYTE = Buffer.from([0x40, 0, 0, 0]);

/** The path of the one cell's socket below a daemon's state directory. */
function cellSocket(node: TestDaemon): string {
  const directory = join(node.root, 's', 'daemon', 'cells');
  const name = readdirSync(directory).find((file) => file.endsWith('.sock'));
  if (name === undefined) throw new Error('no cell socket');
  return join(directory, name);
}

function closed(socket: Socket): Promise<void> {
  socket.resume();
  socket.on('error', () => {});
  return new Promise((resolve) => socket.once('close', () => resolve()));
}

async function stillWorks(session: TestSession, guest: { snapshot(): Promise<{ state: string }> }): Promise<void> {
  expect((await guest.snapshot()).state).toBe('running');
  expect((await session.run('0')).result.reason).toBe('completed');
}

test('garbage on a cell socket ends that connection and harms nothing', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const path = cellSocket(node);
  const frame = (body: Buffer) => {
    const header = Buffer.alloc(4);
    header.writeUInt32BE(body.length);
    return Buffer.concat([header, body]);
  };

  for (const garbage of [
    Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
    Buffer.alloc(64, 0xff),
    frame(Buffer.alloc(64, 0xff)),
    frame(randomBytes(1000)),
  ]) {
    const socket = connect(path);
    const end = closed(socket);
    socket.write(garbage);
    await end;
  }
  // Half a frame, then nothing more.
  connect(path).end(Buffer.from([0, 0]));

  expect(statSync(path).mode & 0o777).toBe(0o600);
  await stillWorks(session, running);
});

test('who has not shown the token of a cell is not listened to for long, nor to a long frame', {
  timeout: 120_000,
}, async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const [silent, long] = [connect(cellSocket(node)), connect(cellSocket(node))];
  const ended: string[] = [];
  const ends = [closed(silent).then(() => ended.push('silent')), closed(long).then(() => ended.push('long'))];

  long.write(A_GIBIBYTE);
  await Promise.all(ends);

  expect(ended).toEqual(['long', 'silent']);
  await stillWorks(session, running);
});

test('a cell whose connection says that a gibibyte follows is ended, and nothing is waited for', async () => {
  await using node = await TestDaemon.start();
  const [session, other] = [await node.session(), await node.session()];
  const neighbour = await other.ready(IDLE);

  const { result } = await session.run(`
    const fs = require('node:fs');
    const targetOf = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
    for (const fd of fs.readdirSync('/proc/self/fd').filter((fd) => targetOf(fd).startsWith('socket:')).map(Number)) {
      // The one it listens on takes nothing.
      try { fs.writeSync(fd, Buffer.from([${[...A_GIBIBYTE]}])); } catch {}
    }
    setInterval(() => {}, 1000);`);

  expect(result.reason).toBe('cell_lost');
  await stillWorks(other, neighbour);
});

test('a cell obeys nobody without its token', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const path = cellSocket(node);
  const hello = {
    engine: 'javascript',
    keepWarm: 0,
    heapLimitMb: 0,
    build: '',
    interpreter: '',
    orphanGraceMs: 0,
    zygotePath: '',
    sessionKey: '',
    mostGuests: 0,
    memoryBudgetBytes: 0n,
    cgroups: {},
    cgroupVersion: 0,
    protocolVersion: PROTOCOL_VERSION,
  };

  for (const message of [
    { $case: 'shutdown' as const, value: {} },
    { $case: 'hello' as const, value: { ...hello, token: '' } },
    { $case: 'hello' as const, value: { ...hello, token: 'x'.repeat(32) } },
  ]) {
    const socket = connect(path);
    const heard: unknown[] = [];
    const stranger = new FramedSocket<FromCell, ToCell>(socket, FromCell, ToCell);
    stranger.on('message', (said) => heard.push(said));
    const end = closed(socket);
    stranger.send({ body: message });
    await end;
    expect(heard).toEqual([]);
  }

  await stillWorks(session, running);
});

test('garbage on the daemon socket harms nothing', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);

  for (const garbage of [Buffer.from('GET / HTTP/1.1\r\n\r\n'), randomBytes(10_000), Buffer.alloc(10_000)]) {
    const socket = connect(node.endpoints.socket as string);
    const end = closed(socket);
    socket.write(garbage);
    socket.end();
    await end;
  }

  await stillWorks(session, running);
});

test('a signal to its cell, which is the parent of what a thread starts, disturbs nobody', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const neighbour = await session.ready({
    stdin: true,
    code: "process.stdin.on('end', () => console.log('done')).resume(); console.log('ready')",
  });
  const names = ['HUP', 'INT', 'QUIT', 'USR1', 'USR2', 'PIPE', 'ALRM', 'TERM', 'VTALRM', 'PROF', 'IO', 'PWR'];

  const parent = await session.run(`
    const { execFileSync, spawnSync } = require('node:child_process');
    for (const name of ${JSON.stringify(names)}) execFileSync('sh', ['-c', 'kill -' + name + ' $PPID']);
    console.log(spawnSync('sh', ['-c', 'kill 0']).signal);`);
  await neighbour.write('', true);

  expect(parent.stdout).toBe('SIGTERM\n');
  expect(parent.result.reason).toBe('completed');
  expect(await neighbour.end()).toMatchObject({ stdout: 'ready\ndone\n', result: { reason: 'completed' } });
});

test.each(['javascript', 'python'])('50 %s executions at once all complete, and nothing is left', async (language) => {
  // What the runtime opens once and keeps is not counted.
  await using first = await TestDaemon.start();
  await (await first.session()).run('0');
  await first.daemon.stop();
  const processesBefore = new Set(descendants());
  const descriptorsBefore = openDescriptors();
  await using node = await TestDaemon.start();
  const session = await node.session();
  const code = language === 'python' ? 'import sys\nprint(sys.argv[1])' : 'console.log(process.argv[2])';

  const executions = await Promise.all(
    Array.from({ length: 50 }, (_, index) => session.submit({ language, code, args: [`${index}`] })),
  );
  const ends = await Promise.all(executions.map((execution) => execution.end()));
  await session.close();

  expect(ends.map(({ result }) => result.reason)).toEqual(new Array(50).fill('completed'));
  expect(ends.map(({ stdout }) => stdout)).toEqual(Array.from({ length: 50 }, (_, index) => `${index}\n`));
  expect(descendants().filter((pid) => !processesBefore.has(pid))).toEqual([]);
  expect(readdirSync(join(node.root, 's', 'daemon', 'cells'))).toEqual([]);
  expect(readdirSync(join(node.root, 's', 'work'))).toEqual([]);
  await node.daemon.stop();
  await closedAgain(descriptorsBefore);
});

test('a daemon that leaves its guests to the next one keeps nothing open of them', async () => {
  const root = temporaryDirectory();
  const create = () => createDaemon({ logLevel: 'silent', stateDir: join(root, 's'), socket: join(root, 'd.sock') });
  onTestFinished(() => void killTrees(cellsBelow(root)));
  // What the runtime opens once and keeps is not counted.
  const first = create();
  await first.start();
  await first.createSession('first');
  await new TestSession(first, 'first').run('0');
  await first.stop();
  const before = openDescriptors();
  const second = create();
  await second.start();
  await second.createSession('second');
  const session = new TestSession(second, 'second');
  for (const guest of [IDLE, PYTHON_IDLE, PYTHON_IDLE]) await session.ready(guest);

  await second.stop({ detach: true });

  await closedAgain(before);
  expect(cellsBelow(root)).toHaveLength(2);
});

test('children that ended guests leave behind do not pile up: their cell is replaced, and nobody is disturbed', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const staying = await session.ready('console.log("ready"); setInterval(() => {}, 1000)');
  const first = await session.cellPid();
  const littering = `const { spawn } = require('child_process');
    for (let i = 0; i < 20; i++) spawn('sleep', ['600']); process.exit()`;

  // A thread that ends by itself is gone before its children are killed.
  for (let count = 0; count < 4; count += 1) await session.run(littering);

  const pidOf = async () => Number((await session.run('console.log(process.pid)')).stdout);
  await eventually('another cell for new executions', async () => (await pidOf()) !== first);
  expect((await staying.snapshot()).state).toBe('running');
  expect(isAlive(first)).toBe(true);
  await staying.cancel({ graceMs: 0 });
  await eventually('the end of the first cell', () => !isAlive(first));
});
