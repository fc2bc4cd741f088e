import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { getPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { GuestLimits } from '../../src/cell/engine.ts';
import { GuestGroups } from '../../src/cell/guest-groups.ts';
import { childrenOf } from '../../src/processes.ts';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { eventually } from '../support/eventually.ts';
import { Host, MB, parentOf, stateOf } from './python-harness.ts';

const control = ControlGroups.open();
// Stands for the cell, so that this process itself is moved nowhere.
const stand = spawn('sleep', ['1000']);
const cell = control.add('test', stand.pid as number);
const host = new Host();
const grouped = new Host({ groups: new GuestGroups(cell) });

afterAll(async () => {
  await host[Symbol.asyncDispose]();
  await grouped[Symbol.asyncDispose]();
  stand.kill('SIGKILL');
  await control.close();
});

const limits = (some: Partial<GuestLimits>) => ({ limits: { outputKill: false, ...some } });

/** A program with a child, each of which says on a line of its own that it is there. */
const FAMILY = `
import os, signal, sys, time
def say(text): os.write(1, (text + '\\n').encode())
`;

// ---------------------------------------------------------------------------------------------------------- output

test('output is cut at its limit, the rest is counted, and it is told once', async () => {
  const code = 'import sys\nfor i in range(1000): print("%09d" % i)\nprint("e" * 100, file=sys.stderr)';
  const run = host.start(code, limits({ outputBytes: 4_096 }));

  const { exitCode, usage } = await run.exited;

  expect(exitCode).toBe(0);
  const stderr = readFileSync(join(run.dir, 'out', 'stderr'), 'utf8');
  expect(run.stdout().length + stderr.length).toBe(4_096);
  expect(run.stdout().startsWith('000000000\n000000001\n')).toBe(true);
  expect(usage?.droppedBytes).toBe(10_000 + 101 - 4_096);
  expect(run.exceeded()).toBe(1);
});

test('output that fills its limit exactly does not exceed it', async () => {
  const run = host.start('import os\nos.write(1, b"x" * 4096)', limits({ outputBytes: 4_096 }));

  const { usage } = await run.exited;

  expect(run.exceeded()).toBe(0);
  expect(usage?.droppedBytes).toBe(0);
});

test('a program that writes 100 MB without a line ends, at little cost to who drops it', async () => {
  const code = `import sys\nsys.stdout.write("x" * (100 << 20))`;
  const before = process.cpuUsage();
  const run = host.start(code, limits({ outputBytes: 1_000 }));

  const { exitCode, usage } = await run.exited;

  const { user, system } = process.cpuUsage(before);
  expect(exitCode).toBe(0);
  expect(usage?.droppedBytes).toBe(100 * MB - 1_000);
  expect(readFileSync(join(run.dir, 'out', 'stdout')).length).toBe(1_000);
  // It costs about as much to take it as to write it.
  const { userSeconds = 0, systemSeconds = 0 } = usage ?? {};
  expect((user + system) / 1e6).toBeLessThan(4 * (userSeconds + systemSeconds));
});

test('dropping what a program writes for ever costs a fraction of a core', async () => {
  const run = host.start('import os\nwhile True: os.write(1, b"x" * 65536)', limits({ outputBytes: 1 }));
  await eventually('the limit', () => run.exceeded() === 1);
  const before = process.cpuUsage();
  const startMs = performance.now();
  const { droppedBytes: droppedBefore } = await run.guest.usage();

  await new Promise((resolve) => setTimeout(resolve, 500));

  const { user, system } = process.cpuUsage(before);
  const { droppedBytes } = await run.guest.usage();
  expect((user + system) / 1000 / (performance.now() - startMs)).toBeLessThan(0.6);
  expect(droppedBytes).toBeGreaterThan(droppedBefore);
  run.guest.kill();
  expect(await run.exited).toMatchObject({ signal: 'SIGKILL' });
});

// --------------------------------------------------------------------------------------------------------- signals

const HANDLING_FAMILY = `${FAMILY}
pid = os.fork()
name = 'program' if pid else 'child'
if pid == 0: os.setsid()
signal.signal(signal.SIGUSR1, lambda *_: say(name + ' usr1'))
say(name)
while True: signal.pause()`;

test.each([
  ['the program alone', undefined, false, ['program usr1']],
  ['the tree, as the caller says', true, false, ['child usr1', 'program usr1']],
  ['the tree, as the request says', false, true, ['child usr1', 'program usr1']],
])('a signal for %s', async (_, tree, signalTree, expected) => {
  const run = host.start(HANDLING_FAMILY, { signalTree });
  const lines = () => run.stdout().split('\n').filter(Boolean).sort();
  await eventually('both', () => lines().length === 2);

  run.guest.signal('SIGUSR1', tree);
  await eventually('the signals', () => lines().length >= 2 + expected.length);
  // Nothing more comes: signals of another kind arrive after the first ones.
  run.guest.kill();
  await run.exited;

  expect(lines().filter((line) => line.includes('usr1'))).toEqual(expected);
});

test('a daemon in a session of its own gets the signals of the tree', async () => {
  const code = `${FAMILY}
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, lambda *_: (say('daemon ends'), os._exit(0)))
        say('daemon')
        time.sleep(1000)
    os._exit(0)
os.wait()
signal.signal(signal.SIGTERM, lambda *_: time.sleep(1000))
say('program')
while True: signal.pause()`;
  const run = host.start(code);
  await eventually('both', () => run.stdout().includes('daemon\n') && run.stdout().includes('program\n'));

  run.guest.signal('SIGTERM', true);

  await eventually('the end of the daemon', () => run.stdout().includes('daemon ends\n'));
  run.guest.kill();
  await run.exited;
});

test('SIGSTOP stops the whole tree, also processes that fork and end for ever, and SIGCONT lets it go on', async () => {
  const code = `${FAMILY}
for chain in range(4):
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
            os.setsid()
            open('chain-%d' % chain, 'w').close()
say('ready')
while True: time.sleep(0.001)`;
  const run = host.start(code);
  const shepherd = parentOf(await run.started);
  await eventually('all chains', () => [0, 1, 2, 3].every((i) => existsSync(join(run.dir, 'work', `chain-${i}`))));
  const running = () => childrenOf(shepherd).filter((pid) => !'TZ'.includes(stateOf(pid) ?? 'Z'));

  run.guest.signal('SIGSTOP', true);

  // One look may come while one of them is between two.
  let quietLooks = 0;
  await eventually('the stop', () => {
    quietLooks = running().length === 0 ? quietLooks + 1 : 0;
    return quietLooks === 10;
  });
  expect(stateOf(await run.started)).toBe('T');
  run.guest.signal('SIGCONT', true);
  await eventually('the going on', () => running().length > 0);
  run.guest.kill();
  await run.exited;
});

test.each(['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'] as const)('%s ends a program that is stopped', async (name) => {
  const run = host.start('import time\nprint("ready")\ntime.sleep(1000)');
  const pid = await run.started;
  await eventually('the start', () => run.stdout() === 'ready\n');
  run.guest.signal('SIGSTOP', false);
  await eventually('the stop', () => stateOf(pid) === 'T');

  run.guest.signal(name, false);

  expect(await run.exited).toMatchObject({ signal: name });
});

test('a program is notified only of a signal it has a handler for', async () => {
  const code = `${FAMILY}
signal.signal(signal.SIGUSR2, lambda *_: say('usr2'))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
say('ready')
while True: signal.pause()`;
  const run = host.start(code);
  expect(run.guest.notify('SIGUSR2')).toBe(false); // not before it runs
  await eventually('the handler', () => run.stdout() === 'ready\n');

  const told = (['SIGUSR1', 'SIGHUP', 'SIGKILL', 'SIGUSR2'] as const).map((name) => run.guest.notify(name));

  expect(told).toEqual([false, false, false, true]);
  await eventually('the signal', () => run.stdout() === 'ready\nusr2\n');
  run.guest.kill();
  await run.exited;
  expect(run.guest.notify('SIGUSR2')).toBe(false);
});

// ------------------------------------------------------------------------------------------------ limits of a process

test('a program runs with a lower priority than its cell, and leaves no core', async () => {
  const code = `
import os, resource, subprocess
print(os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_CORE), flush=True)
subprocess.run(['nice'])`;
  const run = host.start(code);

  await run.exited;

  const priority = Math.min(19, getPriority() + 5);
  expect(run.stdout()).toBe(`${priority} (0, 0)\n${priority}\n`);
});

test('a file beyond the limit of open files fails to open, in a child too', async () => {
  const code = `
import os, sys
def fill():
    try:
        while True: last = os.open('/dev/null', os.O_RDONLY)
    except OSError as error:
        print(error.errno, last, flush=True)
if os.fork() == 0: fill(); os._exit(0)
os.wait()
fill()`;
  const run = host.start(code, limits({ openFiles: 32 }));

  await run.exited;

  expect(run.stdout()).toBe('24 31\n24 31\n'); // EMFILE
});

// ---------------------------------------------------------------------------------------------------------- groups

/** Where there are no groups this says why, and the tests of groups test that nothing pretends to be held. */
test('there are control groups, or a reason why not', () => {
  if (control.version === 0) expect(control.why).toMatch(/cgroup v2: .+; cgroup v1: .+/);
  else expect(control.controllers.size).toBeGreaterThan(0);
});

const GREEDY = `
kept = []
print('ready', flush=True)
while len(kept) < 300: kept.append(b'x' * (1 << 20))
print('had all')`;

test('a program beyond its memory limit is killed by the kernel, and that is told', async () => {
  const run = grouped.start(GREEDY, limits({ memoryBytes: 64 * MB }));

  const exit = await run.exited;

  if (!control.controllers.has('memory')) {
    expect(exit).toMatchObject({ exitCode: 0 });
    return;
  }
  expect(exit).toMatchObject({ exitCode: 137, signal: 'SIGKILL', cause: 'memory_limit' });
  expect(exit.message).toContain('memory limit');
  expect(run.stdout()).toBe('ready\n');
  expect(exit.usage?.peakMemoryBytes).toBeGreaterThan(60 * MB);
  expect(exit.usage?.peakMemoryBytes).toBeLessThan(67 * MB);
});

test('the whole program is killed when the memory limit hits one of its children', async () => {
  const code = `
import os, time
if os.fork() == 0:${GREEDY.replaceAll('\n', '\n    ')}
    os._exit(0)
time.sleep(${control.controllers.has('memory') ? 1000 : 0})`;
  const run = grouped.start(code, limits({ memoryBytes: 64 * MB }));
  // As its cell does.
  const looks = setInterval(() => void run.guest.usage(), 100);

  const exit = await run.exited;
  clearInterval(looks);

  if (control.controllers.has('memory')) expect(exit).toMatchObject({ exitCode: 137, cause: 'memory_limit' });
  else expect(exit.cause).toBeUndefined();
});

test('a program killed by force within its memory limit was not killed by the limit', async () => {
  const run = grouped.start('print("ready")\nimport time\ntime.sleep(1000)', limits({ memoryBytes: 64 * MB }));
  await eventually('the start', () => run.stdout() === 'ready\n');

  run.guest.kill();

  const exit = await run.exited;
  expect(exit).toMatchObject({ exitCode: 137 });
  expect(exit.cause).toBeUndefined();
});

test('what a group is charged with is what a program uses, file cache excepted', async () => {
  const code = `
import os, sys
kept = b'x' * (50 << 20)
with open('file', 'wb') as file:
    for _ in range(100): file.write(b'y' * (1 << 20))
    file.flush()
    os.fsync(file.fileno())
print('ready')
sys.stdin.read()`;
  const run = grouped.start(code, limits({ memoryBytes: 1_000 * MB }));
  await eventually('the program', () => run.stdout() === 'ready\n');

  const { memoryBytes } = await run.guest.usage();
  await run.guest.write(Buffer.alloc(0), true);
  const { usage } = await run.exited;

  expect(memoryBytes).toBeGreaterThan(50 * MB);
  expect(memoryBytes).toBeLessThan(60 * MB);
  expect(usage?.peakMemoryBytes).toBeLessThan(65 * MB);
});

test('files in memory are held, also those that no process has mapped', async () => {
  const code = `
import os, sys
file = os.memfd_create('file')
os.write(file, b'x' * (50 << 20))
print('ready')
sys.stdin.read()`;
  const run = grouped.start(code, limits({ memoryBytes: 1_000 * MB }));
  await eventually('the program', () => run.stdout() === 'ready\n');

  const { memoryBytes } = await run.guest.usage();
  await run.guest.write(Buffer.alloc(0), true);
  await run.exited;

  if (control.controllers.has('memory')) expect(memoryBytes).toBeGreaterThan(50 * MB);
  else expect(memoryBytes).toBeLessThan(50 * MB);
});

test('the peak of several processes together is known, although nobody looked', async () => {
  const code = `
import os
all_filled, filled = os.pipe()
over, not_over = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.close(not_over)
        kept = b'x' * (50 << 20)
        os.write(filled, b'.')
        os.read(over, 1)
        os._exit(0)
for _ in range(3): os.read(all_filled, 1)
os.close(not_over)
for _ in range(3): os.wait()`;
  const run = grouped.start(code, limits({ memoryBytes: 1_000 * MB }));

  const { usage } = await run.exited;

  const expected = control.controllers.has('memory') ? 150 : 50; // of one process only, where there is no group
  expect(usage?.peakMemoryBytes).toBeGreaterThan(expected * MB);
  expect(usage?.peakMemoryBytes).toBeLessThan(expected * 1.1 * MB);
});

test('file cache that has gone does not count as a peak', async () => {
  const code = `
import os
kept = b'x' * (50 << 20)
with open('big', 'wb') as file:
    for _ in range(300): file.write(kept[:1 << 20])
os.remove('big')`;
  const run = grouped.start(code, limits({ memoryBytes: 1_000 * MB }));

  const { usage } = await run.exited;

  expect(usage?.peakMemoryBytes).toBeGreaterThan(50 * MB);
  expect(usage?.peakMemoryBytes).toBeLessThan(60 * MB);
});

test('a process beyond the limit of processes and threads fails to start', async () => {
  const code = `
import os, threading, time
made = 0
try:
    for _ in range(20):
        if os.fork() == 0:
            threading.Event().wait()
        made += 1
except OSError as error:
    print(error.errno)
print(made)`;
  const run = grouped.start(code, limits({ processes: 5 }));

  await run.exited;

  expect(run.stdout()).toBe(control.controllers.has('pids') ? '11\n4\n' : '20\n'); // EAGAIN
});

test('the shepherd of a program is outside of its group, and the program is in it before its first line', async () => {
  const run = grouped.start('print(open("/proc/self/cgroup").read())\nimport time\ntime.sleep(1000)', {
    ...limits({ memoryBytes: 64 * MB, processes: 5 }),
  });
  const pid = await run.started;
  await eventually('its first line', () => run.stdout().endsWith('\n\n'));
  const shepherd = parentOf(pid);

  const joined = run.stdout().match(/guest-e\d+/g)?.length ?? 0;

  expect(joined > 0).toBe(Object.keys(cell.cgroups).length > 0);
  expect(readFileSync(`/proc/${shepherd}/cgroup`, 'utf8')).not.toContain('guest-');
  run.guest.kill();
  await run.exited;
});

test('no group is made for a program without such limits, and that of one which has ended is removed', async () => {
  const groups = () =>
    Object.values(cell.cgroups).flatMap((path) => readdirSync(path).filter((n) => n.startsWith('guest-')));
  const free = grouped.start('import time\nprint("ready")\ntime.sleep(1000)');
  await eventually('the start', () => free.stdout() === 'ready\n');
  expect(groups()).toEqual([]);

  const bound = grouped.start(
    'import time\nprint("ready")\ntime.sleep(1000)',
    limits({ memoryBytes: 64 * MB, processes: 9 }),
  );
  await eventually('the start', () => bound.stdout() === 'ready\n');
  expect(groups()).toHaveLength(Object.keys(cell.cgroups).length);
  for (const run of [free, bound]) run.guest.kill();
  await Promise.all([free.exited, bound.exited]);

  await eventually('the end of the group', () => groups().length === 0);
});

test('a program whose promised group cannot be made does not run', async () => {
  await using broken = new Host({ groups: new GuestGroups({ version: 1, cgroups: { memory: '/nowhere/at/all' } }) });

  const exit = await broken.start('print(1)', limits({ memoryBytes: 64 * MB })).exited;

  expect(exit).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('/nowhere/at/all') });
});

test('version 2: what is written to hold a guest, and what is read', async () => {
  const cgroup = mkdtempSync(join(tmpdir(), 'version-2-'));
  const group = new GuestGroups({ version: 2, cgroups: { memory: cgroup, pids: cgroup } }).create('x', {
    outputKill: false,
    memoryBytes: 1_000_000,
    processes: 7,
  });
  const directory = join(cgroup, 'guest-x');
  const put = (file: string, text: string) => writeFileSync(join(directory, file), text);
  put('memory.current', '5000\n');
  put('memory.peak', '9000\n');
  put('memory.stat', 'anon 1000\nfile 3000\nshmem 500\ninactive_file 2000\n');
  put('cgroup.procs', `${process.pid}\n`);
  put('memory.events', 'max 3\noom 1\noom_kill 0\noom_group_kill 0\n');

  const written = ['memory.max', 'memory.swap.max', 'memory.oom.group', 'pids.max'].map((file) =>
    readFileSync(join(directory, file), 'utf8'),
  );
  const read = [group?.memoryBytes(), group?.peakBytes(), group?.peakBytes(5_000), group?.isOutOfMemory];
  put('memory.events', 'max 3\noom 1\noom_kill 2\noom_group_kill 1\n');
  put('memory.current', '7000\n');
  put('cgroup.procs', '');
  const readWithoutProcesses = [group?.memoryBytes(), group?.peakBytes()];

  expect(written).toEqual(['1000000', '0', '1', '7']);
  expect(read).toEqual([3_000, 6_000, 3_865, false]);
  expect(readWithoutProcesses).toEqual([500, 2_500]);
  expect(group?.isOutOfMemory).toBe(true);
  expect(group?.joinPaths).toEqual([join(directory, 'cgroup.procs')]);
  rmSync(cgroup, { recursive: true });
});
