import { readdirSync, readFileSync } from 'node:fs';
import { connectDaemon, type DaemonClient } from '../src/client/index.ts';
import { DaemonUnderTest, pssMb } from './daemon-under-test.ts';
import { pairs, show, showTail, spreadOf, table } from './statistics.ts';

const ROUNDS = 60;
/** Enough for the median of pairs to be right to 2 %: one hello may take three times another. */
const PAIRS = 400;
/** Before each: the spare that replaces the one before has booted by then, or whichever session has more is the faster one. */
const REFILL_MS = 100;
const MEASURED = 200;
const WATCH_MS = 10_000;
/** Watched before: what runs once a second is compiled in the first minute. */
const WATCH_WARM_UP_MS = 60_000;
const WATCH_ROUNDS = 4;
const BUSY = 8;
const TIMERS = 300;
const TIMER_MS = 200;
const SLEEPERS = 100;
const SETTLE_MS = 3_000;
/** Until V8 has given up collecting in threads that have gone to sleep. */
const DOZE_MS = 10_000;

const HELLO = { javascript: 'console.log("hello")', python: 'print("hello")' } as const;
const SLEEP = 'setInterval(() => {}, 1e6)';
const EVERYTHING = {
  timeoutMs: 60_000,
  queueTimeoutMs: 60_000,
  cpuTimeLimitMs: 60_000,
  memoryLimitMb: 512,
  memorySoftLimitMb: 256,
  outputLimitBytes: 1_000_000,
  processLimit: 100,
};

/** A hello under every limit there is, against one without any. */
export async function limits(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  using client = connectDaemon({ socket: daemon.socket });
  await client.createSession('free');
  await client.createSession('limited', { executionDefaults: EVERYTHING });
  let next = 0;
  const run = async (sessionId: string, language: keyof typeof HELLO) => {
    next += 1;
    const executionId = `e${next}`;
    await client.executeSnippet({ sessionId, executionId, language, code: HELLO[language] });
    const { result } = await client.wait(sessionId, executionId);
    if (result?.reason !== 'completed') throw new Error(`not completed: ${JSON.stringify(result)}`);
  };
  const rows: string[][] = [];
  for (const language of ['javascript', 'python'] as const) {
    for (let warmUp = 0; warmUp < 10; warmUp += 1) {
      await run('free', language);
      await run('limited', language);
    }
    const { none, all, ratio } = await pairs(PAIRS, () => settle(REFILL_MS), {
      none: () => run('free', language),
      all: () => run('limited', language),
    });
    rows.push([language, show(none, 2), show(all, 2), ratio]);
  }
  return [
    '## What limits cost',
    '',
    `A hello under all limits against one under none; ${PAIRS} pairs with spares ready, either first in turn; ms, median`,
    '(min-max); the median of the ratios in a pair, with where it lies at 95 %. Aim: below 1.10.',
    '',
    table(['language', 'none', 'all', 'ratio'], rows),
  ].join('\n');
}

/** The share of a core that watching many executions takes, of daemon and cells together. */
export async function metering(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  using client = connectDaemon({ socket: daemon.socket });
  const rows: string[][] = [];
  for (const [language, code] of [
    ['javascript', SLEEP],
    ['python', 'import time\ntime.sleep(600)'],
  ] as const) {
    await client.createSession(language);
    for (let count = 0; count < MEASURED; count += 1) {
      await client.executeSnippet({ sessionId: language, executionId: `e${count}`, language, code });
    }
    const session = await client.getSession(language);
    if (session.counts.running + session.counts.pending !== MEASURED) throw new Error('some have ended');
    while ((await client.getSession(language)).counts.pending > 0) await settle(100);
    await settle(DOZE_MS);
    const pids = [daemon.pid, ...(await daemon.cellPids())];
    const rounds = async () => {
      const shares: Share[] = [];
      for (let round = 0; round < WATCH_ROUNDS; round += 1) shares.push(await share(pids, () => settle(WATCH_MS)));
      return shares;
    };
    const unwatched = await rounds();
    const ended = new AbortController();
    const watching = watch(client, language, ended.signal);
    await settle(WATCH_WARM_UP_MS);
    const watched = await rounds();
    ended.abort();
    await watching;
    const differences = watched.map(({ all }, round) => all - (unwatched[round] as Share).all);
    const ofDaemon = watched.map(({ first }, round) => first - (unwatched[round] as Share).first);
    rows.push([
      language,
      show(spreadOf(unwatched.map(({ all }) => all))),
      show(spreadOf(watched.map(({ all }) => all))),
      show(spreadOf(differences)),
      show(spreadOf(ofDaemon)),
    ]);
    await client.deleteSession(language);
  }
  return [
    '## What metrics cost',
    '',
    `${MEASURED} sleeping executions, all of them not watched, then watched each second; ${WATCH_ROUNDS} times ${WATCH_MS / 1000} s of each, the first minute apart;`,
    'CPU time of daemon, cells and guests in percent of one core, median (min-max). Aim: 2 more than unwatched.',
    '',
    table(['language', 'unwatched', 'watched', 'difference', 'of that in the daemon'], rows),
  ].join('\n');
}

async function watch(client: DaemonClient, sessionId: string, signal: AbortSignal): Promise<void> {
  try {
    for await (const round of client.watchExecutionMetrics({ sessionId, signal })) {
      if (round.length !== MEASURED) throw new Error(`${round.length} measured`);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** How late the daemon's timers are while guests burn every core. */
export async function lateness(): Promise<string> {
  const rows: string[][] = [];
  for (const busy of [0, BUSY]) {
    await using daemon = await DaemonUnderTest.start();
    using client = connectDaemon({ socket: daemon.socket });
    await client.createSession('s');
    for (let count = 0; count < busy; count += 1) {
      const [language, code] = count % 2 === 0 ? ['javascript', 'for (;;);'] : ['python', 'while True: pass'];
      await client.executeSnippet({
        sessionId: 's',
        executionId: `busy${count}`,
        language: language as string,
        code: code as string,
      });
    }
    while ((await client.getSession('s')).counts.pending > 0) await settle(50);
    const late: number[] = [];
    for (let count = 0; count < TIMERS; count += 10) {
      const ids = Array.from({ length: 10 }, (_, index) => `t${count + index}`);
      // One that waits needs no core but the daemon's: what is late is its timer.
      await client.createSession(`w${count}`, { maxRunning: 1 });
      await client.executeSnippet({
        sessionId: `w${count}`,
        executionId: 'holder',
        language: 'python',
        code: 'import time\ntime.sleep(600)',
      });
      for (const executionId of ids) {
        await client.executeSnippet({
          sessionId: `w${count}`,
          executionId,
          language: 'python',
          code: '0',
          queueTimeoutMs: TIMER_MS,
        });
      }
      for (const executionId of ids) {
        const { times } = await client.wait(`w${count}`, executionId);
        late.push((times.exitedAtMs ?? 0) - times.acceptedAtMs - TIMER_MS);
      }
      await client.deleteSession(`w${count}`);
    }
    rows.push([String(busy), showTail(spreadOf(late), 0)]);
  }
  return [
    '## Timers under load',
    '',
    `How late ${TIMERS} limits of ${TIMER_MS} ms fire; ms, median / p99 / maximum. Aim: p99 below 50 with ${BUSY} busy guests.`,
    '',
    table(['busy guests', 'late'], rows),
  ].join('\n');
}

/** A JavaScript execution with a process of its own, against a thread of a shared one. */
export async function isolation(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  using client = connectDaemon({ socket: daemon.socket });
  let next = 0;
  const run = async (kind: 'thread' | 'process') => {
    next += 1;
    const snippet = { sessionId: 's', executionId: `e${next}`, language: 'javascript', code: HELLO.javascript };
    const calledMs = performance.now();
    let runsMs = Number.NaN;
    await client.executeSnippet({ ...snippet, isolation: kind });
    for await (const { state } of client.watchExecution('s', snippet.executionId)) {
      if (state === 'running') runsMs = performance.now() - calledMs;
    }
    return { runsMs, endedMs: performance.now() - calledMs };
  };
  await client.createSession('s');
  for (let warmUp = 0; warmUp < 5; warmUp += 1) {
    await run('thread');
    await run('process');
  }
  const runs: Record<'thread' | 'process', number[]> = { thread: [], process: [] };
  const ended: Record<'thread' | 'process', number[]> = { thread: [], process: [] };
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const kind of ['thread', 'process'] as const) {
      const { runsMs, endedMs } = await run(kind);
      runs[kind].push(runsMs);
      ended[kind].push(endedMs);
      await settle(300);
    }
  }
  const more = (of: typeof runs) => (spreadOf(of.process).median - spreadOf(of.thread).median).toFixed(2);
  const memory: Record<'thread' | 'process', number> = { thread: 0, process: 0 };
  for (const kind of ['thread', 'process'] as const) {
    await using own = await DaemonUnderTest.start();
    using ownClient = connectDaemon({ socket: own.socket });
    await ownClient.createSession('s');
    for (let index = 0; index < SLEEPERS; index += 1) {
      await ownClient.executeSnippet({
        sessionId: 's',
        executionId: `e${index}`,
        language: 'javascript',
        code: SLEEP,
        isolation: kind,
      });
    }
    while ((await ownClient.getSession('s')).counts.pending > 0) await settle(100);
    await settle(SETTLE_MS);
    memory[kind] = (await pssMb(await own.cellPids())) / SLEEPERS;
  }
  return [
    '## A thread, or a process',
    '',
    `A JavaScript hello from the call until it is heard to run, and to end, ms, ${ROUNDS} rounds in turn with spares ready;`,
    'memory of one that sleeps, spares included, MiB. Aim: given 5 ms later at most, twice the memory at most.',
    '',
    table(
      ['isolation', 'runs, median (min-max)', 'ends, median (min-max)', 'MiB each'],
      [
        ['thread', show(spreadOf(runs.thread), 2), show(spreadOf(ended.thread), 2), memory.thread.toFixed(1)],
        ['process', show(spreadOf(runs.process), 2), show(spreadOf(ended.process), 2), memory.process.toFixed(1)],
        ['difference, ratio', more(runs), more(ended), (memory.process / memory.thread).toFixed(2)],
      ],
    ),
  ].join('\n');
}

/** CPU time in percent of one core. */
interface Share {
  all: number;
  /** Of the first process alone. */
  first: number;
}

/** CPU time of some processes while something goes on; that of threads which end meanwhile does not count. */
async function share(pids: number[], during: () => Promise<unknown>): Promise<Share> {
  const startedMs = performance.now();
  const before = pids.map(threadsOf);
  await during();
  const elapsedMs = performance.now() - startedMs;
  const spent = pids.map((pid, index) => {
    const grown = [...threadsOf(pid)].map(([thread, ms]) => ms - (before[index]?.get(thread) ?? 0));
    return (grown.reduce((sum, part) => sum + part, 0) / elapsedMs) * 100;
  });
  return { all: spent.reduce((sum, part) => sum + part, 0), first: spent[0] as number };
}

/** CPU time of each thread of a process in ms, precise where ticks would not be: most of these use less than one a second. */
function threadsOf(pid: number): Map<string, number> {
  const ms = (thread: string) =>
    Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0]) / 1e6;
  return new Map(readdirSync(`/proc/${pid}/task`).map((thread) => [thread, ms(thread)]));
}

const settle = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
