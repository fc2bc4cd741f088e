import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { BareServer, ForkServer } from './bare.ts';
import { DaemonUnderTest, PYTHON } from './daemon-under-test.ts';
import { inTurn, show, spreadOf, table } from './statistics.ts';

const ROUNDS = 60;
const CALLERS = 64;
const BURST = 640;
const HELLO = { javascript: 'console.log("hello")', python: 'print("hello")' } as const;

/** How many bare unary calls a hello may cost beyond the guest's own start. */
const CALLS_ALLOWED = 5;

/**
 * A hello from call to final event: against an interpreter spawned for it, and against what no daemon could do without,
 * a few bare unary calls and the guest's own start.
 */
export async function hello(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  await using bare = await BareServer.start();
  await using zygote = await ForkServer.start();
  await daemon.createSession('s');
  for (let warmUp = 0; warmUp < 10; warmUp += 1) {
    for (const [language, code] of Object.entries(HELLO)) await daemon.run('s', language, code);
    await bare.call();
    await zygote.run(HELLO.python);
  }
  // In this order: a spare context is booted while node and python3 run, and there is none right after `javascript`.
  const times = await inTurn(ROUNDS, {
    echo: () => bare.call(),
    health: () => health(daemon),
    javascript: () => daemon.run('s', 'javascript', HELLO.javascript),
    again: () => daemon.run('s', 'javascript', HELLO.javascript),
    node: () => spawned(process.execPath, ['-e', HELLO.javascript]),
    thread: () => thread(HELLO.javascript),
    python: () => daemon.run('s', 'python', HELLO.python),
    python3: () => spawned(PYTHON, ['-c', HELLO.python]),
    fork: () => zygote.run(HELLO.python),
  });
  const row = (name: string, of: keyof typeof times, against?: keyof typeof times, start?: keyof typeof times) => [
    name,
    show(times[of], 2),
    against ? `${(times[against].median / times[of].median).toFixed(1)}x faster than ${against}` : '',
    start ? (times[of].median / (CALLS_ALLOWED * times.echo.median + times[start].median)).toFixed(2) : '',
  ];
  return [
    '## Hello, from call to final event',
    '',
    `One caller on a unix socket; ${ROUNDS} rounds in turn; ms. The last column is the share of an allowance:`,
    `${CALLS_ALLOWED} bare unary calls and the bare start of such a guest (aim: at most 1).`,
    '',
    table(
      ['what', 'median (min-max)', 'ratio of medians', 'of the allowance'],
      [
        row('bare unary call (a grpc-js server that does nothing else)', 'echo'),
        row('unary call to the daemon that does nothing (Health)', 'health'),
        row('bare start: a worker thread from `new Worker` to its exit', 'thread'),
        row('JavaScript', 'javascript', 'node', 'thread'),
        row('JavaScript, right after another one', 'again', 'node', 'thread'),
        row('`node -e`, spawned', 'node'),
        row('bare start: a fork of a running Python to its exit', 'fork'),
        row('Python', 'python', 'python3', 'fork'),
        row('`python3 -c`, spawned', 'python3'),
      ],
    ),
  ].join('\n');
}

/** Hellos per second with many callers. */
export async function throughput(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s', 64);
  const rows: string[][] = [];
  for (const [language, code] of Object.entries(HELLO)) {
    const ours: number[] = [];
    const theirs: number[] = [];
    const program = language === 'python' ? PYTHON : process.execPath;
    const flag = language === 'python' ? '-c' : '-e';
    for (let round = 0; round < 3; round += 1) {
      ours.push(await perSecond(BURST, () => daemon.run('s', language, code)));
      theirs.push(await perSecond(BURST / 4, () => spawned(program, [flag, code])));
    }
    const [a, b] = [spreadOf(ours), spreadOf(theirs)];
    rows.push([language, show(a, 0), show(b, 0), `${(a.median / b.median).toFixed(1)}x`]);
  }
  return [
    `## Throughput with ${CALLERS} callers`,
    '',
    'Hellos per second, call to final event; against the interpreter spawned for each.',
    '',
    table(['language', 'daemon, median (min-max)', 'spawned', 'ratio'], rows),
  ].join('\n');
}

async function perSecond(count: number, run: () => Promise<unknown>): Promise<number> {
  let left = count;
  const startedMs = performance.now();
  const caller = async () => {
    while (left > 0) {
      left -= 1;
      await run();
    }
  };
  await Promise.all(Array.from({ length: CALLERS }, caller));
  return count / ((performance.now() - startedMs) / 1000);
}

function health({ client }: DaemonUnderTest): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  client.health({}, (error) => (error ? reject(error) : resolve()));
  return promise;
}

async function spawned(program: string, args: string[]): Promise<void> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  child.stdout.resume();
  await once(child, 'close');
}

async function thread(code: string): Promise<void> {
  const worker = new Worker(code, { eval: true, stdout: true });
  worker.stdout.resume();
  await once(worker, 'exit');
}
