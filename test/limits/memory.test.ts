import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDaemon, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';

// An execution has the memory it was given, whatever it is made of; and its neighbours have theirs.

const MIB = 1024 * 1024;

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

/** Grows as well. To the kernel its first thread is a zombie. */
const WITHOUT_FIRST_THREAD = `
import ctypes, threading, time
def grow():
    held = []
    while True:
        held.append(bytearray(b'x') * (4 << 20)); time.sleep(0.005)
threading.Thread(target=grow).start()
ctypes.CDLL(None).pthread_exit(None)`;

/** Grows by some MiB every few ms, and never ends by itself. */
const GROWING: ['javascript' | 'python', string, string][] = [
  ['javascript', 'buffers', 'const held = []; setInterval(() => held.push(Buffer.alloc(4 << 20, 1)), 5);'],
  [
    'javascript',
    'objects',
    'const held = []; setInterval(() => held.push(Array.from({ length: 2e3 }, (_, i) => ({ i }))), 2);',
  ],
  [
    'javascript',
    'buffers in a busy loop',
    'const held = []; for (;;) { held.push(Buffer.alloc(1 << 20, 1)); for (let i = 0; i < 1e6; i++); }',
  ],
  [
    'javascript',
    'WebAssembly memory',
    'const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 }); setInterval(() => { const from = memory.buffer.byteLength; memory.grow(64); new Uint8Array(memory.buffer).fill(1, from); }, 5);',
  ],
  [
    'javascript',
    'shared buffers',
    'const held = []; setInterval(() => { const b = new SharedArrayBuffer(4 << 20); new Uint8Array(b).fill(1); held.push(b); }, 5);',
  ],
  [
    'javascript',
    'a child process',
    `require('child_process').spawn('python3', ['-c', 'import time\\nheld = []\\nwhile True:\\n    held.append(bytearray(b"x") * (4 << 20)); time.sleep(0.005)']); setInterval(() => {}, 1000);`,
  ],
  [
    'javascript',
    'a child process whose first thread has ended',
    `require('child_process').spawn('python3', ['-c', ${JSON.stringify(WITHOUT_FIRST_THREAD)}]); setInterval(() => {}, 1000);`,
  ],
  [
    'python',
    'bytearrays',
    'import time\nheld = []\nwhile True:\n    held.append(bytearray(b"x") * (4 << 20)); time.sleep(0.005)',
  ],
  ['python', 'small objects', 'held = []\nwhile True: held.append([len(held)])'],
  [
    'python',
    'a child process',
    'import subprocess, sys\nsubprocess.run([sys.executable, "-c", "import time\\nheld = []\\nwhile True:\\n    held.append(bytearray(b\'x\') * (4 << 20)); time.sleep(0.005)"])\nimport time\ntime.sleep(60)',
  ],
];

const IN_PROCESSES = GROWING.filter(([language]) => language === 'javascript').map(([, by, code]) => {
  return ['process', by, code] as const;
});

test.each([...GROWING, ...IN_PROCESSES])(
  'a %s guest that grows by %s ends at its memory limit, and its neighbour goes on',
  async (engine, _, code) => {
    const asked = languageOf(engine);
    const neighbour = await session.ready({
      ...asked,
      code:
        engine === 'python'
          ? 'print("ready", flush=True)\nprint(input())'
          : 'console.log("ready"); process.stdin.once("data", (text) => { console.log(String(text)); process.exit(); })',
      stdin: true,
      memoryLimitMb: 96,
    });

    const { result } = await session.run({ ...asked, code, memoryLimitMb: 96, timeoutMs: 50_000 });

    expect(result).toMatchObject({ reason: 'memory_exceeded', exitCode: 137, signal: 'SIGKILL' });
    await neighbour.write('still here\n', true);
    expect(await neighbour.end()).toMatchObject({
      stdout: expect.stringContaining('still here'),
      result: { exitCode: 0 },
    });
  },
);

test.each(ENGINES)('a %s guest that stays below its limit is left alone', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = {
    javascript: 'const held = Buffer.alloc(60 << 20, 1); setTimeout(() => console.log(held.length), 600)',
    python: 'import time\nheld = bytearray(b"x") * (60 << 20)\ntime.sleep(0.6)\nprint(len(held))',
  }[language];

  const { result, stdout } = await session.run({ ...asked, code, memoryLimitMb: 96 });

  expect({ reason: result.reason, stdout }).toEqual({ reason: 'completed', stdout: `${60 * MIB}\n` });
});

test.each(ENGINES)('at its soft limit a %s guest that listens is told, and everyone who watches', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = {
    javascript: `process.on('SIGUSR2', () => { console.log('shed'); process.exit(4); });
      const held = Buffer.alloc(64 << 20, 1); setInterval(() => held.length, 1000)`,
    python: `import signal, sys, time
def shed(*_):
    print('shed')
    sys.exit(4)
signal.signal(signal.SIGUSR2, shed)
held = bytearray(b'x') * (64 << 20)
while True: time.sleep(0.05)`,
  }[language];

  const { result, stdout, snapshot, steps } = await session.run({
    ...asked,
    code,
    memorySoftLimitMb: 32,
    memoryLimitMb: 256,
  });

  expect({ exitCode: result.exitCode, reason: result.reason, stdout }).toEqual({
    exitCode: 4,
    reason: 'failed',
    stdout: 'shed\n',
  });
  expect(snapshot.warnings).toEqual([expect.stringMatching(/soft memory limit is 32 MiB; the guest was sent SIGUSR2/)]);
  expect(steps.filter((step) => step === 'running')).toHaveLength(2);
});

test.each(ENGINES)('a %s guest that does not listen is not sent the signal, which would end it', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = {
    javascript: `const held = Buffer.alloc(64 << 20, 1);
      process.stdin.once('data', () => { console.log(held.length); process.exit(); });`,
    python: 'held = bytearray(b"x") * (64 << 20)\ninput()\nprint(len(held))',
  }[language];
  const running = await session.submit({ ...asked, code, memorySoftLimitMb: 32, stdin: true });
  await eventually('it is warned of', async () => (await running.snapshot()).warnings.length > 0);

  await running.write('\n', true);
  const { result, snapshot } = await running.end();

  expect(result.reason).toBe('completed');
  expect(snapshot.warnings).toEqual([expect.stringMatching(/held; the soft memory limit is 32 MiB$/)]);
});

test.each(['python', 'process'] as const)('what a %s guest writes to files is not what it holds', async (engine) => {
  const asked = languageOf(engine);
  const code = {
    javascript: `const fs = require('node:fs');
      process.on('SIGUSR2', () => process.exit(3));
      const [file, part] = [fs.openSync('file', 'w'), Buffer.alloc(1 << 20, 1)];
      let left = 1000;
      (function write() { fs.writeSync(file, part); if ((left -= 1) > 0) setImmediate(write); })();`,
    python: `import os, signal
signal.signal(signal.SIGUSR2, lambda *_: os._exit(3))
with open('file', 'wb') as file:
    for _ in range(1000): file.write(b'x' * (1 << 20))`,
  }[asked.language];

  const { result, snapshot } = await session.run({ ...asked, code, memoryLimitMb: 100, memorySoftLimitMb: 60 });

  expect(result).toMatchObject({ reason: 'completed' });
  expect(snapshot.warnings).toEqual([]);
  expect((result.usage?.peakMemoryBytes ?? 0) / MIB).toBeLessThan(25);
});

test('when V8 aborts a whole cell, the one that grew has exceeded its memory, and the others have lost their cell', async () => {
  const small = await node.session({ memoryLimitMb: 64 });
  const idle = 'console.log("ready"); setInterval(() => {}, 1000)';
  const before = [await small.ready(idle), await small.ready(idle)];
  const pid = await small.cellPid();

  // One array of a size that V8 gives up on at once.
  const grown = await small.ready({
    code: 'console.log("ready"); process.stdin.once("data", () => new Array(2 ** 27 - 1).fill({}))',
    stdin: true,
  });
  const after = await small.ready(idle);
  await grown.write('\n');
  const { result } = await grown.end();

  expect(await small.cellPids()).not.toContain(pid);
  expect(result.reason).toBe('memory_exceeded');
  for (const other of [...before, after]) expect((await other.end()).result.reason).toBe('cell_lost');
});

test('of a cell that V8 aborts one line is told, with the cause', async () => {
  const small = await node.session({ memoryLimitMb: 96 });
  const neighbour = await small.ready('console.log("ready"); setInterval(() => {}, 1000)');

  const { result } = await small.run('const all = new Map(); for (let i = 0; ; i += 1) all.set(i, { i });');

  expect(result).toMatchObject({
    reason: 'memory_exceeded',
    message: expect.stringMatching(/^[^\n]*(heap|held)[^\n]*$/),
  });
  expect((await neighbour.end()).result).toMatchObject({
    reason: 'cell_lost',
    message: 'the cell ended by SIGABRT: the heap of an execution reached its limit',
  });
});

test('what a guest held that has ended is no burden for the next one of its cell', async () => {
  await using tight = await TestDaemon.start({ cellMemoryMb: 500 });
  const one = await tight.session();
  const neighbour = await one.ready('setInterval(() => {}, 1000); console.log("ready")');
  const before = await one.run('globalThis.all = Array.from({ length: 2e6 }, (_, i) => ({ a: i, b: [i, i + 0.5] }))');
  expect(before.result.reason).toBe('completed');
  expect((before.result.usage?.peakMemoryBytes ?? 0) / MIB).toBeGreaterThan(200);

  const { result } = await one.run('globalThis.all = Buffer.alloc(250 << 20, 1); setTimeout(() => {}, 500)');

  expect(result).toMatchObject({ reason: 'completed' });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('a cell beyond its budget ends the guest that grew, not the one that holds most', async () => {
  await using tight = await TestDaemon.start({ cellMemoryMb: 400 });
  const one = await tight.session();
  const big = await one.ready(
    'const held = Buffer.alloc(150 << 20, 1); setInterval(() => held.length, 1000); console.log("ready")',
  );
  const small = await one.ready('setInterval(() => {}, 1000); console.log("ready")');

  const { result } = await one.run(
    'const held = []; setInterval(() => { if (held.length < 50) held.push(Buffer.alloc(4 << 20, 1)) }, 20)',
  );

  expect(result).toMatchObject({
    reason: 'memory_exceeded',
    message: expect.stringMatching(/its cell holds .* of 400 MiB/),
  });
  for (const other of [big, small]) expect((await other.snapshot()).state).toBe('running');
});
