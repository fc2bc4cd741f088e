import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, isAlive, processesWith, TestDaemon } from '../support/daemon.ts';
import { inTime } from '../support/in-time.ts';

/** A command line that no other process on this machine has. */
const uniqueSleep = () => `sleep 60${Math.floor(Math.random() * 1e9)}`;

/** Within this a thread that has said it is ready is surely in the call that it was about to make. */
const GRACE_MS = 1_000;

/** Has as many descriptors open as it may, up to 20,000. */
const HOLDING = `
import os, resource, time
most = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = os.open('/dev/null', os.O_WRONLY)
try:
    while True: os.dup(held)
except OSError:
    print('ready', flush=True)
time.sleep(600)`;

let node: TestDaemon;
beforeAll(async () => {
  node = await TestDaemon.start({ graceMs: 300 });
});
afterAll(() => node[Symbol.asyncDispose]());

test('a program that exits in its SIGTERM handler ends at graceful, with its own exit code', async () => {
  const session = await node.session();
  const running = await session.ready(`
    process.on('SIGTERM', () => { console.log('bye'); process.exit(3); });
    setInterval(() => {}, 1000);
    console.log('ready');`);

  expect(await running.cancel({ graceMs: 60_000 })).toBe(true);
  const ended = await running.end();

  expect(ended.steps).toEqual(['pending', 'running', 'signaled.graceful', 'exited.graceful']);
  expect(ended.result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3, signal: undefined });
  expect(ended.stdout).toBe('ready\nbye\n');
});

test('a program whose handler finishes its work asynchronously has the grace period for it', async () => {
  const session = await node.session();
  const running = await session.ready(`
    const idle = setInterval(() => {}, 1000);
    process.on('SIGTERM', async () => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      console.log('flushed');
      clearInterval(idle);
    });
    console.log('ready');`);

  await running.cancel({ graceMs: 60_000 });
  const ended = await running.end();

  expect(ended.result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 0 });
  expect(ended.stdout).toBe('ready\nflushed\n');
});

test('a program that handles SIGTERM and never exits is forced when the grace period ends', async () => {
  const session = await node.session();
  const running = await session.ready(`
    process.on('SIGTERM', () => console.log('no'));
    setInterval(() => {}, 1000);
    console.log('ready');`);

  const graceMs = 3_000;
  await running.cancel({ graceMs });
  const { steps, result, snapshot, stdout } = await running.end();

  expect(steps).toEqual(['pending', 'running', 'signaled.graceful', 'signaled.forced', 'exited.forced']);
  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137, signal: 'SIGKILL' });
  expect(stdout).toBe('ready\nno\n');
  const { acceptedAtMs, startedAtMs = 0, signaledAtMs = 0, exitedAtMs = 0 } = snapshot.times;
  expect([acceptedAtMs, startedAtMs, signaledAtMs, exitedAtMs]).toEqual(
    [acceptedAtMs, startedAtMs, signaledAtMs, exitedAtMs].sort((a, b) => a - b),
  );
  expect(exitedAtMs - signaledAtMs).toBeGreaterThanOrEqual(graceMs - 5);
});

test('a program without a handler ends at once by the signal', async () => {
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");

  await running.cancel({ graceMs: 60_000 });
  const { result, snapshot } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 143, signal: 'SIGTERM' });
  const { signaledAtMs = 0, exitedAtMs = 0 } = snapshot.times;
  expect(exitedAtMs - signaledAtMs).toBeLessThan(30_000);
});

test('a busy loop without a handler ends at graceful by the signal', async () => {
  const session = await node.session();
  const running = await session.ready("console.log('ready'); for (;;);");

  await running.cancel({ graceMs: 60_000 });

  expect((await running.end()).result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 143 });
});

test('a busy loop with a handler, which cannot run, is forced', async () => {
  const session = await node.session();
  const running = await session.ready(`
    process.on('SIGTERM', () => process.exit(3));
    console.log('ready');
    for (;;);`);

  await running.cancel({ graceMs: 100 });

  expect((await running.end()).result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
});

test('an allocation loop that V8 would unroll costs no neighbour its cell', async () => {
  await using patient = await TestDaemon.start({ forcedLimitMs: 5_000 });
  const session = await patient.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const running = await session.ready(`
    process.on('SIGTERM', () => {});
    setTimeout(() => { for (;;) new Array(1000).fill(1.5); }, 0);
    console.log('ready');`);
  // The loop is endless once the optimizing compiler has made something of it.
  await running.cancel({ graceMs: 500 });

  expect((await running.end()).result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test.each([
  ['Atomics.wait', 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);'],
  ['an allocation loop that V8 would unroll', 'for (;;) new Array(1000).fill(1.5);'],
  ['a promise loop', 'const spin = () => Promise.resolve().then(spin); spin();'],
  ['a regular expression that backtracks for ever', '/^(a+)+$/.test("a".repeat(60) + "b");'],
])('%s with a handler ends', async (_, code) => {
  const session = await node.session();
  const running = await session.ready(`process.on('SIGTERM', () => {}); console.log('ready'); ${code}`);

  await running.cancel({ graceMs: 100 });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', exitCode: 137, signal: 'SIGKILL' });
  expect(['forced', 'cell']).toContain(result.rung);
});

test('exited is told when the thread is gone: nothing is written afterwards', async () => {
  const session = await node.session();
  const directory = node.directory();
  const running = await session.ready({
    workingDirectory: directory,
    code: `
      const fs = require('node:fs');
      process.on('SIGTERM', () => {});
      fs.writeFileSync('beat', 'x');
      console.log('ready');
      for (;;) fs.appendFileSync(${JSON.stringify(join(directory, 'beat'))}, 'x');`,
  });

  await running.cancel({ graceMs: 0 });
  await running.end();
  const size = statSync(join(directory, 'beat')).size;
  await session.run('0');

  expect(size).toBeGreaterThan(0);
  expect(statSync(join(directory, 'beat')).size).toBe(size);
});

test('native code that nothing interrupts costs its cell; neighbours end cell_lost, the session goes on', async () => {
  await using usual = await TestDaemon.start({ forcedLimitMs: undefined });
  const session = await usual.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const running = await session.ready(`
    const { pbkdf2Sync } = require('node:crypto');
    process.on('SIGTERM', () => {});
    console.log('ready');
    pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');`);
  const cell = await session.cellPid();

  await running.cancel({ graceMs: GRACE_MS });
  const ended = await running.end();
  const lost = await neighbour.end();
  const next = await session.run("console.log('still here')");

  expect(ended.steps).toEqual([
    'pending',
    'running',
    'signaled.graceful',
    'signaled.forced',
    'signaled.cell',
    'exited.cell',
  ]);
  expect(ended.result).toMatchObject({ reason: 'cancelled', rung: 'cell', exitCode: 137, signal: 'SIGKILL' });
  const { signaledAtMs = 0, exitedAtMs = 0 } = ended.snapshot.times;
  expect(exitedAtMs - signaledAtMs - GRACE_MS).toSatisfy((ms: number) => ms >= 115 && ms < 10_000);
  expect(lost.steps).toEqual(['pending', 'running', 'exited']);
  expect(lost.result).toMatchObject({ reason: 'cell_lost', rung: undefined, exitCode: -1 });
  expect(isAlive(cell)).toBe(false);
  expect(next.result.reason).toBe('completed');
  expect(await session.cellPid()).not.toBe(cell);
});

test('a cell that is killed takes along what its guests detached from it', async () => {
  const session = await node.session();
  const command = uniqueSleep();
  const running = await session.submit(`
    const { spawn } = require('node:child_process');
    const { pbkdf2Sync } = require('node:crypto');
    process.on('SIGTERM', () => {});
    spawn('sh', ['-c', '${command} & wait'], { detached: true, stdio: 'ignore' }).unref();
    pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');`);
  await eventually('the detached child runs', () => processesWith(command).length > 1);

  await running.cancel({ graceMs: GRACE_MS });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'cell' });
  expect(processesWith(command)).toEqual([]);
});

test('a neighbour that is being forced itself when the cell is killed keeps its own reason', async () => {
  const session = await node.session();
  const hang = `
    const { pbkdf2Sync } = require('node:crypto');
    console.log('ready');
    pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');`;
  const first = await session.ready(hang);
  const second = await session.ready(hang);

  await Promise.all([first.cancel({ graceMs: 0 }), second.signal('SIGKILL')]);
  const ends = await Promise.all([first.end(), second.end()]);

  expect(ends.map(({ result }) => result.reason)).toEqual(['cancelled', 'signaled']);
  for (const { result } of ends) expect(result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test.each([
  ['without a handler', '', 60_000, 'graceful'],
  ['with one', "process.on('SIGTERM', () => {});", 300, 'forced'],
])(
  'a child that blocks a program %s is gone with it, and costs no neighbour its cell',
  async (_, handler, graceMs, rung) => {
    const session = await node.session();
    const command = uniqueSleep();
    const running = await session.submit(`${handler} require('node:child_process').execSync('${command}; true');`);
    await eventually('the child runs', () => processesWith(command).length > 0);

    await running.cancel({ graceMs });
    const { result } = await running.end();

    expect(result).toMatchObject({ reason: 'cancelled', rung });
    expect(processesWith(command)).toEqual([]);
  },
);

test.each([
  ['beside the program', "spawn('python3', program, { stdio: 'inherit' }); setInterval(() => {}, 1000);"],
  ['that the program waits for', "spawnSync('python3', program, { stdio: 'inherit' });"],
  [
    'that has run away with the output',
    `spawn('sh', ['-c', 'setsid python3 "$@" & exit 0', 'sh', ...program], { stdio: 'inherit' }); setInterval(() => {}, 1000);`,
  ],
])('a large child %s, which takes the kernel a while to end, costs no neighbour its cell', async (_, run) => {
  await using usual = await TestDaemon.start({ forcedLimitMs: undefined });
  const session = await usual.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const running = await session.ready(`
    const { spawn, spawnSync } = require('node:child_process');
    process.on('SIGTERM', () => {});
    const program = ['-c', 'import time\\nheld = bytearray(2 ** 30)\\nfor at in range(0, 2 ** 30, 4096): held[at] = 1\\nprint("ready", flush=True)\\ntime.sleep(600)'];
    ${run}`);

  await running.cancel({ graceMs: 0 });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('a process with thousands of descriptors costs nobody the cell in which a thread with a child is forced', async () => {
  const holding = spawn('python3', ['-c', HOLDING], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await once(holding.stdout, 'data');
    await using usual = await TestDaemon.start({ forcedLimitMs: undefined });
    const session = await usual.session();
    const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
    const running = await session.ready(`
      process.on('SIGTERM', () => {});
      require('node:child_process').spawn('sleep', ['600'], { stdio: 'inherit' }).once('spawn', () => console.log('ready'));`);

    await running.cancel({ graceMs: 0 });
    const { result } = await running.end();

    expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
    expect((await neighbour.snapshot()).state).toBe('running');
  } finally {
    holding.kill('SIGKILL');
  }
});

test('busy threads of guests that are forced together cost no neighbour its cell', async () => {
  await using usual = await TestDaemon.start({ forcedLimitMs: undefined });
  const session = await usual.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const code = `
    console.log('ready');
    new (require('node:worker_threads').Worker)('for (;;);', { eval: true });`;
  const running = await Promise.all(Array.from({ length: 10 }, () => session.ready(code)));

  await Promise.all(running.map((execution) => execution.cancel({ graceMs: 0 })));
  const ends = await Promise.all(running.map((execution) => execution.end()));

  expect(ends.map(({ result }) => result.rung)).toEqual(running.map(() => 'forced'));
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('a busy child whose memory takes long to be added up costs no neighbour its cell', async () => {
  await using usual = await TestDaemon.start({ forcedLimitMs: undefined });
  const session = await usual.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  // The pages of one small file, 64 times: each mapped one is looked at.
  const mapped = `
import mmap, os
held = os.memfd_create("held")
os.truncate(held, 2 ** 26)
maps = [mmap.mmap(held, 2 ** 26, mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(64)]
last = b"x" * 2 ** 27
print("ready", flush=True)
while True: pass`;
  const running = await session.ready(`
    process.on('SIGTERM', () => {});
    const child = require('node:child_process').spawn('python3', ['-c', ${JSON.stringify(mapped)}]);
    child.stdout.pipe(process.stdout);
    setInterval(() => {}, 1000);`);
  await eventually('it is known what all of that holds', async () => {
    const { memoryBytes } = await usual.daemon.getExecutionMetrics(session.sessionId, running.executionId);
    return memoryBytes > 2 ** 26 + 2 ** 27;
  });

  await running.cancel({ graceMs: 0 });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('children that run beside the program are gone with it', async () => {
  const session = await node.session();
  const command = uniqueSleep();
  const [name, seconds] = command.split(' ');
  const running = await session.ready(`
    const { spawn } = require('node:child_process');
    const child = spawn('${name}', ['${seconds}']);
    const detached = spawn('sh', ['-c', '${command} & wait'], { detached: true, stdio: 'ignore' });
    detached.unref();
    child.once('spawn', () => console.log('ready'));`);

  await running.cancel({ graceMs: 0 });
  const { result } = await running.end();

  expect(result.reason).toBe('cancelled');
  expect(processesWith(command)).toEqual([]);
});

test('the run limit stops a program as a cancellation would, with reason timed_out', async () => {
  const session = await node.session();

  const run = (code: string, graceMs: number) =>
    inTime(
      400,
      (timeoutMs) => session.run({ code, timeoutMs, graceMs }),
      ({ stdout }) => stdout.includes('ready'),
    );
  const loop = await run("process.on('SIGTERM', () => {}); console.log('ready'); for (;;);", 100);
  const clean = await run(
    "process.on('SIGTERM', () => process.exit(0)); console.log('ready'); setInterval(() => {}, 1000);",
    60_000,
  );

  expect(loop.result).toMatchObject({ reason: 'timed_out', rung: 'forced', exitCode: 137 });
  expect(clean.result).toMatchObject({ reason: 'timed_out', rung: 'graceful', exitCode: 0 });
  const { startedAtMs = 0, signaledAtMs = 0 } = loop.snapshot.times;
  expect(signaledAtMs - startedAtMs).toBeGreaterThanOrEqual(350);
});

test('an execution that ended in time is not timed out later', async () => {
  const session = await node.session();

  const { result, steps } = await session.run({ code: '0', timeoutMs: 50_000 });

  expect(steps).toEqual(['pending', 'running', 'exited']);
  expect(result.reason).toBe('completed');
});

test('a stop that gives no grace forces at once', async () => {
  const session = await node.session();
  const running = await session.ready(
    "process.on('SIGTERM', () => console.log('asked')); setInterval(() => {}, 1000); console.log('ready');",
  );

  await running.cancel({ graceMs: 0 });
  const { steps, stdout } = await running.end();

  expect(steps).toEqual(['pending', 'running', 'signaled.forced', 'exited.forced']);
  expect(stdout).toBe('ready\n');
});

test('everything written before a forced end is there', async () => {
  const session = await node.session();
  const running = await session.submit(`
    process.on('SIGTERM', () => {});
    for (let line = 0; line < 20000; line += 1) console.log('line ' + line);
    console.log('last');
    for (;;);`);
  await running.printed('last\n');

  await running.cancel({ graceMs: 0 });
  const lines = (await running.end()).stdout.trimEnd().split('\n');

  expect(lines).toHaveLength(20_001);
  expect(lines[19_999]).toBe('line 19999');
});

test('a program cannot end its cell: process.exit, process.abort and process.kill are its own', async () => {
  const session = await node.session();
  const neighbour = await session.ready("setInterval(() => {}, 1000); console.log('ready');");

  const exit = await session.run('process.exit(9)');
  const thrown = await session.run("throw new Error('boom')");
  const killed = await session.run("process.kill(process.pid, 'SIGKILL'); setInterval(() => {}, 1000);");
  const aborted = await session.run('process.abort()');
  const rejected = await session.run("Promise.reject(new Error('late'))");

  expect(exit.result).toMatchObject({ reason: 'failed', exitCode: 9 });
  expect(thrown.result).toMatchObject({ reason: 'failed', exitCode: 1 });
  expect(thrown.stderr).toContain('boom');
  expect(killed.result).toMatchObject({ reason: 'signaled', exitCode: 137, signal: 'SIGKILL' });
  expect(aborted.result).toMatchObject({ reason: 'signaled', exitCode: 134, signal: 'SIGABRT' });
  expect(rejected.result).toMatchObject({ reason: 'failed', exitCode: 1 });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('a program cannot close what its cell has open', async () => {
  const session = await node.session();

  const { stdout } = await session.run(`
    const fs = require('node:fs');
    const open = () => [0, 1, 2].map((fd) => fs.readlinkSync('/proc/self/fd/' + fd)).join();
    const before = open();
    for (const fd of [0, 1, 2]) fs.closeSync(fd);
    const between = open();
    let sockets = 0;
    for (const fd of [0, 1, 2])
      try { new (require('node:net').Socket)({ fd }).destroy(); sockets += 1; } catch {}
    fs.close(0, () => fs.close(1, () => fs.close(2, () => console.log(sockets, between === before, open() === before))));`);

  expect(stdout).toBe('0 true true\n');
});

test('nothing of the environment of the daemon is in its cells', async () => {
  const session = await node.session();

  const { stdout } = await session.run({
    code: "console.log(JSON.stringify(process.env), require('node:fs').readFileSync('/proc/self/environ', 'utf8'))",
    env: { ONLY: 'this' },
  });

  expect(process.env).toHaveProperty('PATH');
  expect(stdout).toBe('{"ONLY":"this"} \n');
});

test('a program has no way to call native code', async () => {
  const session = await node.session();

  const { stdout } = await session.run(`
    console.log(process.getBuiltinModule('node:ffi'));
    import('node:ffi').catch(({ code }) => console.log(code));`);

  expect(stdout).toBe('undefined\nERR_UNKNOWN_BUILTIN_MODULE\n');
});

test.each(['thread', 'process'] as const)(
  'nor has any thread that it starts in a %s, whatever flags that is given',
  async (isolation) => {
    const session = await node.session();

    const { stdout } = await session.run({
      isolation,
      code: `
        const { once } = require('node:events');
        const { isMainThread, Worker, workerData } = require('node:worker_threads');
        const start = (options) => once(new Worker(__filename, options), 'exit');
        (async () => {
          if (!isMainThread) console.log(workerData, typeof process.getBuiltinModule('node:ffi'), process.execArgv.join());
          if (workerData === 'outer') await start({ workerData: 'inner', execArgv: ['--experimental-ffi'] });
          if (!isMainThread) return;
          await start({ workerData: 'plain' });
          await start({ workerData: 'flag', execArgv: ['--experimental-ffi'] });
          await start({ workerData: 'same flag', execArgv: ['--no-experimental-ffi'] });
          await start({ workerData: 'another spelling', execArgv: ['--experimental_ffi=true'] });
          await start({ workerData: 'end of flags', execArgv: ['--'] });
          await start({ workerData: 'no flag', execArgv: ['x'] });
          await start({ workerData: 'no flag behind one', execArgv: ['--no-warnings', 'x'] });
          await start({ workerData: 'flag before none', execArgv: ['--experimental-ffi', 'x'] });
          await start({ workerData: 'variable', env: { NODE_OPTIONS: '--experimental-ffi' } });
          await start({ workerData: 'empty variable', env: { NODE_OPTIONS: '' } });
          await start({ workerData: 'outer' });
        })();`,
    });

    expect(stdout.split('\n')).toEqual([
      'plain undefined ',
      'flag undefined ',
      'same flag undefined ',
      'another spelling undefined ',
      'end of flags undefined ',
      'no flag undefined ',
      'no flag behind one undefined --no-warnings',
      'flag before none undefined ',
      'variable undefined ',
      'empty variable undefined ',
      'outer undefined ',
      'inner undefined ',
      '',
    ]);
  },
);

test.each([
  ['thread', 'its environment', '{ env: { NODE_OPTIONS } }'],
  ['thread', 'that of its program', '{}'],
  ['process', 'its environment', '{ env: { NODE_OPTIONS } }'],
  ['process', 'that of its program', '{}'],
] as const)(
  'nor has one of a %s that starts another before its first line, by what is in %s',
  async (isolation, _, options) => {
    const session = await node.session();
    const directory = node.directory();
    const preload = `
    const { isMainThread, Worker, workerData } = require('node:worker_threads');
    if (workerData !== 'inner') {
      const code = "console.log('inner', typeof process.getBuiltinModule('node:ffi'))";
      new Worker(code, { eval: true, workerData: 'inner', execArgv: ['--experimental-ffi'], env: {} });
    }`;
    writeFileSync(join(directory, 'preload.cjs'), preload);
    const NODE_OPTIONS = `--require ${join(directory, 'preload.cjs')}`;

    const { stdout } = await session.run({
      isolation,
      env: { NODE_OPTIONS },
      code: `
      const { Worker } = require('node:worker_threads');
      const { NODE_OPTIONS } = process.env;
      new Worker('console.log(process.env.NODE_OPTIONS, process.execArgv.length)', { eval: true, ...${options} });`,
    });

    expect(stdout.split('\n').sort()).toEqual(['', `${NODE_OPTIONS} 0`, 'inner undefined']);
  },
);

test('a report of a thread that a program starts does not look up names either', async () => {
  const session = await node.session();

  const { stdout } = await session.run(`
    const { Worker } = require('node:worker_threads');
    new Worker('console.log(process.report.excludeNetwork, process.report.excludeEnv)', { eval: true });`);

  expect(stdout).toBe('true true\n');
});

test('a private working directory is gone after the end, a given one stays', async () => {
  const session = await node.session();
  const directory = node.directory();
  const code = "require('node:fs').writeFileSync('made', 'here'); console.log(process.cwd());";

  const own = await session.run(code);
  const given = await session.run({ code, workingDirectory: directory });
  await session.close();

  expect(existsSync(own.stdout.trim())).toBe(false);
  expect(given.stdout.trim()).toBe(directory);
  expect(readFileSync(join(directory, 'made'), 'utf8')).toBe('here');
});

test.each([
  ['javascript', 'js', 'thread', `const a = require('./main.js'); console.log(a); throw new Error('here')`],
  ['javascript', 'js', 'process', `import a from './main.js'; console.log(a, await 1); throw new Error('here')`],
  ['typescript', 'ts', 'thread', `const a: string = require('./main.ts'); console.log(a); throw new Error('here')`],
  ['typescript', 'ts', 'process', `import a from './main.ts'; console.log(a as string); throw new Error('here')`],
] as const)(
  '%s without a name is not taken for main.%s in its directory, in a %s',
  async (language, extension, isolation, code) => {
    const session = await node.session();
    const workingDirectory = node.directory();
    writeFileSync(join(workingDirectory, `main.${extension}`), 'module.exports = "neighbour"');

    const { stdout, stderr } = await session.run({ language, code, isolation, workingDirectory });

    expect(stdout).toMatch(/^neighbour( 1)?\n$/);
    expect(stderr).toMatch(new RegExp(`<main.${extension}>:1|%3Cmain.${extension}%3E:1`));
    expect(stderr).toContain("throw new Error('here')");
  },
);
