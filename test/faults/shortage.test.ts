import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { Elidectl } from '../cli/elidectl.ts';
import { removePlace } from '../support/control-groups.ts';
import { childrenOf, eventually, processesWith, TestDaemon } from '../support/daemon.ts';
import { limited } from './faults.ts';
import { FaultNode } from './node.ts';
import { descriptorsOf } from './round.ts';

const groups = ControlGroups.open();
const hasGroups = groups.version > 0;
await groups.close();
if (!hasGroups) console.info(`left out, as this user cannot make control groups (${groups.why}): those of dead cells`);

const IDLE = {
  javascript: "setInterval(() => {}, 1000); console.log('ready');",
  python: "import time\nprint('ready', flush=True)\ntime.sleep(600)",
};

test('a daemon without descriptors says so, as what passes, and goes on when it has some', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.client.executeSnippet({
    sessionId: 's',
    executionId: 'e',
    language: 'javascript',
    code: "console.log('x')",
  });
  const { result } = await node.client.wait('s', 'e');
  await node.ready({ executionId: 'runs', code: IDLE.javascript });

  // What is open stays open.
  using used = limited(node.pid, 'NOFILE', 3);
  const status = await node.client.getExecutionStatus('s', 'e').catch((error) => error);
  const stream = () => node.client.streamOutput('s', 'e', { patienceMs: 0 });
  const output = await stream()
    .next()
    .catch((error) => error);
  const during = await node.client.wait('s', 'runs', { timeoutMs: 0 });
  used[Symbol.dispose]();

  for (const error of [status, output]) {
    expect(error).toMatchObject({ code: 'resource_exhausted', retryAfterMs: 1_000 });
    expect(error.message).toMatch(/^EMFILE: too many open files/);
  }
  expect(during.state).toBe('running');
  expect(await node.client.getExecutionStatus('s', 'e')).toMatchObject({ result });
  expect(await node.stdout('e')).toBe('x\n');
  expect((await node.client.wait('s', 'runs', { timeoutMs: 0 })).state).toBe('running');
});

test('a cell that dies while its daemon has no descriptors is seen to its end, with the results it had left', async () => {
  await using node = await FaultNode.start();
  const { client, pid } = node;
  await client.createSession('s');
  const seconds = `600.${process.pid}${Date.now()}`;
  const child = `require('child_process').spawn('sleep', ['${seconds}'], { stdio: 'ignore' });`;
  await node.ready({ executionId: 'runs', code: `${child} ${IDLE.javascript}` });
  const go = join(node.root, 'go');
  const leave = `setInterval(() => require('fs').existsSync('${go}') && process.exit(7), 20); console.log('ready');`;
  await node.ready({ executionId: 'ends', code: leave });
  const [cell] = node.cellPids();
  const cells = join(node.stateDir, 'daemon', 'cells');
  const ends = join(cells, readdirSync(cells).find((name) => name.endsWith('.ends')) as string);
  const waits = ['runs', 'ends'].map((executionId) => client.wait('s', executionId));

  // None is left, whatever is closed meanwhile, beside the one that it keeps.
  const descriptors = readdirSync(`/proc/${pid}/fd`).map(Number);
  const kept = descriptors.filter((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === '/dev/null').at(-1) as number;
  using used = limited(pid, 'NOFILE', kept + 1);
  process.kill(pid, 'SIGSTOP');
  writeFileSync(go, '');
  await eventually('one has ended, and its cell has written that down', () => statSync(ends).size > 0);
  process.kill(cell as number, 'SIGKILL');
  process.kill(pid, 'SIGCONT');
  const results = (await Promise.all(waits)).map(({ result }) => [result?.reason, result?.exitCode]);
  used[Symbol.dispose]();

  expect(results).toEqual([
    ['cell_lost', -1],
    ['failed', 7],
  ]);
  expect(processesWith(`sleep ${seconds}`)).toEqual([]);
  await node.ready({ executionId: 'next', code: IDLE.javascript });
});

/** Leaves a process so many descriptors to open. */
function leaveDescriptors(pid: number, count: number): Disposable {
  const used = new Set(readdirSync(`/proc/${pid}/fd`).map(Number));
  let limit = 0;
  for (let free = 0; free < count || used.has(limit); limit += 1) if (!used.has(limit)) free += 1;
  return limited(pid, 'NOFILE', limit);
}

test('what could not be spawned for want of descriptors keeps none', async () => {
  await using node = await FaultNode.start();
  const { client, pid } = node;
  const open = () => readdirSync(`/proc/${pid}/fd`).length;
  const fail = async (sessionId: string, count: number) => {
    await client.createSession(sessionId);
    using _few = leaveDescriptors(pid, count);
    await client.executeSnippet({ sessionId, executionId: 'e', language: 'javascript', code: '0' });
    const { result } = await client.wait(sessionId, 'e');
    await client.deleteSession(sessionId);
    return result;
  };
  await fail('first', 1);
  const before = open();

  for (const count of [1, 2, 3, 4]) {
    const result = await fail(`s${count}`, count);
    expect(result).toMatchObject({ reason: 'start_failed', message: expect.stringContaining('EMFILE') });
  }
  await eventually('all are closed', () => open() <= before);
  await client.createSession('s');
  await node.ready({ executionId: 'next', code: IDLE.javascript });
});

const KINDS = [
  ['javascript', 'thread'],
  ['javascript', 'process'],
  ['python', 'process'],
] as const;

/** The cell of a session of this kind, in which `runs` runs. */
async function cellOf(node: FaultNode, language: keyof typeof IDLE, isolation: 'thread' | 'process'): Promise<number> {
  await node.client.createSession('s', { executionDefaults: { isolation } });
  await node.ready({ executionId: 'runs', language, code: IDLE[language] });
  return node.cellPids()[0] as number;
}

/** Enough for some of what a start needs. */
const COUNTS = [0, 2, 4, 9];

test.each(KINDS)(
  'a cell that has no descriptors left fails what it was to start, and nothing else: %s, %s',
  { timeout: 180_000 },
  async (language, isolation) => {
    await using node = await FaultNode.start();
    const { client } = node;
    const cell = await cellOf(node, language, isolation);
    // What it keeps ready for the next ones, which is more or less, has none of these.
    const outputs = () => descriptorsOf(cell).filter((name) => /^(stdout|stderr|marks)\b/.test(name)).length;

    const start = async (executionId: string, count: number) => {
      using _few = leaveDescriptors(cell, count);
      // It needs the next one for the next guest.
      const zygotes = processesWith('zygote.py').filter((pid) => childrenOf(cell).includes(pid));
      for (const zygote of zygotes) process.kill(zygote, 'SIGKILL');
      await client.executeSnippet({ sessionId: 's', executionId, language, code: IDLE[language] });
      // Where there are just enough it runs.
      for await (const { state } of client.watchExecution('s', executionId)) if (state === 'running') break;
      const { result } = await client.wait('s', executionId, { timeoutMs: 0 });
      if (result === undefined) await client.cancelExecution('s', executionId, { graceMs: 0 });
      return result?.reason;
    };
    const round = async (name: string) => {
      const reasons: (string | undefined)[] = [];
      for (const count of COUNTS) reasons.push(await start(`${name}-${count}`, count));
      expect(reasons.slice(0, 2)).toEqual(['start_failed', 'start_failed']);
      // All is well again, and what is kept ready for the next ones is there.
      await node.ready({ executionId: name, language, code: IDLE[language] });
      await node.ready({ executionId: `${name}-next`, language, code: IDLE[language] });
    };
    await round('first');
    await round('second');

    for (const executionId of ['second', 'second-next']) await client.cancelExecution('s', executionId, { graceMs: 0 });
    await eventually('only those of three that run are open', () => outputs() === 9);
    expect((await client.wait('s', 'runs', { timeoutMs: 0 })).state).toBe('running');
    expect(node.cellPids()).toEqual([cell]);
  },
);

test.each([
  [
    'a program has started',
    "spawn(...child, { stdio: 'ignore' }).on('spawn', () => console.log('ready')).on('exit', end);",
  ],
  ['a program waits for', "end(spawnSync(...child, { stdio: 'inherit' }).status);"],
  [
    'a thread waits for that is to end',
    `const worker = new Worker("require('child_process').spawnSync(...require('worker_threads').workerData)",
      { eval: true, workerData: child });
    worker.on('exit', () => end(0));
    const look = setInterval(() => {
      if (!existsSync(begun)) return;
      clearInterval(look);
      worker.terminate();
      console.log('ready');
    }, 5);`,
  ],
])('the end of a child that %s is seen where the cell has no descriptor left', { timeout: 60_000 }, async (_, code) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const [begun, go] = [join(node.directory(), 'begun'), join(node.directory(), 'go')];
  const waiting = await session.ready(`
      const { existsSync } = require('node:fs');
      const { spawn, spawnSync } = require('node:child_process');
      const { Worker } = require('node:worker_threads');
      const begun = '${begun}';
      const child = ['sh', ['-c', ': > ${begun}; echo ready; until [ -e ${go} ]; do sleep 0.02; done']];
      const end = (status) => process.exit(status === 0 ? 3 : 4);
      ${code}`);
  // What is open stays open.
  using _none = limited(await session.cellPid(), 'NOFILE', 3);
  writeFileSync(go, '');
  const { result } = await waiting.end();

  expect(result).toMatchObject({ reason: 'failed', exitCode: 3 });
});

/** A thread that takes every descriptor there is, again and again. */
const TAKES_ALL = `
  const { openSync } = require('node:fs');
  const take = () => { for (;;) openSync('/dev/null'); };
  try { take(); } catch { console.log('ready'); }
  for (;;) try { take(); } catch {}`;

test.each([
  ['by a signal', '', 143],
  ['by its handler', "process.on('SIGTERM', () => process.exit(3));", 3],
])(
  'a thread that takes every descriptor there is costs nobody the cell when one beside it ends %s',
  { timeout: 60_000 },
  async (_, handler, exitCode) => {
    await using node = await TestDaemon.start();
    const session = await node.session();
    const bystander = await session.ready(IDLE.javascript);
    const ending = await session.ready(`
      require('node:child_process').spawnSync('true', { stdio: 'inherit' });
      ${handler}
      ${IDLE.javascript}`);
    const taking = await session.ready(TAKES_ALL);

    await ending.cancel({ graceMs: 60_000 });
    const { result } = await ending.end();

    expect(result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode });
    expect((await bystander.snapshot()).state).toBe('running');
    expect((await taking.snapshot()).state).toBe('running');
  },
);

test('a thread that takes every descriptor there is costs nobody beside it the files that its output goes to', {
  timeout: 60_000,
}, async () => {
  await using node = await FaultNode.start();
  const { client } = node;
  await client.createSession('s');
  const directory = join(node.root, 'logs');
  mkdirSync(directory);
  const maxFileBytes = 4_096;
  const outputFiles = { stdout: join(directory, 'o'), stderr: join(directory, 'e'), maxFiles: 1_000, maxFileBytes };
  const code = "let count = 0; setInterval(() => console.log(String(count++).padStart(99, '0')), 2);";
  const count = () => readdirSync(directory).filter((name) => name.startsWith('o.')).length;
  const written = () =>
    Array.from({ length: count() }, (_, number) => readFileSync(join(directory, `o.${number}`), 'utf8'));

  await client.executeSnippet({ sessionId: 's', executionId: 'writes', language: 'javascript', code, outputFiles });
  await eventually('it writes', () => count() > 0);
  await node.ready({ executionId: 'takes', code: TAKES_ALL });
  await eventually('one is longer than it may be', () => written().some(({ length }) => length > 3 * maxFileBytes));
  const before = count();
  await client.cancelExecution('s', 'takes', { graceMs: 0 });
  await client.wait('s', 'takes');
  await eventually('it has gone on to the next files', () => count() > before + 1);
  await client.cancelExecution('s', 'writes', { graceMs: 0 });
  const { result } = await client.wait('s', 'writes');

  expect(result).toMatchObject({ reason: 'cancelled' });
  const lines = written().join('').trim().split('\n').map(Number);
  expect(lines).toEqual(lines.map((_, index) => index));
});

test.each(KINDS)(
  'a start that fails for want of descriptors says so, and leaves no file of the caller open: %s, %s',
  { timeout: 180_000 },
  async (language, isolation) => {
    await using node = await FaultNode.start();
    const { client } = node;
    const cell = await cellOf(node, language, isolation);
    const directory = join(node.root, 'logs');
    mkdirSync(directory);
    const [stdout, stderr] = ['callers-stdout', 'callers-stderr'].map((name) => join(directory, name)) as [
      string,
      string,
    ];
    const outputFiles = { stdout, stderr, maxFiles: 10, maxFileBytes: 65_536 };

    for (const [round, count] of [1, 3, 1, 3].entries()) {
      using _few = leaveDescriptors(cell, count);
      const executionId = `${round}`;
      await client.executeSnippet({ sessionId: 's', executionId, language, code: IDLE[language], outputFiles });
      // Where there are just enough it runs.
      for await (const { state } of client.watchExecution('s', executionId)) if (state === 'running') break;
      await client.cancelExecution('s', executionId, { graceMs: 0 });
      const { result } = await client.wait('s', executionId);
      if (result?.reason === 'cancelled') continue;
      expect(result).toMatchObject({ reason: 'start_failed', message: expect.stringContaining('EMFILE') });
    }

    const isOpen = () => descriptorsOf(cell).some((name) => name.startsWith('callers-'));
    await eventually("none of the caller's is open", () => !isOpen());
    await node.ready({ executionId: 'next', language, code: IDLE[language] });
    expect((await client.wait('s', 'runs', { timeoutMs: 0 })).state).toBe('running');
  },
);

test('a directory that cannot be removed for want of descriptors keeps none, and is removed once there are some', async () => {
  await using node = await FaultNode.start();
  const { client, pid } = node;
  await client.createSession('s');
  const open = () => readdirSync(`/proc/${pid}/fd`).length;
  const below = (directory: string) => readdirSync(directory).map((name) => join(directory, name));
  // Too many files to be removed one by one.
  const code = `const { chmodSync, writeFileSync } = require('fs');
    for (let i = 0; i < 300; i += 1) writeFileSync(String(i), '');
    chmodSync('..', 0o755);
    ${IDLE.javascript}`;
  const remove = async (executionId: string, count: number) => {
    await node.ready({ executionId, code });
    const [directory = ''] = below(join(node.stateDir, 'work')).flatMap(below);
    using _few = leaveDescriptors(pid, count);
    await client.cancelExecution('s', executionId, { graceMs: 0 });
    const mode = () => statSync(directory, { throwIfNoEntry: false })?.mode ?? 0;
    await eventually('it is gone, or was unlocked after it could not be removed', () => (mode() & 0o777) !== 0o755);
    return directory;
  };
  const first = await remove('first', 32);
  await eventually('it is gone', () => !existsSync(first));
  const before = open();

  for (const count of [1, 2, 3, 4, 5, 6, 7]) {
    const directory = await remove(`e${count}`, count);
    await eventually('it is gone', () => !existsSync(directory));
  }

  await eventually('all are closed', () => open() <= before);
});

test('elidectl run goes on once a daemon has descriptors again', { timeout: 60_000 }, async () => {
  await using node = await FaultNode.start();
  const { client, pid } = node;
  await client.createSession('s');
  await node.ready({ executionId: 'warm', code: IDLE.javascript });
  const go = join(node.root, 'go');
  const code = `console.log('begun');
    const { existsSync } = process.getBuiltinModule('node:fs');
    setInterval(() => existsSync('${go}') && process.exit(console.log('done')), 20);`;
  const begun = async () => {
    for await (const { executionId, state } of client.listExecutions('s')) {
      if (executionId !== 'warm' && state === 'running') return executionId;
    }
    return undefined;
  };

  // For its connection, and fewer than its output needs.
  using _few = leaveDescriptors(pid, 2);
  const running = new Elidectl(node.socket).start(['run', '--session', 's', '-l', 'javascript', '-e', code]);
  await eventually('it runs', async () => (await begun()) !== undefined);
  const executionId = (await begun()) as string;
  // Whatever was closed meanwhile.
  using none = limited(pid, 'NOFILE', 3);
  const output = client.streamOutput('s', executionId, { patienceMs: 0 });
  await expect(output.next()).rejects.toMatchObject({ code: 'resource_exhausted' });
  none[Symbol.dispose]();
  writeFileSync(go, '');
  const ended = await running.ended;

  const said = { code: ended.code, stdout: `${ended.stdout}`, stderr: `${ended.stderr}` };
  expect(said).toEqual({ code: 0, stdout: 'begun\ndone\n', stderr: '' });
});

test.skipIf(!hasGroups)(
  'the control groups of a cell go with it, also where it dies while there is no daemon',
  async () => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const start = async (language: keyof typeof IDLE, executionId: string) => {
      await node.ready({ executionId, language, code: IDLE[language], memoryLimitMb: 256 });
    };
    const ofCells = () => node.controlGroups().filter((name) => name.includes('/'));
    const die = () => {
      for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
    };
    await start('javascript', 'first');
    await start('python', 'second');
    expect(ofCells()).toHaveLength(2);

    die();
    for (const executionId of ['first', 'second']) {
      expect((await node.client.wait('s', executionId)).result?.reason).toBe('cell_lost');
    }
    await eventually('their groups are gone', () => ofCells().length === 0);

    // It runs away from its cell's session of processes: only the group still has it.
    const seconds = `600.${process.pid}${Date.now()}`;
    const options = "{ detached: true, stdio: 'ignore' }";
    const code = `require('child_process').spawn('sleep', ['${seconds}'], ${options}).on('spawn', () => console.log('ready'));`;
    await node.ready({ executionId: 'third', code });
    await start('python', 'fourth');
    const before = node.controlGroups();
    expect(ofCells()).toHaveLength(2);
    await node.end();
    die();
    await eventually('no cell is left', () => node.cellPids().length === 0);
    expect(node.controlGroups()).toEqual(before);
    await eventually('what ran away is seen', () => processesWith(`sleep ${seconds}`).length === 1);
    await node.start();
    expect(processesWith(`sleep ${seconds}`)).toEqual([]);

    for (const executionId of ['third', 'fourth']) {
      expect((await node.client.wait('s', executionId)).result?.reason).toBe('daemon_lost');
    }
    expect(node.controlGroups().filter((name) => before.includes(name))).toEqual([]);

    // A cell that is taken over takes the directory of the daemon that made it along.
    await start('javascript', 'fifth');
    const mine = node.controlGroups();
    await node.restart();
    expect(node.controlGroups()).toEqual(expect.arrayContaining(mine));
    die();
    expect((await node.client.wait('s', 'fifth')).result?.reason).toBe('cell_lost');
    await eventually('all of it is gone', () => node.controlGroups().every((name) => !mine.includes(name)));
    expect(readdirSync(join(node.stateDir, 'daemon', 'cells'))).toEqual([]);
  },
);

test.skipIf(!hasGroups || process.getuid?.() !== 0)(
  'a cell that cannot have its control groups does not start, and runs nothing without a limit that is required',
  async () => {
    await using node = await FaultNode.start();
    const { client } = node;
    await client.createSession('s');
    const code = `
import os, time
try:
    for _ in range(40):
        if os.fork() == 0:
            time.sleep(600)
except OSError:
    print('held', flush=True)
`;
    const run = async (executionId: string) => {
      const limits = { processLimit: 5, requireEnforcement: true };
      await client.executeSnippet({ sessionId: 's', executionId, language: 'python', code, ...limits });
      const { result } = await client.wait('s', executionId);
      return { reason: result?.reason, message: result?.message, stdout: await node.stdout(executionId) };
    };
    const search = ['/sys/fs/cgroup', '-type', 'd', '-name', `elide-${node.pid}-*`];
    const own = execFileSync('find', search, { encoding: 'utf8' }).trim().split('\n');

    const mounted: string[] = [];
    let during: Awaited<ReturnType<typeof run>>;
    try {
      for (const directory of own) {
        execFileSync('mount', ['--bind', directory, directory]);
        mounted.push(directory);
        execFileSync('mount', ['-o', 'remount,bind,ro', directory]);
      }
      during = await run('during');
    } finally {
      for (const directory of mounted) execFileSync('umount', [directory]);
    }
    const after = await run('after');

    const message = expect.stringMatching(/^the cell did not start: E\w+: .*\/sys\/fs\/cgroup/);
    expect(during).toEqual({ reason: 'start_failed', message, stdout: '' });
    expect(node.log).toContain('the cell did not start: E');
    expect(after).toMatchObject({ reason: 'completed', stdout: 'held\n' });
  },
);

const PLACE = `/elide-test-${process.pid}`;

test.skipIf(!hasGroups).each([
  ['in a place', true, PLACE],
  ['in another place', PLACE, `${PLACE}-next`],
  ['nowhere', true, false],
])(
  'the control groups of a cell go with it, and what ran away, where the next daemon has its own %s',
  async (_, from, to) => {
    const node = await FaultNode.start({ controlGroups: from });
    try {
      await node.client.createSession('s');
      const seconds = `600.${process.pid}${Date.now()}`;
      const options = "{ detached: true, stdio: 'ignore' }";
      const code = `require('child_process').spawn('sh', ['-c', 'sleep ${seconds} &'], ${options})
      .on('exit', () => console.log('ready')); setInterval(() => {}, 1e6);`;
      await node.ready({ executionId: 'kept', code });
      const kept = node.cellPids();
      await node.ready({ executionId: 'lost', code, isolation: 'process' });
      await eventually('what ran away is seen', () => processesWith(`sleep ${seconds}`).length === 2);
      const before = node.controlGroups();
      await node.end();
      for (const pid of node.cellPids()) if (!kept.includes(pid)) process.kill(pid, 'SIGKILL');
      await eventually('one cell is left', () => node.cellPids().length === 1);

      await node.start({ controlGroups: to });
      expect(processesWith(`sleep ${seconds}`)).toHaveLength(1);
      await node.client.deleteSession('s', { graceMs: 0 });

      expect(processesWith(`sleep ${seconds}`)).toEqual([]);
      expect(node.controlGroups().filter((name) => before.includes(name))).toEqual([]);
    } finally {
      await node[Symbol.asyncDispose]();
      for (const place of [PLACE, `${PLACE}-next`]) removePlace(place);
    }
  },
  60_000,
);

test.skipIf(!hasGroups)(
  'in a place that the daemon was told, limits hold on under the next one, and groups go',
  async () => {
    const node = await FaultNode.start({ controlGroups: PLACE });
    try {
      await node.client.createSession('s');
      const code = "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nbytearray(256 * 2 ** 20)";
      await node.ready({ executionId: 'e', language: 'python', code, stdin: true, memoryLimitMb: 64 });
      const before = node.controlGroups();

      await node.restart();
      const [cell] = node.cellPids();
      expect(readFileSync(`/proc/${cell}/cgroup`, 'utf8')).toContain(`:${PLACE}/${before.at(-1)}`);
      expect(node.controlGroups()).toEqual(expect.arrayContaining(before));
      await node.client.writeInput('s', 'e', Buffer.from('go\n'), true);

      expect((await node.client.wait('s', 'e')).result?.reason).toBe('memory_exceeded');
      await eventually('the groups of the cell are gone', () =>
        node.controlGroups().every((name) => !before.includes(name)),
      );
      await node.end('SIGTERM');
      expect(node.controlGroups()).toEqual([]);
    } finally {
      await node[Symbol.asyncDispose]();
      removePlace(PLACE);
    }
  },
  180_000,
);
