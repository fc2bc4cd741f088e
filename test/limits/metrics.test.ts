import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectDaemon, type DaemonClient, type ExecutionMetrics } from '../../src/index.ts';
import { eventually, TestDaemon, type TestExecution, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';

const MIB = 1024 * 1024;

let node: TestDaemon;
let session: TestSession;
let client: DaemonClient;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
  client = connectDaemon({ socket: node.endpoints.socket as string });
});
afterAll(async () => {
  client.close();
  await node[Symbol.asyncDispose]();
});

/** Uses so much CPU time, by the clock of its own thread or process, and says how much that was, in s. */
const BURN = {
  javascript: `const spent = () => { const { user, system } = process.threadCpuUsage(); return (user + system) / 1000; };
    const from = spent(); while (spent() - from < 300); console.log('ready', (spent() - from) / 1000);`,
  python: `import time
start = time.process_time()
while time.process_time() - start < 0.3: pass
print('ready', time.process_time() - start, flush=True)`,
};
const STAY = {
  javascript: 'setInterval(() => {}, 1000);',
  python: '\nimport time\ntime.sleep(60)',
};

const cpuSeconds = ({ userSeconds, systemSeconds } = { userSeconds: 0, systemSeconds: 0 }) =>
  userSeconds + systemSeconds;

const within = (value: number, expected: number, share: number) => Math.abs(value - expected) <= expected * share;

test.each(ENGINES)('300 ms of CPU time of a %s guest are 300 ms, live and in the result', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const execution = await session.ready({ ...asked, code: BURN[language] + STAY[language] });
  const idle = await session.ready({
    ...asked,
    code: `${{ javascript: 'console.log("ready");', python: 'print("ready", flush=True)' }[language]}${STAY[language]}`,
  });

  const live = await client.getExecutionMetrics(session.sessionId, execution.executionId);
  const other = await client.getExecutionMetrics(session.sessionId, idle.executionId);
  await execution.cancel({ signal: 'SIGKILL' });
  const { result, stdout } = await execution.end();

  // What the guest's own start takes is its own as well, more or less the same of each.
  const base = cpuSeconds(other);
  const burnt = Number(/ready (\S+)/.exec(stdout)?.[1]);
  for (const usage of [live, result.usage]) {
    expect(cpuSeconds(usage)).toBeGreaterThan(burnt * 0.95);
    expect(cpuSeconds(usage) - base).toBeLessThan(burnt * 1.1 + 0.1);
  }
  expect(base).toBeLessThan(0.3);
  expect(live).toMatchObject({ complete: false, processes: expect.any(Number) });
  await idle.cancel({ signal: 'SIGKILL' });
});

test.each([
  ['javascript', 'buffers', 'const held = Buffer.alloc(100 << 20, 1);'],
  ['javascript', 'heap', 'const held = Array.from({ length: 100 }, () => new Array((1 << 20) / 8).fill(1.5));'],
  [
    'javascript',
    'WebAssembly',
    'const held = new WebAssembly.Memory({ initial: 1600, maximum: 1600 }); new Uint8Array(held.buffer).fill(1);',
  ],
  ['python', 'bytes', 'held = bytearray(b"x") * (100 << 20)'],
] as const)('100 MiB that a %s guest holds as %s are 100 MiB, live and in the result', async (language, _, hold) => {
  const say = { javascript: 'console.log("ready");', python: '\nprint("ready", flush=True)' }[language];
  const idle = await session.ready({ language, code: say + STAY[language] });
  const execution = await session.ready({ language, code: hold + say + STAY[language] });

  const base = await client.getExecutionMetrics(session.sessionId, idle.executionId);
  const live = await client.getExecutionMetrics(session.sessionId, execution.executionId);
  await execution.cancel({ signal: 'SIGKILL' });
  const { result } = await execution.end();

  expect(live.memoryBytes - base.memoryBytes).toSatisfy((bytes: number) => within(bytes, 100 * MIB, 0.1));
  expect(live.peakMemoryBytes).toBeGreaterThanOrEqual(live.memoryBytes);
  expect((result.usage?.peakMemoryBytes ?? 0) - base.memoryBytes).toSatisfy((bytes: number) =>
    within(bytes, 100 * MIB, 0.1),
  );
  await idle.cancel({ signal: 'SIGKILL' });
});

test('a guest that is stuck in native code is measured all the same, and soon', async () => {
  const execution = await session.ready(
    'console.log("ready"); require("crypto").pbkdf2Sync("a", "b", 5e7, 64, "sha512")',
  );
  const fromMs = performance.now();

  const first = await client.getExecutionMetrics(session.sessionId, execution.executionId);
  let second = first;
  while (second.userSeconds < first.userSeconds + 0.05 && performance.now() - fromMs < 40_000) {
    second = await client.getExecutionMetrics(session.sessionId, execution.executionId);
  }

  expect(second.userSeconds).toBeGreaterThanOrEqual(first.userSeconds + 0.05);
  await execution.cancel({ signal: 'SIGKILL' });
  await execution.end();
});

test('what a guest used that goes with its cell is told, and what its neighbour did', async () => {
  // Of its last figures the cell is asked when half of the time for force is over, and may be late with the answer.
  await using patient = await TestDaemon.start({ forcedLimitMs: 2_500 });
  const alone = await patient.session();
  const neighbour = await alone.ready({ language: 'javascript', code: BURN.javascript + STAY.javascript });
  const execution = await alone.ready(`
    process.on('SIGTERM', () => {});
    console.log('ready');
    require('crypto').pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');`);

  await execution.cancel({ graceMs: 200 });
  const { result } = await execution.end();
  const { result: lost } = await neighbour.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'cell' });
  // It was at work all the time, as far as it got a processor.
  expect(cpuSeconds(result.usage)).toBeGreaterThan(0.05);
  expect(lost).toMatchObject({ reason: 'cell_lost' });
  expect(cpuSeconds(lost.usage)).toBeGreaterThan(0.27);
});

test('one that waits has used nothing, one that has exited keeps its last figures, one that is unknown is not found', async () => {
  await using busy = await TestDaemon.start({ maxRunning: 1 });
  const one = await busy.session();
  const holder = await one.ready('console.log("ready"); setInterval(() => {}, 1000)');
  const waiting = await one.submit('0');

  expect(await busy.daemon.getExecutionMetrics(one.sessionId, waiting.executionId)).toMatchObject({
    userSeconds: 0,
    memoryBytes: 0,
    complete: false,
  });
  await holder.cancel({ signal: 'SIGKILL' });
  const { result, snapshot } = await holder.end();
  const last = await busy.daemon.getExecutionMetrics(one.sessionId, holder.executionId);
  expect(last).toMatchObject({ ...result.usage, complete: true, atMs: snapshot.times.exitedAtMs });
  expect(last.stdoutBytes).toBe(6);
  await expect(busy.daemon.getExecutionMetrics(one.sessionId, 'nope')).rejects.toThrow(/execution "nope" not found/);
});

test('the watch of one execution ends with its final figures', async () => {
  const execution = await session.ready('console.log("ready"); setInterval(() => {}, 1000)');
  const rounds: boolean[] = [];

  const watch = client.watchExecutionMetrics({
    sessionId: session.sessionId,
    executionId: execution.executionId,
    intervalMs: 100,
  });
  for await (const round of watch) {
    rounds.push(...round.map(({ complete }) => complete));
    if (rounds.length === 3) await execution.cancel({ signal: 'SIGKILL' });
  }

  expect(rounds.length).toBeGreaterThanOrEqual(4);
  expect(rounds.indexOf(true)).toBe(rounds.length - 1);
});

test('the watch of all shows each that runs, with the CPU share of the last interval', async () => {
  const busy = await session.ready('console.log("ready"); for (;;);');
  const idle = await session.ready('console.log("ready"); setInterval(() => {}, 1000)');
  const shares = new Map<string, number>();

  for await (const round of client.watchExecutionMetrics({ sessionId: session.sessionId, intervalMs: 300 })) {
    const before = shares.size;
    for (const { executionId, cpuPercent } of round) shares.set(executionId, cpuPercent);
    // How much a busy one gets depends on who else wants the cores: there may be none for it for a while.
    if (before > 0 && (shares.get(busy.executionId) ?? 0) > 2) break;
  }

  expect([...shares.keys()].sort()).toEqual([busy.executionId, idle.executionId].sort());
  expect(shares.get(busy.executionId)).toBeGreaterThan(2);
  expect(shares.get(idle.executionId)).toBeLessThan((shares.get(busy.executionId) as number) / 2);
  for (const execution of [busy, idle]) await execution.cancel({ signal: 'SIGKILL' });
});

/** Says that it was woken, and ends when it is woken again. */
const WAKES = {
  javascript: `console.log('ready');
    process.stdin.once('data', () => { console.log('woken'); process.stdin.once('data', () => process.exit(0)); });`,
  python: `import sys
print('ready', flush=True)
sys.stdin.readline()
print('woken', flush=True)
sys.stdin.readline()`,
};
const WORKS = {
  javascript: 'console.log("ready"); setInterval(() => { for (let n = 0; n < 1e6; n += 1); }, 10)',
  python: `import time
print('ready', flush=True)
while True:
    time.sleep(0.01)
    sum(range(20_000))`,
};

// Which of the threads of a process works nobody sees from outside: those of one session sleep together.
test.each([
  ['javascript', 'thread', 'in another session'],
  ['javascript', 'process', 'beside it'],
  ['python', undefined, 'beside it'],
] as const)(
  'who sleeps (%s %s), while others work %s, is left out of partial rounds until it wakes or ends, and a client makes them whole',
  async (language, isolation, where) => {
    await using own = await TestDaemon.start();
    using whole = connectDaemon({ socket: own.endpoints.socket as string });
    const quiet = await own.session();
    const lively = where === 'beside it' ? quiet : await own.session();
    const asked = { language, ...(isolation && { isolation }) };
    const busy = await lively.ready({ ...asked, code: WORKS[language] });
    const sleeper = await quiet.ready({ ...asked, code: WAKES[language], stdin: true });
    const stop = new AbortController();
    const collect = (rounds: AsyncIterable<ExecutionMetrics[]>) => {
      const seen: ExecutionMetrics[][] = [];
      const over = (async () => {
        for await (const round of rounds) seen.push(round);
      })().catch(() => {});
      return { seen, over };
    };
    const of = (round: ExecutionMetrics[] | undefined, { sessionId, executionId }: TestExecution) =>
      round?.find((metrics) => metrics.sessionId === sessionId && metrics.executionId === executionId);
    const options = { intervalMs: 200, signal: stop.signal };
    const partial = collect(own.daemon.watchExecutionMetrics({ ...options, allowPartial: true }));
    const made = collect(whole.watchExecutionMetrics(options));
    const isLeftOut = () => of(partial.seen.at(-1), sleeper) === undefined;

    await eventually('it is told of', () => of(partial.seen[0], sleeper) !== undefined && made.seen.length > 0);
    await eventually('it is left out', isLeftOut);
    const asleep = partial.seen.length;
    const begun = made.seen.length;
    await eventually('some rounds', () => made.seen.length > begun + 3);
    await own.daemon.writeInput(quiet.sessionId, sleeper.executionId, Buffer.from('\n'));
    // It may be asleep once more before anybody looks.
    await eventually('it is told of again', () => partial.seen.slice(asleep).some((round) => of(round, sleeper)));
    await eventually('what it wrote is seen', () => of(made.seen.at(-1), sleeper)?.stdoutBytes === 12);
    await own.daemon.writeInput(quiet.sessionId, sleeper.executionId, Buffer.from('\n'));
    await sleeper.end();
    await eventually('its last figures', () => partial.seen.flat().some(({ complete }) => complete));
    const ended = made.seen.length;
    await eventually('some rounds without it', () => made.seen.length > ended + 2);
    stop.abort();
    await Promise.all([partial.over, made.over]);

    const told = partial.seen.map((round) => of(round, sleeper));
    expect(told.slice(0, asleep).findLast((metrics) => metrics !== undefined)?.cpuPercent).toBe(0);
    expect(partial.seen.every((round) => of(round, busy) !== undefined)).toBe(true);
    const figures = made.seen.map((round) => of(round, sleeper));
    const until = figures.findIndex((metrics) => metrics?.complete);
    expect(figures.slice(0, until + 1).every((metrics) => metrics !== undefined)).toBe(true);
    expect(figures.slice(until + 1).every((metrics) => metrics === undefined)).toBe(true);
    const times = figures.slice(0, until).map((metrics) => metrics?.atMs as number);
    expect(times).toEqual([...new Set(times)].sort((a, b) => a - b));
    for (const { atMs, cpuPercent } of figures.slice(begun, begun + 3) as ExecutionMetrics[]) {
      expect(cpuPercent, `at ${atMs}`).toBeLessThan(1);
    }
    await busy.cancel({ signal: 'SIGKILL' });
  },
);

test('the CPU share is that of the interval: what was used before counts no more', async () => {
  const code = `${BURN.javascript} setInterval(() => {}, 1000);`;
  const execution = await session.ready(code);
  const rounds: ExecutionMetrics[] = [];

  const { sessionId } = session;
  const { executionId } = execution;
  for await (const [metrics] of client.watchExecutionMetrics({ sessionId, executionId, intervalMs: 100 })) {
    rounds.push(metrics as ExecutionMetrics);
    if (rounds.length === 4) break;
  }
  await execution.cancel({ signal: 'SIGKILL' });
  const { snapshot } = await execution.end();

  const startedMs = snapshot.times.startedAtMs as number;
  for (const [index, metrics] of rounds.entries()) {
    const before = rounds[index - 1];
    const usedSeconds = cpuSeconds(metrics) - cpuSeconds(before);
    expect(metrics.cpuPercent).toBeCloseTo((usedSeconds * 100_000) / (metrics.atMs - (before?.atMs ?? startedMs)), 3);
  }
  expect(cpuSeconds(rounds[3] as ExecutionMetrics)).toBeGreaterThan(0.27);
  expect(rounds[3]?.cpuPercent).toBeLessThan(100);
});

test.each([
  [{ intervalMs: 3_600_001 }, /interval_ms is 3600001; it must be 100 to 3600000/],
  [{ intervalMs: 99 }, /interval_ms is 99; it must be 100 to 3600000/],
  [{ executionId: 'x' }, /execution_id without session_id/],
  [{ sessionId: 'nope' }, /session "nope" not found/],
])('a watch of %j is refused', async (options, message) => {
  await expect(client.watchExecutionMetrics(options).next()).rejects.toThrow(message);
});
