import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Entry, JournaledEvent } from '../src/journal/entries.ts';
import { JournalStore } from '../src/journal/store.ts';
import { MARK_BYTES } from '../workers/output-writer.ts';
import { DaemonUnderTest, rssMb } from './daemon-under-test.ts';
import { inTurn, show, spreadOf, table } from './statistics.ts';

const ROUNDS = 60;
const CALLERS = 64;
const BURST = 320;
const BURSTS = 5;
const RESTARTS = 5;
const LIVE_CELLS = 100;
const FINISHED_ROWS = 100_000;
/** Of a daemon that is in use: live cells beside it. */
const SOME_ROWS = 10_000;
const DISK_HELLOS = 1_000;
const REST_LIMIT_MS = 30_000;
const ENDURANCE = { first: 10_000, last: 100_000, every: 10_000 };
const HELLO = { javascript: 'console.log("hello")', python: 'print("hello")' } as const;
const LEVELS = ['off', 'normal', 'full'] as const;

type Level = (typeof LEVELS)[number];

/** A hello, and many at once, at each durability. */
export async function journal(): Promise<string> {
  const daemons = {} as Record<Level, DaemonUnderTest>;
  await using stack = new AsyncDisposableStack();
  for (const durability of LEVELS) {
    daemons[durability] = stack.use(await DaemonUnderTest.start({ durability }));
    await daemons[durability].createSession('s');
  }
  const rows: string[][] = [];
  for (const [language, code] of Object.entries(HELLO)) {
    const run = (level: Level) => () => daemons[level].run('s', language, code);
    for (let warmUp = 0; warmUp < 10; warmUp += 1) for (const level of LEVELS) await run(level)();
    const times = await inTurn(ROUNDS, { off: run('off'), normal: run('normal'), full: run('full') });
    const rates: Record<Level, number[]> = { off: [], normal: [], full: [] };
    for (let burst = 0; burst < BURSTS; burst += 1) {
      for (const level of LEVELS) rates[level].push(await burstOf(daemons[level], language, code));
    }
    for (const level of LEVELS) {
      const rate = spreadOf(rates[level]);
      rows.push([
        `${language}, ${level}`,
        show(times[level], 2),
        (times[level].median / times.off.median).toFixed(2),
        show(rate, 0),
        (rate.median / spreadOf(rates.off).median).toFixed(2),
      ]);
    }
  }
  const { normal } = daemons;
  await atRest(normal);
  const before = bytesOf(normal.directory);
  for (let count = 0; count < DISK_HELLOS; count += 1) await normal.run('s', 'python', HELLO.python);
  await atRest(normal);
  const after = bytesOf(normal.directory);
  const perHello = (key: 'apparent' | 'allocated') => Math.round((after[key] - before[key]) / DISK_HELLOS);
  return [
    '## What the journal costs',
    '',
    `Daemons that differ in \`durability\`, side by side; a hello from call to final event, ${ROUNDS} rounds in turn, ms, and`,
    `hellos a second with ${CALLERS} callers, ${BURSTS} bursts of ${BURST}; median (min-max). Aims at \`normal\`: a hello at most`,
    '1.5 times as long, at least 0.70 of the throughput.',
    '',
    table(['durability', 'hello', 'ratio', 'hellos a second', 'ratio'], rows),
    '',
    `A finished hello leaves ${perHello('apparent')} bytes in files, ${perHello('allocated')} on disk (journal and output; aim: below 2,048).`,
  ].join('\n');
}

async function burstOf(daemon: DaemonUnderTest, language: string, code: string): Promise<number> {
  let left = BURST;
  const startedMs = performance.now();
  const caller = async () => {
    while (left > 0) {
      left -= 1;
      await daemon.run('s', language, code);
    }
  };
  await Promise.all(Array.from({ length: CALLERS }, caller));
  return (BURST * 1000) / (performance.now() - startedMs);
}

/** Resolves when a daemon has taken all small output into its journal. */
async function atRest({ directory }: DaemonUnderTest): Promise<void> {
  const output = join(directory, 'state', 'daemon', 'output');
  const limitMs = performance.now() + REST_LIMIT_MS;
  while (readdirSync(output).some((sessionKey) => readdirSync(join(output, sessionKey)).length > 0)) {
    if (performance.now() > limitMs) throw new Error(`small output is left in files after ${REST_LIMIT_MS} ms`);
    await sleep(50);
  }
}

/** What a directory holds, in bytes: by the lengths of its files, and in blocks of the disk. */
function bytesOf(directory: string): { apparent: number; allocated: number } {
  const du = (...flags: string[]) =>
    Number(execFileSync('du', ['-s', ...flags, directory], { encoding: 'utf8' }).split('\t')[0]);
  return { apparent: du('--apparent-size', '-B1'), allocated: du('-B1') };
}

/** From the start of a daemon until it is ready, on a directory that holds nothing, live cells, or many finished rows. */
export async function restart(): Promise<string> {
  await using stack = new AsyncDisposableStack();
  const start = async (directory?: string) =>
    stack.use(await DaemonUnderTest.start({ retainedExecutions: FINISHED_ROWS * 2 }, directory));
  const stopped = async () => {
    const daemon = await start();
    await daemon.end('SIGTERM');
    return daemon.directory;
  };
  const left = async (directory?: string) => {
    const daemon = await start(directory);
    await fillCells(daemon);
    await daemon.end('SIGKILL');
    return daemon.directory;
  };
  const finished = await stopped();
  fillJournal(finished, FINISHED_ROWS);
  const both = await stopped();
  fillJournal(both, SOME_ROWS);
  await left(both);
  const directories = {
    nothing: await stopped(),
    [`${FINISHED_ROWS} finished executions`]: finished,
    [`${LIVE_CELLS} live cells`]: await left(),
    [`${LIVE_CELLS} live cells and ${SOME_ROWS} finished executions`]: both,
  };
  const times: Record<string, number[]> = {};
  for (let round = 1; round <= RESTARTS; round += 1) {
    for (const [name, directory] of Object.entries(directories)) {
      const daemon = await start(directory);
      times[name] = [...(times[name] ?? []), daemon.readyMs];
      // The last one takes the cells with it.
      await daemon.end(round === RESTARTS ? 'SIGTERM' : 'SIGKILL');
    }
  }
  const spreads = Object.entries(times).map(([name, each]) => [name, spreadOf(each)] as const);
  const bare = spreads[0]?.[1].median ?? Number.NaN;
  return [
    '## Restart',
    '',
    `From spawn to ready, ${RESTARTS} rounds in turn, after SIGKILL; ms, median (min-max). Aims: below 1,000 with live cells,`,
    `below 2,000 with ${FINISHED_ROWS} finished executions in the journal.`,
    '',
    table(
      ['the directory holds', 'ready after', 'beyond nothing'],
      spreads.map(([name, spread]) => [name, show(spread, 0), (spread.median - bare).toFixed(0)]),
    ),
  ].join('\n');
}

async function fillCells(daemon: DaemonUnderTest): Promise<void> {
  for (let count = 0; count < LIVE_CELLS; count += 1) {
    await daemon.createSession(`s${count}`, 1);
    const id = await daemon.execute(`s${count}`, 'javascript', 'setInterval(() => {}, 1e6)');
    await daemon.started(`s${count}`, id);
  }
}

/** Puts finished executions into the journal of a daemon that is down. */
function fillJournal(directory: string, rows: number): void {
  const { store } = JournalStore.open(join(directory, 'state', 'daemon', 'journal.db'), 'normal');
  for (let number = 1; number <= rows; number += 1_000) {
    const numbers = Array.from({ length: 1_000 }, (_, index) => number + index);
    store.write(numbers.flatMap(finishedRow));
    store.seal(numbers.map((each) => ({ number: each, output: FINISHED_OUTPUT })));
  }
  store.close();
}

/** What a hello wrote. */
const FINISHED_OUTPUT = {
  stdout: Buffer.from('hello\n'),
  stderr: Buffer.alloc(0),
  marks: Buffer.alloc(MARK_BYTES),
  bornMs: { stdout: 1.7e12, stderr: 1.7e12 },
};

/** A finished hello, as the journal has it. */
function finishedRow(number: number): Entry[] {
  const execution = {
    number,
    executionKey: `key${String(number).padStart(9, '0')}`,
    sessionKey: 'sessionkey12',
    sessionId: 's',
    executionId: `e${number}`,
    language: 'python',
    fingerprint: 'x'.repeat(43),
    options: { graceMs: 5_000, timeoutSignal: 'SIGTERM', outputPolicy: 'truncate', isolation: 'thread' } as never,
    warnings: [],
    stdin: false,
    retention: undefined,
  };
  const times = { atMs: 1.7e12 + number, monotonicMs: number, rung: undefined, warning: undefined };
  const event = (sequence: number, state: JournaledEvent['state'], result?: JournaledEvent['result']) => ({
    ...times,
    sequence,
    state,
    result,
  });
  const names = ['userSeconds', 'systemSeconds', 'memoryBytes', 'peakMemoryBytes'];
  const usage = {
    ...Object.fromEntries(names.map((name) => [name, 123_456])),
    stdoutBytes: 6,
    stderrBytes: 0,
  } as never;
  const result = {
    reason: 'completed',
    rung: undefined,
    exitCode: 0,
    signal: undefined,
    message: undefined,
    usage,
  } as const;
  return [
    { type: 'execution.accepted', execution, request: { code: 'x' } as never, event: event(1, 'pending') },
    { type: 'execution.event', number, event: event(2, 'running') },
    { type: 'execution.event', number, event: event(3, 'exited', result) },
  ];
}

/** What a daemon holds from its ten-thousandth execution to its hundred-thousandth: V8 collects when it likes, so looked at often. */
export async function endurance(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s');
  const { first, last, every } = ENDURANCE;
  const looks = new Map<number, number[]>();
  for (let count = 0; count < last; count += BURST) {
    await burstOf(daemon, 'python', HELLO.python);
    if (count < first) continue;
    const from = Math.floor(count / every) * every;
    looks.set(from, [...(looks.get(from) ?? []), await rssMb(daemon.pid)]);
  }
  const rows = [...looks].map(([from, mb]) => ({ from, spread: spreadOf(mb) }));
  const [start, end] = [rows[0]?.spread.median ?? 0, rows.at(-1)?.spread.median ?? 0];
  return [
    '## Endurance',
    '',
    `Resident set of the daemon over ${last} executions, ${CALLERS} callers, looked at after each ${BURST}; MiB, median (min-max).`,
    `From the first row to the last it grows by ${(((end - start) / start) * 100).toFixed(1)} % (aim: below 5).`,
    '',
    table(
      ['executions', 'resident'],
      rows.map(({ from, spread }) => [`${from} to ${from + every}`, show(spread)]),
    ),
  ].join('\n');
}
