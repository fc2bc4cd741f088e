import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { DaemonUnderTest, PYTHON, pssMb, rssMb } from './daemon-under-test.ts';
import { show, spreadOf, table } from './statistics.ts';

const SLEEPERS = 100;
const ROUNDS = 3;
const SLEEP = {
  javascript: 'setTimeout(() => {}, 600_000)',
  typescript: 'const ms: number = 600_000; setTimeout(() => {}, ms)',
  python: 'import time\ntime.sleep(600)',
} as const;
/** The least that a thread for each can hold: worker threads of one process, and nothing else in it. */
const THREADS = `const { Worker } = require('node:worker_threads');
for (let count = 0; count < ${SLEEPERS}; count += 1) new Worker(${JSON.stringify(SLEEP.javascript)}, { eval: true });`;
/** What a Node process costs is settled once its first garbage is gone. */
const SETTLE_MS = 3_000;

/** What sleeping executions hold, cells, spares and zygotes included, against as many spawned processes. */
export async function memory(): Promise<string> {
  const rows: string[][] = [];
  for (const [language, code] of Object.entries(SLEEP)) {
    const ours: number[] = [];
    const theirs: number[] = [];
    const threads: number[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      ours.push(await ofExecutions(language, code));
      theirs.push(
        language === 'python'
          ? await ofProcesses(PYTHON, ['-c', code])
          : await ofProcesses(process.execPath, ['-e', SLEEP.javascript]),
      );
      if (language === 'javascript') threads.push(await ofProcesses(process.execPath, ['-e', THREADS], 1));
    }
    const [a, b] = [spreadOf(ours), spreadOf(theirs)];
    const least = threads.length > 0 ? show(spreadOf(threads), 2) : '';
    rows.push([language, show(a, 2), show(b, 2), (b.median / a.median).toFixed(2), least]);
  }
  return [
    '## Memory of sleeping executions',
    '',
    `${SLEEPERS} at once, MiB each: proportional set size of cells, spares, zygotes and guests over ${SLEEPERS};`,
    `against ${SLEEPERS} spawned processes doing the same; median (min-max) of ${ROUNDS} rounds in turn.`,
    '',
    table(['language', 'daemon', 'spawned', 'spawned over daemon', 'worker threads of one process, bare'], rows),
    '',
    await ofNothing(),
  ].join('\n');
}

async function ofExecutions(language: string, code: string): Promise<number> {
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s');
  const ids = await Promise.all(Array.from({ length: SLEEPERS }, () => daemon.execute('s', language, code)));
  await Promise.all(ids.map((id) => daemon.started('s', id)));
  await settle();
  return (await pssMb(await daemon.cellPids())) / SLEEPERS;
}

async function ofProcesses(program: string, args: string[], count = SLEEPERS): Promise<number> {
  const children: ChildProcess[] = [];
  for (let index = 0; index < count; index += 1) children.push(spawn(program, args, { stdio: 'ignore' }));
  await settle();
  const mb = (await pssMb(children.map(({ pid }) => pid as number))) / SLEEPERS;
  await Promise.all(
    children.map((child) => {
      child.kill('SIGKILL');
      return once(child, 'exit');
    }),
  );
  return mb;
}

/** A daemon and a session that nobody uses, and how long a daemon takes to be ready. */
async function ofNothing(): Promise<string> {
  const readyMs: number[] = [];
  const idleMb: number[] = [];
  const sessionMb: number[] = [];
  for (let round = 0; round < 5; round += 1) {
    await using daemon = await DaemonUnderTest.start();
    readyMs.push(daemon.readyMs);
    await settle();
    const before = await rssMb(daemon.pid);
    idleMb.push(before);
    for (let index = 0; index < 100; index += 1) await daemon.createSession(`s${index}`);
    await settle();
    const after = (await rssMb(daemon.pid)) + (await pssMb(await daemon.cellPids()));
    sessionMb.push(((after - before) * 1024) / 100);
  }
  return [
    '## The daemon itself',
    '',
    table(
      ['what', 'median (min-max)', 'aim'],
      [
        ['from spawn to ready, ms', show(spreadOf(readyMs), 0), 'below 400'],
        ['resident when idle, MiB', show(spreadOf(idleMb), 1), 'below 70'],
        ['a session that nobody uses, KiB', show(spreadOf(sessionMb), 0), ''],
      ],
    ),
  ].join('\n');
}

const settle = () => new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
