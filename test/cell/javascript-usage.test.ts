import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, expect, test, vi } from 'vitest';
import type { GuestUsage } from '../../src/cell/engine.ts';
import { Harness, type Running } from './javascript-harness.ts';

const MB = 1e6;
const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

const cpuMs = ({ userSeconds, systemSeconds }: GuestUsage) => (userSeconds + systemSeconds) * 1000;

/** Uses 300 ms of CPU time, and says how much exactly. */
const BURN = `(() => {
  const spent = () => { const { user, system } = process.threadCpuUsage(); return (user + system) / 1000 };
  const start = spent();
  while (spent() - start < 300) for (let i = 0; i < 1e5; i++);
  require('fs').writeSync(1, 'burnt ' + (spent() - start) + ' of ' + spent() + '\\n');
})()`;

function expectBurnt(usage: GuestUsage | undefined, out: string): void {
  const burntMs = Number(/burnt (\S+)/.exec(out)?.[1]);
  expect(cpuMs(usage as GuestUsage) / burntMs).toBeGreaterThan(0.95);
  // A start and an end are in it too.
  expect(cpuMs(usage as GuestUsage) - burntMs).toBeLessThan(burntMs / 2);
}

test.each([
  ['at its end', `${BURN}`],
  ['when it exits', `${BURN}; process.exit(3)`],
  ['when it fails', `${BURN}; throw new Error('x')`],
  ['when it passes by its exit event', `${BURN}; process.reallyExit(1)`],
  ['when it ends itself by a signal', `${BURN}; process.abort()`],
  ['when its exit listener burns it', `process.on('exit', () => ${BURN})`],
  [
    'when it removes all listeners',
    `process.removeAllListeners('exit'); process.listeners('exit').length = 0; ${BURN}`,
  ],
])('the CPU time of a program is told %s', async (_, code) => {
  const { usage, out } = await shared.run(code);

  expectBurnt(usage, out);
});

test('the CPU time of a program is told while it runs, and when it is killed', async () => {
  const running = shared.start(`${BURN}; Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)`);
  await running.printed('burnt');

  expectBurnt(await running.guest.usage(), running.out());

  running.guest.kill();
  expectBurnt((await running.result).usage, running.out());
});

test('a program that was never measured is measured when it is killed', async () => {
  const running = shared.start(`${BURN}; Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)`);
  await running.printed('burnt');

  running.guest.kill();

  expectBurnt((await running.result).usage, running.out());
});

test.each([
  [
    'ends by itself',
    `new Worker(burn, { eval: true }).on('exit', () => { console.log('done'); setInterval(() => {}, 1000) })`,
  ],
  ['runs on', `new Worker(burn + '; console.log("done"); setInterval(() => {}, 1000)', { eval: true })`],
  [
    'is made by a way round',
    `new (Worker.prototype.constructor)(burn + '; console.log("done"); setInterval(() => {}, 1000)', { eval: true })`,
  ],
])('a thread of the program that %s counts', async (_, code) => {
  const running = shared.start(
    `const { Worker } = require('worker_threads'); const burn = ${JSON.stringify(BURN)}; ${code}`,
  );
  await running.printed('done');

  const usage = await running.guest.usage();

  // The boot of that thread is the program's doing.
  expect(cpuMs(usage)).toBeGreaterThan(285);
  expect(cpuMs(usage)).toBeLessThan(580);
  running.guest.kill();
  expect(cpuMs((await running.result).usage as GuestUsage)).toBeGreaterThanOrEqual(cpuMs(usage));
});

test('a program has no more threads than can be counted', async () => {
  const { out } = await shared.run(`const { Worker } = require('worker_threads');
    let count = 0;
    try { for (; count < 100; count += 1) new Worker('', { eval: true }) } catch ({ code }) { console.log(count, code) }
    process.exit()`);

  expect(out).toBe('63 ERR_WORKER_INIT_FAILED\n');
});

/** Starts half of the threads that a program may have. */
const STARTS = `const { Worker, parentPort } = require('worker_threads');
  for (let count = 0; count < 32; count += 1) new Worker('setInterval(() => {}, 1e6)', { eval: true });`;

test.each([
  ['that end by themselves', 2, `${STARTS} process.exit()`, "await once(worker, 'exit')"],
  ['that it ends', 2, `${STARTS} parentPort.postMessage(0)`, "await once(worker, 'message'); await worker.terminate()"],
  ['that it no longer listens to', 70, '', 'worker.removeAllListeners(); await worker.terminate()'],
])('threads of a program %s make room for others, with those that they have started', async (_, rounds, code, end) => {
  const { out, err } =
    await shared.run(`const { once } = require('events'); const { Worker } = require('worker_threads');
    (async () => {
      for (let round = 0; round < ${rounds}; round += 1) {
        const worker = new Worker(${JSON.stringify(code)}, { eval: true });
        ${end};
      }
      console.log('done');
    })();`);

  expect({ out, err }).toEqual({ out: 'done\n', err: '' });
});

test('a thread of the program counts while the one that started it sleeps', async () => {
  const go = join(mkdtempSync(join(tmpdir(), 'usage-')), 'go');
  const nested = `const timer = setInterval(() => {
    if (!require('fs').existsSync(${JSON.stringify(go)})) return;
    clearInterval(timer); ${BURN}; setInterval(() => {}, 1e6);
  }, 20); require('fs').writeSync(1, 'waits');`;
  const running = shared.start(`const { Worker } = require('worker_threads');
    new Worker(${JSON.stringify(nested)}, { eval: true }); setInterval(() => {}, 1e6)`);
  await running.printed('waits');
  let before = await running.guest.usage();
  for (let round = 0; round < 5; round += 1) before = await running.guest.usage();

  writeFileSync(go, '');
  await running.printed('burnt');

  expect(cpuMs(await running.guest.usage()) - cpuMs(before)).toBeGreaterThan(285);
  running.guest.kill();
  rmSync(dirname(go), { recursive: true });
});

test('a thread that the program ends by force keeps counting as it was last seen', async () => {
  const running = shared.start(`const { Worker } = require('worker_threads');
    const worker = new Worker(${JSON.stringify(`${BURN}; for (;;);`)}, { eval: true });
    process.on('SIGUSR2', () => worker.terminate().then(() => console.log('gone'))); setInterval(() => {}, 1000)`);
  await running.printed('burnt');
  const seen = cpuMs(await running.guest.usage());
  expect(seen).toBeGreaterThan(285);

  running.guest.notify('SIGUSR2');
  await running.printed('gone');

  expect(cpuMs(await running.guest.usage())).toBeGreaterThanOrEqual(seen);
});

/** A child that burns 300 ms: its program says `burnt`. */
const CHILD = `process.execPath, ['-e', ${JSON.stringify(BURN.replace('process.threadCpuUsage()', 'process.cpuUsage()'))}], { stdio: 'inherit' }`;

/** What its threads share with each other, and with its cell, in `shares`: it is to be had while a thread is made. */
const SHARES = `let shares;
  { const { Worker, getEnvironmentData } = require('worker_threads');
    new Worker('', { eval: true, workerData: { get look() { shares = getEnvironmentData('elide.program') } } }); }`;

test.each([
  ['waits for', `execFileSync(${CHILD})`],
  ['starts', `spawn(${CHILD})`],
])('a child process that a program %s counts after its end', async (_, code) => {
  const { usage, out } = await shared.run(`const { spawn, execFileSync } = require('child_process'); ${code}`);

  // Node's own start is the child's as well.
  const [burntMs, spentMs] = (/burnt (\S+) of (\S+)/.exec(out) ?? []).slice(1).map(Number) as [number, number];
  expect(cpuMs(usage as GuestUsage) / spentMs).toBeGreaterThan(0.95);
  expect(cpuMs(usage as GuestUsage) - spentMs).toBeLessThan(burntMs * 0.75);
});

test('a child process counts while it runs, and when it ends with its program', async () => {
  const running = shared.start(
    `require('child_process').execFileSync('sh', ['-c', 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo ready; sleep 1000'], { stdio: 'inherit' })`,
  );
  await running.printed('ready');

  const usage = await running.guest.usage();

  expect(usage).toMatchObject({ processes: 2, threads: 3 });
  expect(cpuMs(usage)).toBeGreaterThan(50);
  running.guest.kill();
  const { usage: final } = await running.result;
  expect(cpuMs(final as GuestUsage)).toBeGreaterThanOrEqual(cpuMs(usage));
  expect(final).toMatchObject({ processes: 0, threads: 0 });
});

test.each([
  ['has ended before it', "spawn('python3', burn); process.exit()", 'start()'],
  ['was ended while it waited for it', "spawnSync('python3', burn)", 'worker.on("exit", start).terminate()'],
])(
  'a child process counts once, also when its program forgets it as the thread that started it %s',
  async (_, thread, then) => {
    const burn = `const { spawn, spawnSync } = require('child_process');
    const burn = ['-c', 'import time\\nopen("burns", "w")\\nwhile time.process_time() < 0.5: pass'];`;
    const code = `const { Worker } = require('worker_threads');
    const worker = new Worker(${JSON.stringify(burn + thread)}, { eval: true });
    const start = () => require('child_process').spawn('true').on('error', () => setTimeout(start, 100));
    const look = () => { if (require('fs').existsSync('burns')) ${then}; else setTimeout(look, 5); };
    look();`;

    const { usage } = await shared.run(code, { limits: { processes: 2 } });

    expect(cpuMs(usage as GuestUsage)).toBeGreaterThanOrEqual(500);
    expect(cpuMs(usage as GuestUsage)).toBeLessThan(950);
  },
);

test('a child process that a killed program waited for is not charged to its neighbour', async () => {
  const killed = shared.start(
    `require('child_process').execSync('echo ready; while :; do :; done', { stdio: 'inherit' })`,
  );
  await killed.printed('ready');
  await vi.waitFor(async () => expect(cpuMs(await killed.guest.usage())).toBeGreaterThan(1000), 50_000);
  killed.guest.kill();
  const { usage: theirs } = await killed.result;

  const { usage } = await shared.run(`require('child_process').execSync('true')`);

  expect(cpuMs(theirs as GuestUsage)).toBeGreaterThan(1000);
  expect(cpuMs(usage as GuestUsage)).toBeLessThan(300);
});

test('a child process counts, whatever another program made of the account', async () => {
  await using harness = new Harness();
  const { out: made } = await harness.run(`${SHARES} console.log(shares.reaped.fill(10n ** 18n).length)`);
  expect(made).toBe('2\n');

  const { usage, out } = await harness.run(`require('child_process').execFileSync(${CHILD})`);

  const spentMs = Number(/ of (\S+)/.exec(out)?.[1]);
  expect(cpuMs(usage as GuestUsage) / spentMs).toBeGreaterThan(0.95);
  expect(cpuMs(usage as GuestUsage)).toBeLessThan(5000);
});

test('what threads of a program share is not lying about in it', async () => {
  const { out } = await shared.run(`const { Worker, getEnvironmentData } = require('worker_threads');
    new Worker('', { eval: true });
    try { new Worker('', { eval: true, workerData: () => {} }) } catch {}
    console.log(getEnvironmentData('elide.program'))`);

  expect(out).toBe('undefined\n');
});

test.each([
  ['itself', "execSync('true'); console.log('reaped')"],
  ['in a thread', `new Worker("require('child_process').execSync('true'); console.log('reaped')", { eval: true })`],
])(
  'a program that waits for a child %s is charged with no more than that, whatever another made of the account',
  async (_, code) => {
    await using harness = new Harness();
    const running =
      harness.start(`const { execSync } = require('child_process'); const { Worker } = require('worker_threads');
    process.on('SIGUSR2', () => { ${code} }); setInterval(() => {}, 1e6); console.log('ready')`);
    await running.printed('ready');
    const { out } = await harness.run(`${SHARES} console.log(shares.reaped.fill(-(10n ** 12n)).length)`);
    expect(out).toBe('2\n');

    running.guest.notify('SIGUSR2');
    await running.printed('reaped');

    expect(cpuMs(await running.guest.usage())).toBeLessThan(5000);
    running.guest.kill();
    expect(cpuMs((await running.result).usage as GuestUsage)).toBeLessThan(5000);
  },
);

/** A WebAssembly module that holds 1526 pages, fills 100 MB of them with ones when it starts, and exports nothing. */
const HIDDEN = `new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0,
  5, 4, 1, 0, 246, 11, 8, 1, 0, 10, 16, 1, 14, 0, 65, 0, 65, 1, 65, 128, 128, 216, 47, 252, 11, 0, 11])))`;

async function held(running: Running): Promise<GuestUsage> {
  await running.printed('ready');
  // A thread of a busy machine may be late with its answer.
  let usage = await running.guest.usage();
  for (let round = 0; round < 200 && usage.heapBytes + usage.externalBytes + usage.wasmBytes < 90 * MB; round += 1) {
    usage = await running.guest.usage();
  }
  return usage;
}

/** Before 14, V8 counts the memory of WebAssembly among the buffers. */
const WASM = Number.parseInt(process.versions.v8, 10) < 14 ? 'externalBytes' : 'wasmBytes';

test.each([
  ['a buffer', 'externalBytes', 'Buffer.alloc(1e8, 1)'],
  ['typed arrays', 'externalBytes', 'Array.from({ length: 100 }, () => new Float64Array(125_000).fill(1))'],
  ['objects', 'heapBytes', 'Array.from({ length: 8e5 }, (_, i) => ({ a: i, b: [i, i + 0.5], c: i }))'],
  [
    'strings',
    'heapBytes',
    'Array.from({ length: 100 }, (_, i) => { const s = "a".repeat(1e6) + i; s.charCodeAt(0); return s })',
  ],
  ['WebAssembly memory', WASM, 'new Uint8Array(new WebAssembly.Memory({ initial: 1526 }).buffer).fill(1)'],
  ['WebAssembly memory that no one sees', WASM, HIDDEN],
  ['a shared buffer', 'wasmBytes', 'new Uint8Array(new SharedArrayBuffer(1e8)).fill(1)'],
] as const)('100 MB held as %s are seen', async (_, kind, code) => {
  const running = shared.start(`globalThis.all = ${code}; console.log('ready'); setInterval(() => {}, 1000)`);

  const usage = await held(running);

  expect(usage[kind] / MB).toBeGreaterThan(90);
  expect(usage[kind] / MB).toBeLessThan(kind === 'heapBytes' ? 116 : 110);
  expect(usage.memoryBytes).toBe(usage.heapBytes + usage.externalBytes + usage.wasmBytes);
  expect(usage.memoryBytes / MB).toBeLessThan(120);
  running.guest.kill();
  const { usage: final } = await running.result;
  expect(final?.peakMemoryBytes).toBeGreaterThanOrEqual(usage.memoryBytes);
  // An answer of the thread may have come after that, and told of a collection.
  expect(Math.abs((final?.memoryBytes ?? 0) - usage.memoryBytes) / MB).toBeLessThan(10);
});

test('memory that no heap shows is of the thread that touched it', async () => {
  const hold = (code: string) => shared.start(`${code}; console.log('ready'); setInterval(() => {}, 1000)`);
  const bystander = hold('globalThis.all = Buffer.alloc(3e7, 1)');
  await bystander.printed('ready');
  await bystander.guest.usage();

  const holder = hold('globalThis.all = new Uint8Array(new SharedArrayBuffer(1e8)).fill(1)');
  const [theirs, others] = [await held(holder), await bystander.guest.usage()];

  expect(theirs.wasmBytes / MB).toBeGreaterThan(90);
  expect(others.wasmBytes / MB).toBeLessThan(10);
  holder.guest.kill();
  await holder.result;
  expect((await bystander.guest.usage()).wasmBytes / MB).toBeLessThan(10);
});

test('memory that no heap shows is given back', async () => {
  await using harness = new Harness();
  const running = harness.start(`let all = new Uint8Array(new SharedArrayBuffer(1e8)).fill(1); console.log('ready');
    process.on('SIGUSR2', () => { all = undefined; require('v8').setFlagsFromString('--expose-gc');
      require('vm').runInNewContext('gc')(); console.log('free') }); setInterval(() => {}, 1000)`);
  await held(running);

  running.guest.notify('SIGUSR2');
  await running.printed('free');

  // V8 frees it on a thread of its own.
  const usage = await vi.waitFor(async () => {
    const now = await running.guest.usage();
    expect(now.wasmBytes / MB).toBeLessThan(20);
    return now;
  }, 30_000);
  expect(usage.peakMemoryBytes / MB).toBeGreaterThan(95);
});

test('what a program held when it ended is told though nobody asked before', async () => {
  const { usage } = await shared.run('globalThis.all = Buffer.alloc(5e7); process.exit()');

  expect((usage?.externalBytes ?? 0) / MB).toBeGreaterThan(50);
  expect((usage?.peakMemoryBytes ?? 0) / MB).toBeGreaterThan(50);
});

test('a program that ended at its heap limit held that much', async () => {
  await using harness = new Harness({ heapLimitMb: 32 });

  const { usage } = await harness.run(
    'const all = []; setInterval(() => { for (let i = 0; i < 20000; i++) all.push({ i, s: [i] }) }, 0)',
  );

  expect(usage?.peakMemoryBytes).toBeGreaterThanOrEqual(32 * 2 ** 20);
});

test.each([
  ['native code', 'require("crypto").pbkdf2Sync("a", "b", 2e8, 64, "sha512")'],
  ['a wait', 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)'],
  ['a child', 'require("child_process").execSync("sleep 1000")'],
])('a program stuck in %s is measured all the same', async (_, code) => {
  await using harness = new Harness();
  const running = harness.start(`console.log('ready'); ${code}`);
  await Promise.all([running.started, running.printed('ready')]);

  const times: number[] = [];
  for (let round = 0; round < 5; round += 1) {
    const start = performance.now();
    const usage = await running.guest.usage();
    times.push(performance.now() - start);
    expect(usage.memoryBytes / MB).toBeGreaterThan(5);
    expect(cpuMs(usage)).toBeGreaterThan(0);
  }

  expect(Math.min(...times)).toBeLessThan(100);
  running.guest.kill();
});

test('a program that owes an answer is not asked again', async () => {
  await using harness = new Harness();
  const asked = vi.spyOn(Worker.prototype, 'getHeapStatistics');
  const running = harness.start('require("child_process").execSync("sleep 1000")');
  await vi.waitFor(async () => expect((await running.guest.usage()).processes).toBeGreaterThan(0), 30_000);
  await running.guest.usage();
  const before = asked.mock.calls.length;

  for (let round = 0; round < 5; round += 1) await running.guest.usage();

  expect(asked.mock.calls.length).toBe(before);
  asked.mockRestore();
  running.guest.kill();
});

test('a program that sleeps is left asleep, and what it holds once it has run is seen at once', async () => {
  await using harness = new Harness();
  const asked = vi.spyOn(Worker.prototype, 'getHeapStatistics');
  const running = harness.start(`process.on('SIGUSR2', () => { globalThis.all = Buffer.alloc(5e7, 1);
    globalThis.child = require('child_process').spawn('sleep', ['1000']); console.log('ready') });
    console.log('waits'); setInterval(() => {}, 1e6)`);
  await Promise.all([running.started, running.printed('waits')]);
  // V8 may collect for a while in a thread that has gone to sleep.
  await vi.waitFor(async () => {
    const before = asked.mock.calls.length;
    for (let round = 0; round < 5; round += 1) await running.guest.usage();
    expect(asked.mock.calls.length).toBe(before);
  }, 30_000);
  const asleep = await running.guest.usage();

  running.guest.notify('SIGUSR2');
  await running.printed('ready');
  // A thread of a busy machine may be late with its answer.
  let awake = await running.guest.usage();
  for (let round = 0; round < 20 && awake.externalBytes < 5e7; round += 1) awake = await running.guest.usage();

  expect(asked.mock.calls.length).toBeGreaterThan(1);
  expect(awake.externalBytes - asleep.externalBytes).toBeGreaterThanOrEqual(5e7);
  expect([asleep.processes, awake.processes]).toEqual([0, 1]);
  asked.mockRestore();
  running.guest.kill();
});

test('what never ran used nothing, and what has ended uses what it did', async () => {
  expect((await shared.run('const a: number = ;', { language: 'typescript' })).usage).toBeUndefined();

  const running = shared.start('0');
  expect(await running.guest.usage()).toMatchObject({ memoryBytes: 0, threads: 0 });
  const { usage } = await running.result;

  expect(usage).toMatchObject({ droppedBytes: 0, processes: 0, threads: 0 });
  expect(await running.guest.usage()).toEqual(usage);
});

test('a program gives way to its cell, and so do its children', async () => {
  const { out } = await shared.run(`console.log(require('os').getPriority());
    console.log(require('child_process').execSync('nice').toString())`);

  expect(out).toBe('5\n5\n\n');
});

test('each start names its own thread', async () => {
  const results = await Promise.all([shared.run('0'), shared.run('0')]);

  const [first, second] = results.map(({ thread }) => thread);
  expect(first).toBeGreaterThan(0);
  expect(second).toBeGreaterThan(0);
  expect(first).not.toBe(second);
});
