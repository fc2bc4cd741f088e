import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { afterEach, expect, test } from 'vitest';
import {
  endSessionOf,
  isAlive,
  isSameProcess,
  killSessionUntilGone,
  killTrees,
  processName,
  startTimeOf,
  treeOf,
  untilGone,
} from '../src/processes.ts';
import { eventually, processesWith } from './support/daemon.ts';

const children: ChildProcess[] = [];
afterEach(async () => {
  for (const { pid } of children.splice(0)) if (pid !== undefined) await killSessionUntilGone(pid);
});

/** A command line that no other process on this machine has. */
const uniqueSleep = () => `sleep 60${Math.floor(Math.random() * 1e9)}`;

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
  await eventually('it makes children', () => treeOf([root]).size > 20);

  const killed = killTrees([root]);
  await untilGone(killed);

  expect(killed.size).toBeGreaterThan(20);
  expect(processesWith(command)).toEqual([]);
});

test('a session is gone with those that left their parent', async () => {
  const command = uniqueSleep();
  const leader = startSession(`(${command} & ${command} &) ; wait; sleep 600`);
  await eventually('they have left', () => processesWith(command).length === 3);
  process.kill(leader, 'SIGKILL');
  await untilGone([leader]);
  expect(processesWith(command)).toHaveLength(2);

  await killSessionUntilGone(leader);

  expect(processesWith(command)).toEqual([]);
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

test('a process is known by its start and that of the machine: another one that has its id is left alone', async () => {
  const command = uniqueSleep();
  const leader = startSession(`${command} & wait`);
  // With the shell, which is told of it.
  await eventually('it has a child', () => processesWith(command).length === 2);
  const name = processName(leader) as string;
  const [boot, pid, startTime] = name.split(' ');

  await endSessionOf(`${boot} ${pid} ${Number(startTime) - 1}`);
  await endSessionOf(`another ${pid} ${startTime}`);
  await endSessionOf('');

  expect(processesWith(command)).toHaveLength(2);
  expect(isSameProcess(leader, startTimeOf(leader))).toBe(true);
  expect(isSameProcess(leader, `${Number(startTime) - 1}`)).toBe(false);
  await endSessionOf(name);
  expect(processesWith(command)).toEqual([]);
  expect(isSameProcess(leader, startTime)).toBe(false);
});
