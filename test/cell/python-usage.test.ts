import { readFileSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { soonest } from '../support/in-time.ts';
import { Host, MB } from './python-harness.ts';

const host = new Host();
afterAll(() => host[Symbol.asyncDispose]());

/** Uses 300 ms of CPU time, then goes on to the end of its input. */
const BURN = `
import os, sys, time
def burn():
    start = time.process_time()
    while time.process_time() < start + 0.3: sum(range(1000))
def wait():
    print('ready')
    sys.stdin.read()
`;

const BURNERS: [string, string][] = [
  ['the program itself', 'burn()\nwait()'],
  [
    'a child that lives',
    'r, w = os.pipe()\nif os.fork() == 0: burn(); os.write(w, b"."); time.sleep(1000)\nos.read(r, 1)\nwait()',
  ],
  ['a child that has ended', 'if os.fork() == 0: burn(); os._exit(0)\nos.wait()\nwait()'],
  [
    'a daemon in a session of its own',
    `
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        burn()
        os.write(w, b'.')
        time.sleep(1000)
    os._exit(0)
os.wait()
os.read(r, 1)
wait()`,
  ],
  [
    'a daemon that has ended',
    `
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        burn()
        os._exit(0)
    os._exit(0)
os.wait()
os.close(w)
os.read(r, 1)
wait()`,
  ],
];

test.each(BURNERS)('300 ms of CPU time of %s are seen while it runs, and in the end', async (_, code) => {
  const run = host.start(BURN + code);
  await eventually('the burn', () => run.stdout() === 'ready\n');

  // What has ended is reaped a moment later.
  let seen = 0;
  for (let looks = 0; looks < 100 && seen < 0.27; looks++) {
    const { userSeconds, systemSeconds } = await run.guest.usage();
    seen = userSeconds + systemSeconds;
  }
  await run.guest.write(Buffer.alloc(0), true);
  const { usage } = await run.exited;

  expect(seen).toBeGreaterThan(0.27);
  expect(seen).toBeLessThan(0.5); // beside the burn the guest starts, and forks: twice as much would be a second burn
  const { userSeconds = 0, systemSeconds = 0 } = usage ?? {};
  expect(userSeconds + systemSeconds).toBeGreaterThan(0.29);
  expect(userSeconds + systemSeconds).toBeLessThan(0.5);
});

test('the final CPU time of a program that was ended by force is exact', async () => {
  const run = host.start(`${BURN}burn()\nwait()`);
  await eventually('the burn', () => run.stdout() === 'ready\n');

  run.guest.kill();
  const { signal, usage } = await run.exited;

  expect(signal).toBe('SIGKILL');
  const { userSeconds = 0, systemSeconds = 0 } = usage ?? {};
  expect(userSeconds + systemSeconds).toBeGreaterThan(0.29);
  expect(userSeconds + systemSeconds).toBeLessThan(0.5);
});

test('100 MB held for 300 ms are the peak, although nobody looked', async () => {
  const run = host.start('import time\nkept = b"x" * (100 << 20)\ntime.sleep(0.3)');

  const { usage } = await run.exited;

  expect(usage?.peakMemoryBytes).toBeGreaterThan(100 * MB);
  expect(usage?.peakMemoryBytes).toBeLessThan(110 * MB);
  expect(usage?.memoryBytes).toBe(usage?.peakMemoryBytes);
});

test('the peak of a program that does next to nothing is next to nothing', async () => {
  const { usage } = await host.start('pass').exited;

  expect(usage?.peakMemoryBytes).toBeGreaterThan(0);
  expect(usage?.peakMemoryBytes).toBeLessThan(4 * MB);
});

test('memory, processes and threads are those of the whole tree, and the peak stays', async () => {
  const code = `
import os, sys, threading, time
readers = []
for _ in range(2):
    r, w = os.pipe()
    if os.fork() == 0:
        kept = b'x' * (50 << 20)
        threading.Thread(target=time.sleep, args=(1000,)).start()
        os.write(w, b'.')
        time.sleep(1000)
    readers.append(r)
for r in readers: os.read(r, 1)
print('ready')
sys.stdin.readline()
os.system('kill -9 $(cat /proc/$PPID/task/$PPID/children | tr " " "\\n" | grep -vx $$)')
for _ in range(2): os.wait()
print('alone')
sys.stdin.read()`;
  const run = host.start(code);
  await eventually('both', () => run.stdout() === 'ready\n');

  const both = await run.guest.usage();
  await run.guest.write(Buffer.from('\n'), false);
  await eventually('the end of both', () => run.stdout() === 'ready\nalone\n');
  const alone = await run.guest.usage();
  run.guest.kill();
  const { usage } = await run.exited;

  expect(both).toMatchObject({ processes: 3, threads: 5, heapBytes: 0, externalBytes: 0, wasmBytes: 0 });
  expect(both.memoryBytes).toBeGreaterThan(100 * MB);
  expect(both.memoryBytes).toBeLessThan(110 * MB);
  expect(alone).toMatchObject({ processes: 1, threads: 1 });
  expect(alone.memoryBytes).toBeLessThan(10 * MB);
  expect(alone.peakMemoryBytes).toBe(both.memoryBytes);
  expect(usage).toMatchObject({ memoryBytes: alone.memoryBytes, peakMemoryBytes: both.memoryBytes });
});

const HOLD = `
def hold():
    global held
    print('ready', flush=True)
    sys.stdin.readline()
    held = b'x' * (100 << 20)
    print('holds', flush=True)
    sys.stdin.readline()
`;

test.each([
  ['the program', 'hold()'],
  [
    'a thread of it, while the first one sleeps',
    'threading.Thread(target=hold, daemon=True).start()\ntime.sleep(1000)',
  ],
  ['a child of it', 'if os.fork() == 0: hold(); os._exit(0)\ntime.sleep(1000)'],
])('what %s comes to hold between two readings is seen at once', async (_, code) => {
  const run = host.start(`import os, sys, threading, time${HOLD}${code}`);
  await eventually('the start', () => run.stdout() === 'ready\n');
  const pid = await run.started;
  let ran = '';
  await eventually('its first thread sleeps', () => {
    const before = ran;
    ran = readFileSync(`/proc/${pid}/schedstat`, 'latin1');
    return ran === before;
  });
  // The second one of somebody who sleeps.
  await run.guest.usage();
  const before = await run.guest.usage();

  await run.guest.write(Buffer.from('\n'), false);
  await eventually('the memory', () => run.stdout() === 'ready\nholds\n');
  const after = await run.guest.usage();
  run.guest.kill();
  await run.exited;

  expect(after.memoryBytes - before.memoryBytes).toBeGreaterThan(99 * MB);
});

test('figures are had before the start, after the end and of a program that never ran', async () => {
  const run = host.start('print("x")');

  const before = await run.guest.usage();
  const { usage } = await run.exited;
  const failed = host.start('pass', { cwd: '/nowhere/at/all' });

  expect(before).toMatchObject({ userSeconds: 0, memoryBytes: 0, processes: 0 });
  expect(await run.guest.usage()).toEqual(usage);
  const exit = await failed.exited;
  expect(exit.cause).toBe('start_failed');
  expect(exit).not.toHaveProperty('usage');
});

test('figures are had within 100 ms while a program is stuck in native code', async () => {
  const run = host.start('print("ready")\nb"x" * 10**9 in b"y" * 10\n2 ** 10**9 % 7');
  await eventually('the start', () => run.stdout() === 'ready\n');

  const tookMs = await soonest(100, 5, async () => {
    const startMs = performance.now();
    expect(await run.guest.usage()).toMatchObject({ processes: 1 });
    return performance.now() - startMs;
  });

  expect(tookMs).toBeLessThan(100);
  run.guest.kill();
  await run.exited;
});
