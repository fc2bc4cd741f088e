import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { readKernelFile } from '../src/proc-file.ts';
import {
  endSessionOf,
  isAlive,
  isChildOf,
  isSameProcess,
  killSessionUntilGone,
  killTrees,
  processName,
  sessionsLeft,
  startTimeOf,
  threadsOf,
  treeOf,
  untilGone,
} from '../src/processes.ts';
import { eventually, processesWith } from './support/daemon.ts';
import { MAY_REUSE_IDS, runWithOwnIds } from './support/own-ids.ts';

const children: ChildProcess[] = [];
const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may make a namespace: names of another container');
afterEach(async () => {
  for (const { pid } of children.splice(0)) if (pid !== undefined) await killSessionUntilGone(pid);
});

/** A command line that no other process on this machine has. */
const uniqueSleep = () => `sleep 60${Math.floor(Math.random() * 1e9)}`;

/** As proc_pid_stat(5) has it; undefined for one that is gone. */
const stateOf = (pid: number | string) => readKernelFile(`/proc/${pid}/stat`)?.split(') ').at(-1)?.[0];

/** Starts a shell script as the leader of a session of its own. */
function startSession(script: string): number {
  const child = spawn('sh', ['-c', script], { detached: true, stdio: 'ignore' });
  children.push(child);
  return child.pid as number;
}

test('a tree is killed with all that it makes meanwhile', async () => {
  const command = uniqueSleep();
  // Each keeps making children that end soon, and one that would stay.
  const maker = `n=0; while [ $n -lt 40 ]; do ${command} & n=$((n + 1)); true | true; done; wait`;
  const root = startSession(`${`(${maker}) & `.repeat(6)} wait`);
  // Three of each maker's may end at any time.
  await eventually('it has made children', () => treeOf([root]).size > 40);

  const killed = killTrees([root]);
  await untilGone(killed);

  expect(killed.size).toBeGreaterThan(20);
  expect(processesWith(command)).toEqual([]);
});

test('a chain is killed in a moment, however deep it is', { timeout: 360_000 }, async () => {
  const command = uniqueSleep();
  const root = startSession(`f() { if [ $1 -gt 0 ]; then (f $(($1 - 1))); else ${command}; fi; :; }; f 300`);
  await eventually('it is there', () => treeOf([root]).size > 300, 180_000);
  const before = process.cpuUsage();

  const killed = killTrees([root]);

  // Of a processor: how many others use it does not count. It has taken 13 s.
  const { user, system } = process.cpuUsage(before);
  expect((user + system) / 1e6).toBeLessThan(4);
  expect(killed.size).toBeGreaterThan(300);
  await untilGone(killed);
  expect(processesWith(command)).toEqual([]);
});

test('what cannot be stopped in time is killed all the same, with what it makes meanwhile', {
  timeout: 360_000,
}, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'elide-test-'));
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  // It waits, and only SIGKILL ends that, for a child that waits for somebody to write: all the time there is passes.
  const spawner = `import os
os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, '${fifo}', os.O_RDONLY, 0)])`;
  // Eight, so large, in pages of the small kind, that they are in the middle of a fork much of the time.
  const forker = `import ctypes, os, time
PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
for _ in range(7):
    if os.fork() == 0: break
memory = b'x' * 2 ** 26
while os.fork(): time.sleep(0.0005)
time.sleep(600)`;
  const left: number[] = [];

  for (let round = 0; round < 10; round += 1) {
    const held = startSession(`exec python3 -IS -c "${spawner}"`);
    await eventually('it waits for its child', () => stateOf(held) === 'D');
    const root = startSession(`exec python3 -IS -c "${forker}"`);
    await eventually('they fork', () => treeOf([root]).size > 60);
    await untilGone(killTrees([held, root]));
    left.push(...processesWith('PR_SET_THP_DISABLE'));
    await killSessionUntilGone(root);
  }
  rmSync(directory, { recursive: true });

  expect(left).toEqual([]);
});

test('a session is gone with those that left their parent', async () => {
  const command = uniqueSleep();
  const leader = startSession(`(${command} & ${command} &) ; wait; sleep 600`);
  await eventually('they have left', () => processesWith(command).length === 3);
  process.kill(leader, 'SIGKILL');
  await untilGone(new Map([[leader, startTimeOf(leader)]]));
  expect(processesWith(command)).toHaveLength(2);

  await killSessionUntilGone(leader);

  expect(processesWith(command)).toEqual([]);
});

test('a process whose first thread has ended has not, until the last one has', async () => {
  const leader = startSession(`exec python3 -IS -c "
import _thread, ctypes, time
_thread.start_new_thread(time.sleep, (600,))
ctypes.CDLL(None).pthread_exit(None)"`);
  await eventually('its first thread has ended', () => stateOf(leader) === 'Z');

  expect(isAlive(leader)).toBe(true);
  expect(isSameProcess(leader, startTimeOf(leader))).toBe(true);
  await killSessionUntilGone(leader);
  expect(isAlive(leader)).toBe(false);
});

test('a process has ended when only zombies are left of it, even if somebody keeps those of its threads', async () => {
  // Another process that traces the second thread of the first one, and waits for nothing.
  const tracer = startSession(`exec python3 -IS -c "
import _thread, ctypes, os, time
PTRACE_SEIZE = 0x4206
r, w = os.pipe()
traced = os.fork()
if traced == 0:
    os.setsid()
    _thread.start_new_thread(lambda: (os.write(w, b'%d' % _thread.get_native_id()), time.sleep(600)), ())
    time.sleep(600)
ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(os.read(r, 20)), None, None)
os.kill(traced, 9)
time.sleep(600)"`);
  const killed = () =>
    [...treeOf([tracer])].find((pid) => {
      const threads = threadsOf(pid);
      return threads.length === 2 && threads.every((thread) => stateOf(`${pid}/task/${thread}`) === 'Z');
    });
  await eventually('only zombies are left', () => killed() !== undefined);
  const traced = killed() as number;

  await killSessionUntilGone(traced);

  expect(isAlive(traced)).toBe(false);
  expect(threadsOf(traced)).toHaveLength(2);
});

test('one that the kernel does not let die costs next to nothing, and keeps no other session waiting', {
  timeout: 180_000,
}, async () => {
  // Its tracer has it stop at its exit, SIGKILL or not, and never lets it go on.
  const tracer = startSession(`exec python3 -IS -c "
import ctypes, os, time
PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 0x4206, 0x40
held = os.fork()
if held == 0:
    os.setsid()
    time.sleep(600)
while os.getsid(held) != held: time.sleep(0.01)
ctypes.CDLL(None).ptrace(PTRACE_SEIZE, held, None, ctypes.c_void_p(PTRACE_O_TRACEEXIT))
os.kill(held, 9)
time.sleep(600)"`);
  const stopped = () => [...treeOf([tracer])].find((pid) => pid !== tracer && stateOf(pid) === 't');
  await eventually('it is stopped', () => stopped() !== undefined);
  const held = killSessionUntilGone(stopped() as number);
  const spentMs = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1_000;
  };
  const lookFromMs = spentMs();
  processesWith('nobody');
  const lookMs = spentMs() - lookFromMs;
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  const fromMs = spentMs();

  await new Promise((resolve) => setTimeout(resolve, 2_000));

  // Some looks at all processes, however many there are, and not one after the other.
  expect(spentMs() - fromMs).toBeLessThan(Math.max(400, 12 * lookMs));
  const command = uniqueSleep();
  const other = startSession(`(${command} &) ; ${command}`);
  await eventually('it runs', () => processesWith(command).length >= 2);
  await killSessionUntilGone(other);
  expect(processesWith(command)).toEqual([]);
  await killSessionUntilGone(tracer);
  await held;
});

test('many sessions are ended together, each when nothing of it is left, and one of them asked for twice as well', async () => {
  const command = uniqueSleep();
  const leaders = Array.from({ length: 20 }, () => startSession(`(${command} &) ; ${command}`));
  await eventually('all run', () => processesWith(command).length >= 40);

  const left = await Promise.all(
    [...leaders, leaders[0] as number].map(async (leader, index) => {
      // Some come while others are being ended.
      for (let turn = 0; turn < index; turn += 1) await new Promise(setImmediate);
      await killSessionUntilGone(leader);
      return isAlive(leader);
    }),
  );

  expect(left).toEqual(left.map(() => false));
  expect(processesWith(command)).toEqual([]);
});

test('nobody kills itself, the first process or everybody, whatever a guest says its id is', () => {
  const url = new URL('../src/processes.ts', import.meta.url);
  const script = `import { killSessionUntilGone, killTrees } from ${JSON.stringify(url.href)};
    const killed = killTrees([process.pid, 1, 0, -1]);
    await Promise.all([process.pid, 1, 0, -1].map(killSessionUntilGone));
    console.log(killed.size);`;

  expect(execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' })).toBe('0\n');
  expect(isAlive(process.pid)).toBe(true);
});

test('a child is one of that very process, not of one that has its id', async () => {
  const command = uniqueSleep();
  const leader = startSession(`${command} & wait`);
  await eventually('it has a child', () => treeOf([leader]).size === 2);
  const child = [...treeOf([leader])].at(-1) as number;
  const startTime = startTimeOf(leader) as string;

  expect(isChildOf(child, leader, startTime)).toBe(true);
  expect(isChildOf(child, leader, `${Number(startTime) - 1}`)).toBe(false);
});

if (!MAY_REUSE_IDS) console.info('left out, as only root may have process ids of its own: an id that is used again');

test.skipIf(!MAY_REUSE_IDS)('what was killed is gone, also when another process has its id now', () => {
  const killed = runWithOwnIds(`
    const killed = sleep();
    const began = startTimeOf(killed.pid);
    const left = killTrees([killed.pid]);
    await once(killed, 'exit');
    const other = await sleepAs(killed.pid, began);
    await untilGone(left);
    console.log(isAlive(other.pid));`);

  expect(killed).toBe('true\n');
});

test.skipIf(!MAY_REUSE_IDS)(
  'the first of all may have orphans beside its own children that are cells, which are none',
  () => {
    const directory = mkdtempSync(join(tmpdir(), 'elide-test-'));
    const program = join(directory, 'program.ts');
    const url = new URL('../src/processes.ts', import.meta.url);
    const goneParent = 2 ** 22;
    writeFileSync(
      program,
      `import { isChildOf } from ${JSON.stringify(url.href)};
    console.log(process.env.PIDS.split(' ').map((pid) => isChildOf(Number(pid), ${goneParent}, '0')).join());
    setInterval(() => {}, 1000);`,
    );

    const told = runWithOwnIds(`
    const start = async (...args) => {
      const child = spawn(args[0], args.slice(1), { stdio: ['ignore', 'pipe', 'ignore'] });
      const [text] = await once(child.stdout, 'data');
      return [child.pid, String(text).trim()];
    };
    const [, orphan] = await start('sh', '-c', 'sleep 600 & echo $!');
    const likeCell = (pids, ...args) => start('env', 'PIDS=' + pids, '${process.execPath}', '${program}', ...args);
    const [cell] = await likeCell('1', '/c/other.sock', '/c/other.token');
    const [sameProgram] = await likeCell('1');
    const [, told] = await likeCell([orphan, cell, sameProgram].join(' '), '/c/own.sock', '/c/own.token');
    console.log(told);`);
    rmSync(directory, { recursive: true });

    expect(told).toBe('perhaps,false,perhaps\n');
  },
);

test('a process is known by its start and that of the machine: another one that has its id is left alone', async () => {
  const command = uniqueSleep();
  const leader = startSession(`${command} & wait`);
  // With the shell, which is told of it.
  await eventually('it has a child', () => processesWith(command).length === 2);
  const name = processName(leader) as string;
  const [boot, pid, startTime, namespace] = name.split(' ');

  await endSessionOf(`${boot} ${pid} ${Number(startTime) - 1} ${namespace}`);
  await endSessionOf(`another ${pid} ${startTime} ${namespace}`);
  await endSessionOf('');

  expect(processesWith(command)).toHaveLength(2);
  expect(isSameProcess(leader, startTimeOf(leader))).toBe(true);
  expect(isSameProcess(leader, `${Number(startTime) - 1}`)).toBe(false);
  await endSessionOf(name);
  expect(processesWith(command)).toEqual([]);
  expect(isSameProcess(leader, startTime)).toBe(false);
});

test('a session without its leader is that of a name which was given here, and of none from elsewhere', async () => {
  const command = uniqueSleep();
  const leader = startSession(`${command} & wait`);
  await eventually('it has a child', () => processesWith(command).length === 2);
  const name = processName(leader) as string;
  process.kill(leader, 'SIGKILL');
  await eventually('its leader is gone', () => startTimeOf(leader) === undefined);
  const [boot, pid, startTime] = name.split(' ');

  await endSessionOf(`${boot} ${pid} ${startTime} elsewhere`);

  expect(sessionsLeft([`${boot} ${pid} ${startTime} elsewhere`])).toEqual([]);
  expect(processesWith(command)).toHaveLength(1);
  expect(sessionsLeft([name])).toEqual([leader]);
  await endSessionOf(name);
  expect(processesWith(command)).toEqual([]);
});

test.skipIf(!isRoot)('a name of a container that was started again means no session of the new one', () => {
  const url = new URL('../src/processes.ts', import.meta.url);
  // Its leader is gone once it has written down the id of what it leaves.
  const script = `import { spawnSync } from 'node:child_process';
    import { endSessionOf, isAlive, processName, sessionsLeft } from ${JSON.stringify(url.href)};
    const { pid, stdout } = spawnSync('setsid', ['sh', '-c', 'sleep 600 > /dev/null 2>&1 & echo $!'], { encoding: 'utf8' });
    const named = (name) => name.split(' ').with(1, pid).join(' ');
    const own = processName(process.pid);
    const [name = own] = process.argv.slice(1);
    const left = sessionsLeft([named(name)]).length;
    await endSessionOf(named(name));
    console.log(JSON.stringify([own, left, isAlive(Number(stdout))]));`;
  const inContainer = (...names: string[]) => {
    const node = [process.execPath, '--input-type=module', '-e', script, ...names];
    return JSON.parse(execFileSync('unshare', ['--pid', '--fork', '--mount-proc', ...node], { encoding: 'utf8' }));
  };

  const [name, ...itsOwn] = inContainer();

  expect(itsOwn).toEqual([1, false]);
  expect(inContainer(name).slice(1)).toEqual([0, true]);
});
