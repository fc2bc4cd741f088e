import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { createThreadPool } from '../../src/cell/thread-context.ts';
import { isAlive } from '../../src/processes.ts';
import { CHILD_SLOTS, SHARED } from '../../workers/javascript/shared.ts';
import { Harness, WORKER } from './javascript-harness.ts';

const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

const bytes = (count: number) => `Buffer.alloc(${count}, 'a')`;

test.each([
  ['process.stdout.write', `process.stdout.write(${bytes(600)}); process.stderr.write(${bytes(600)})`],
  ['the console', 'console.log("a".repeat(599)); console.error("a".repeat(599))'],
  ['process._rawDebug', `process._rawDebug('a'.repeat(599)); process._rawDebug('%s', 'a'.repeat(599))`],
  ['fs.writeSync', `fs.writeSync(1, ${bytes(600)}); fs.writeSync(2, ${bytes(600)})`],
  ['fs.writevSync', `fs.writevSync(1, [${bytes(300)}, ${bytes(900)}])`],
  ['fs.write', `fs.write(1, ${bytes(600)}, () => fs.write(1, 'a'.repeat(600), () => {}))`],
  ['fs.writev', `fs.writev(1, [${bytes(600)}, ${bytes(600)}], () => {})`],
  ['fs.writeFileSync', `fs.writeFileSync(1, ${bytes(600)}); fs.writeFileSync('/dev/stderr', 'a'.repeat(600))`],
  ['fs.appendFile', `fs.appendFile('/dev/stdout', 'YWFh'.repeat(400), 'base64', () => {})`],
  ['fs.promises.writeFile', `fs.promises.writeFile('/dev/stdout', ${bytes(1200)})`],
  [
    'a stream on descriptor 1',
    `const s = fs.createWriteStream(null, { fd: 1 }); s.write(${bytes(600)}); s.end(${bytes(600)})`,
  ],
  ['a stream to /dev/stdout', `fs.createWriteStream('/dev/stdout').end(${bytes(1200)})`],
  [
    'a descriptor of /dev/stdout',
    `const fd = fs.openSync('/dev/stdout', 'w'); fs.writeSync(fd, ${bytes(1200)}); fs.closeSync(fd)`,
  ],
  ['a file handle', `fs.promises.open('/dev/stdout', 'w').then((file) => file.writeFile(${bytes(1200)}))`],
  ['an iterable', `fs.promises.writeFile('/dev/stdout', ['a'.repeat(600), 'a'.repeat(600)])`],
  ['a child that it waits for', `child.execSync('printf %01200d 0', { stdio: 'inherit' })`],
  ['a child', `child.spawn('printf', ['%01200d', '0'], { stdio: ['ignore', process.stdout, 2] })`],
  ['the standard error of execSync', `child.execSync('printf %01200d 0 >&2')`],
  [
    'a thread',
    `new Worker('process.stdout.write("a".repeat(600)); require("fs").writeSync(2, "a".repeat(600))', { eval: true })`,
  ],
])('output by %s counts', async (_, code) => {
  const { events, usage, out, err, exitCode } = await shared.run(
    `const fs = require('fs'); const child = require('child_process'); const { Worker } = require('worker_threads'); ${code}`,
    { limits: { outputBytes: 1000 } },
  );

  expect({ exitCode, events }).toEqual({ exitCode: 0, events: ['started', 'outputExceeded', 'exited'] });
  expect(out.length + err.length).toBe(1000);
  expect(usage?.droppedBytes).toBe(200);
});

test('output within the limit is all there, and output without one has none', async () => {
  const code = `process.stdout.write(${bytes(1e8)}); require('fs').writeSync(2, ${bytes(1000)})`;

  const within = shared.start(code, { limits: { outputBytes: 1e8 + 1000 } });
  const without = shared.start(code);

  for (const running of [within, without]) {
    expect(await running.result).toMatchObject({ events: ['started', 'exited'], usage: { droppedBytes: 0 } });
    expect(statSync(join(running.directory, 'out/stdout')).size).toBe(1e8);
  }
});

test('a file function never makes more of standard output than may be', async () => {
  const running = shared.start(
    `const fs = require('fs'); for (const file of [1, '/dev/stdout']) {
      fs.writeFileSync(file, ${bytes(600)}); fs.appendFileSync(file, ${bytes(600)}); fs.appendFileSync('sizes', fs.fstatSync(1).size + ' ') }`,
    { limits: { outputBytes: 1000 } },
  );
  await running.result;

  expect(readFileSync(join(running.cwd, 'sizes'), 'utf8')).toBe('1000 1000 ');
});

test('of one huge write the head is kept', async () => {
  const { out, usage } = await shared.run(`process.stdout.write('head' + 'a'.repeat(1e8))`, {
    limits: { outputBytes: 1000 },
  });

  expect(out).toBe(`head${'a'.repeat(996)}`);
  expect(usage?.droppedBytes).toBe(1e8 - 996);
});

test.each([
  ['a busy loop', `for (;;) require('fs').writeSync(1, ${bytes(1000)})`],
  [
    'a thread in a busy loop',
    `new (require('worker_threads').Worker)('for (;;) require("fs").writeSync(1, "a")', { eval: true })`,
  ],
  ['a child that it waits for', `require('child_process').execSync('yes', { stdio: 'inherit' })`],
])('too much output is told at once, and once: %s', async (_, code) => {
  const running = shared.start(code, { limits: { outputBytes: 10_000 } });

  await running.outputExceeded;
  running.guest.kill();

  const { events, usage, out } = await running.result;
  expect(events).toEqual(['started', 'outputExceeded', 'exited']);
  expect(out).toHaveLength(10_000);
  expect(usage?.droppedBytes).toBeGreaterThan(0);
});

test('what a child wrote too much is cut from the file it wrote to', async () => {
  const { out, err } = await shared.run(
    `const { execSync } = require('child_process'); console.error('first'); execSync('printf %02000d 0', { stdio: 'inherit' })`,
    { limits: { outputBytes: 1000 } },
  );

  expect(err).toBe('first\n');
  expect(out).toHaveLength(994);
});

test('every mark lies within what was kept', async () => {
  const running = shared.start(
    `for (let i = 0; i < 200; i++) { process.stdout.write('a'.repeat(20)); process.stderr.write('b'.repeat(20)) }`,
    { limits: { outputBytes: 1010 } },
  );
  const { out, err } = await running.result;

  const marks = new Float64Array(Uint8Array.from(readFileSync(join(running.directory, 'out/marks'))).buffer);
  const sizes = [0, out.length, err.length];
  expect(sizes).toEqual([0, 510, 500]);
  expect(marks.length / 3).toBe(51);
  for (let at = 0; at < marks.length; at += 3) {
    expect(marks[at + 2]).toBeLessThan(sizes[marks[at + 1] as number] as number);
  }
});

test('a start with the heap limit of the spares takes one, any other boots its own', async () => {
  const pool = createThreadPool({ workerUrl: WORKER, heapLimitMb: 64 });
  try {
    pool.keepWarm(1);
    await vi.waitFor(() => expect(pool.bootedCount).toBe(1), 30_000);

    expect(pool.take(32).state).toBe('booting');
    expect(pool.take(128).state).toBe('booting');
    expect(pool.bootedCount).toBe(1);
    expect(pool.take(64).state).toBe('booted');
  } finally {
    await pool.close();
  }
});

test('a heap limit that starts ask for again has a spare from then on', async () => {
  const pool = createThreadPool({ workerUrl: WORKER, heapLimitMb: 64 });
  const spare = () => vi.waitFor(() => expect([pool.spareCount, pool.bootedCount]).toEqual([1, 1]), 30_000);
  const start = async (heapLimitMb: number) => {
    const { state, heapLimitMb: limit } = pool.take(heapLimitMb);
    expect(limit).toBe(heapLimitMb);
    // Its replacement boots a moment later.
    await new Promise((resolve) => setTimeout(resolve, 50));
    await spare();
    return state;
  };
  try {
    pool.keepWarm(1);
    await spare();

    expect(await start(32)).toBe('booting');
    expect(await start(32)).toBe('booting');
    expect(await start(32)).toBe('booted');
    expect(await start(128)).toBe('booting');
    expect(await start(32)).toBe('booted');
  } finally {
    await pool.close();
  }
});

test.each([
  [undefined, { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 8 }],
  [64, { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 8 }],
  [8, { maxOldGenerationSizeMb: 8, maxYoungGenerationSizeMb: 2 }],
  [1, { maxOldGenerationSizeMb: 8, maxYoungGenerationSizeMb: 2 }],
  [100.5, { maxOldGenerationSizeMb: 101, maxYoungGenerationSizeMb: 13 }],
  [1024, { maxOldGenerationSizeMb: 1024, maxYoungGenerationSizeMb: 96 }],
])('a memory limit of %s MiB is the heap limit of the thread', async (limitMb, expected) => {
  await using harness = new Harness({ heapLimitMb: 64 });

  const { out } = await harness.run('console.log(JSON.stringify(require("worker_threads").resourceLimits))', {
    limits: limitMb === undefined ? {} : { memoryBytes: limitMb * 2 ** 20 },
  });

  expect(JSON.parse(out)).toMatchObject(expected);
});

test('a program meets its own heap limit, lower or higher than the spares have', async () => {
  await using harness = new Harness({ heapLimitMb: 64 });
  const code = 'const all = []; for (let i = 0; i < 1e6; i++) all.push([i]); console.log("enough")';
  const grow = 'const all = []; setInterval(() => { for (let i = 0; i < 20000; i++) all.push({ i, s: [i] }) }, 0)';

  expect(await harness.run(grow, { limits: { memoryBytes: 24 * 2 ** 20 } })).toMatchObject({ cause: 'heap_limit' });
  expect(await harness.run(code, { limits: { memoryBytes: 256 * 2 ** 20 } })).toMatchObject({ out: 'enough\n' });
});

test('more child processes than the limit fail to start as when the kernel refuses', async () => {
  const code = `const { spawn, spawnSync, execSync, execFileSync } = require('child_process');
    const sleeper = spawn('sleep', ['1000']);
    spawn('sleep', ['1001']).on('error', (error) => {
      console.log(error.code, error.errno, error.syscall, error.path);
      const result = spawnSync('true');
      console.log(result.error.code, result.error.syscall, result.status, result.pid);
      for (const run of [() => execSync('true'), () => execFileSync('true')]) try { run() } catch (error) { console.log(error.code) }
      sleeper.on('exit', () => { console.log(spawnSync('true').status); spawn('true').on('exit', (code) => console.log(code)) }).kill();
    });`;

  const { out, err } = await shared.run(code, { limits: { processes: 2 } });

  expect({ out, err }).toEqual({
    out: 'EAGAIN -11 spawn sleep sleep\nEAGAIN spawnSync true null 0\nEAGAIN\nEAGAIN\n0\n0\n',
    err: '',
  });
});

test('a program that may be only itself starts no process, one without a limit any', async () => {
  const code = 'console.log(require("child_process").spawnSync("true").error?.code)';

  expect((await shared.run(code, { limits: { processes: 1 } })).out).toBe('EAGAIN\n');
  expect((await shared.run(code)).out).toBe('undefined\n');
});

test.each([
  ['without a limit', {}],
  ['with a higher limit', { processes: 2 * CHILD_SLOTS }],
])('a program %s has no more child processes than are ended with it', async (_, limits) => {
  const code = `const { Worker, getEnvironmentData } = require('worker_threads');
    // As if there were so many: none has such an id. While a thread is made, what it gets is to be had.
    const fill = () => getEnvironmentData('elide.program').shared.fill(-1, ${SHARED.children}, ${SHARED.children + CHILD_SLOTS});
    new Worker('', { eval: true, workerData: { get look() { fill() } } });
    const child = require('child_process').spawn('sleep', ['5']);
    child.on('error', ({ code }) => process.exit(console.log(code))).on('spawn', () => process.exit(console.log('spawn')));`;

  expect((await shared.run(code, { limits })).out).toBe('EAGAIN\n');
});

test.each([
  ['has ended before it', "require('child_process').spawn('true'); process.exit()", ''],
  [
    'was ended while it waited for it',
    "require('child_process').spawnSync('sh', ['-c', 'echo $$ > pid; exec sleep 1000'])",
    `const end = () => {
      const pid = require('fs').readFileSync('pid', { flag: 'a+', encoding: 'latin1' });
      if (!pid.endsWith('\\n')) return setTimeout(end, 5);
      worker.terminate();
      process.kill(Number(pid));
    };
    end();`,
  ],
])(
  'a child process counts no longer once it has ended, also where the thread that started it %s',
  async (_, thread, end) => {
    const code = `const { Worker } = require('worker_threads');
    const worker = new Worker(${JSON.stringify(thread)}, { eval: true });
    let tries = 0;
    const start = () => require('child_process').spawn('true')
      .on('error', ({ code }) => ((tries += 1) === 200 ? console.log(code) : setTimeout(start, 5)))
      .on('exit', (code) => console.log('exit', code));
    worker.on('exit', start);
    ${end}`;

    expect((await shared.run(code, { limits: { processes: 2 } })).out).toBe('exit 0\n');
  },
);

const TREE = `for (const name of ['SIGTERM', 'SIGUSR1']) process.on(name, () => console.log('program', name));
  require('child_process').spawn('sh', ['-c', 'trap "echo child" TERM; trap "echo user" USR1; echo ready; while :; do sleep 0.01; done'],
    { stdio: 'inherit' })`;

test.each([
  ['the call says so', true, false],
  ['the request says so', false, true],
])('a signal goes to the child processes too when %s', async (_, tree, signalTree) => {
  const running = shared.start(TREE, { signalTree });
  await running.printed('ready');

  running.guest.signal('SIGTERM', tree);

  await running.printed('program');
  await running.printed('child');
  running.guest.kill();
});

test('a signal is for the program alone when nobody says otherwise', async () => {
  const running = shared.start(TREE);
  await running.printed('ready');

  running.guest.signal('SIGUSR1', false);
  await running.printed('program SIGUSR1');
  running.guest.signal('SIGTERM', true);
  await running.printed('child');

  // A shell with both signals pending says so of SIGUSR1 first.
  expect(running.out()).not.toContain('user');
  running.guest.kill();
});

test('a signal to the tree that ends the program has reached its processes first', async () => {
  const running = shared.start(`console.log(
    require('child_process').spawn('sh', ['-c', 'sleep 1000 & echo $! > below; echo ready; wait'], { stdio: 'inherit' }).pid)`);
  await running.printed('ready');
  const pids = [parseInt(running.out(), 10), Number(readFileSync(join(running.cwd, 'below'), 'utf8'))];

  running.guest.signal('SIGTERM', true);

  expect(await running.result).toMatchObject({ signal: 'SIGTERM' });
  await vi.waitFor(() => expect(pids.map(isAlive)).toEqual([false, false]), 30_000);
});

test('a notification reaches only a program that listens for it', async () => {
  const running = shared.start(
    'console.log("ready"); process.on("SIGUSR2", () => { console.log("heard"); process.exit() }); setInterval(() => {}, 1000)',
  );
  await running.printed('ready');

  expect(running.guest.notify('SIGUSR1')).toBe(false);
  expect(running.guest.notify('SIGKILL')).toBe(false);
  await vi.waitFor(() => expect(running.guest.notify('SIGUSR2')).toBe(true), 30_000);

  expect(await running.result).toMatchObject({ exitCode: 0, out: 'ready\nheard\n' });
  expect(running.guest.notify('SIGUSR2')).toBe(false);
});
