import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { DaemonUnderTest, PYTHON } from './daemon-under-test.ts';
import { inTurn, show, spreadOf, table } from './statistics.ts';

const ROUNDS = 60;
const CALLERS = 64;
const BURST = 640;
const HELLO = { javascript: 'console.log("hello")', python: 'print("hello")' } as const;

/** A hello from call to final event, against an interpreter spawned for it and a bare unary call. */
export async function hello(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s');
  for (const [language, code] of Object.entries(HELLO)) {
    for (let warmUp = 0; warmUp < 10; warmUp += 1) await daemon.run('s', language, code);
  }
  // In this order: a spare context is booted while node and python3 run, and there is none right after `javascript`.
  const times = await inTurn(ROUNDS, {
    echo: () => echo(daemon),
    javascript: () => daemon.run('s', 'javascript', HELLO.javascript),
    again: () => daemon.run('s', 'javascript', HELLO.javascript),
    node: () => spawned(process.execPath, ['-e', HELLO.javascript]),
    python: () => daemon.run('s', 'python', HELLO.python),
    python3: () => spawned(PYTHON, ['-c', HELLO.python]),
  });
  const row = (name: string, of: keyof typeof times, against?: keyof typeof times) => [
    name,
    show(times[of], 2),
    against ? `${(times[against].median / times[of].median).toFixed(1)}x faster than ${against}` : '',
  ];
  return [
    '## Hello, from call to final event',
    '',
    `One caller on a unix socket; ${ROUNDS} rounds in turn; ms.`,
    '',
    table(
      ['what', 'median (min-max)', 'ratio of medians'],
      [
        row('unary call that does nothing (Health)', 'echo'),
        row('JavaScript', 'javascript', 'node'),
        row('JavaScript, right after another one', 'again', 'node'),
        row('`node -e`, spawned', 'node'),
        row('Python', 'python', 'python3'),
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

function echo({ client }: DaemonUnderTest): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  client.health({}, (error) => (error ? reject(error) : resolve()));
  return promise;
}

async function spawned(program: string, args: string[]): Promise<void> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  child.stdout.resume();
  await once(child, 'close');
}
