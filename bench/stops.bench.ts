import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as settle } from 'node:timers/promises';
import { connectDaemon, type DaemonClient } from '../src/client/index.ts';
import { BareServer } from './bare.ts';
import { BareThread } from './bare-thread.ts';
import { DaemonUnderTest, PYTHON } from './daemon-under-test.ts';
import { showTail, spreadOf, table } from './statistics.ts';
import { undisturbed } from './stolen.ts';

const GENTLE = 500;
/** Stops of each kind that are not counted: V8 compiles what a daemon does often, and one runs for months. */
const WARM_UP = 50;
const FORCED = 2_000;
const CELLS = 60;
const AT_ONCE = 1_000;
const THREADS_AT_ONCE = 400;
const ROUNDS_AT_ONCE = 3;
/** How many run at one time while stops are timed one by one. */
const BATCH = 100;
const GRACE_MS = 50;
/** Before each gentle stop: the spare that replaces a started one has booted by then, so that the machine is idle. */
const SETTLE_MS = 80;

const EXITING = {
  javascript: `process.on('SIGTERM', () => { console.log(performance.timeOrigin + performance.now()); process.exit(3); });
    console.log('ready'); setInterval(() => {}, 1e6);`,
  python: `import signal, sys, time
def leave(*_):
    print(time.time() * 1000)
    sys.exit(3)
signal.signal(signal.SIGTERM, leave)
print('ready', flush=True)
while True: time.sleep(1000)`,
} as const;
const DEAF = {
  javascript: `process.on('SIGTERM', () => {}); console.log('ready'); setInterval(() => {}, 1e6);`,
  python: `import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
while True: time.sleep(1000)`,
} as const;
/** Native code that goes on for seconds: only the end of its process ends it. */
const STUCK = `console.log('ready'); 'x'.repeat(2 ** 28).replace(/x/g, 'yy');`;

/** From the call that stops to the guest's handler, to the end as the client hears it, and how late force is. */
export async function stops(): Promise<string> {
  const gentle: string[][] = [];
  const forced: string[][] = [];
  for (const language of ['javascript', 'python'] as const) {
    await using daemon = await DaemonUnderTest.start();
    using client = connectDaemon({ socket: daemon.socket });
    const runner = await Runner.create(client, language);
    gentle.push(rowOf(language, await runner.gently()));
    await using server = await BareServer.start();
    for (let count = 0; count < WARM_UP; count += 1) await server.call();
    if (language === 'javascript') {
      gentle.push(rowOf('javascript, a thread of its own', await bareThreads(BareThread.start)));
      gentle.push(rowOf('the same, of a gRPC server', await bareThreads(() => threadOf(server))));
    }
    const byHand = await bareStops(language, (child) => void child.kill('SIGTERM'));
    gentle.push(rowOf(`${language}, a process of its own`, byHand));
    const byServer = await bareStops(language, (child) => server.call(`${child.pid as number}`));
    gentle.push(rowOf('the same, by a gRPC server', byServer));
    const late = spreadOf(await runner.forcibly(FORCED));
    forced.push([language, String(FORCED), showTail(late), late.p999.toFixed(1), 'p99.9 below 50']);
  }
  forced.push(await throughTheCell());
  const atOnce = [await allAtOnce('python', AT_ONCE), await allAtOnce('javascript', THREADS_AT_ONCE)];
  return [
    '## Stops',
    '',
    `From the call to the guest's handler, and to its end as the client hears it (aim: p99 below 10 ms on an idle machine);`,
    `${GENTLE} one after the other, ${WARM_UP} before them not counted; ms, median / p99 / maximum. Against an interpreter of`,
    'its own for each, spawned and sent the signal by its parent; by a gRPC server that its parent calls, which does',
    'nothing else; and against a thread that is sent a message, of this process and of a gRPC server that is called for that.',
    'Undisturbed: the host took no processor time from this machine meanwhile.',
    '',
    table(
      [
        'language',
        'handler runs',
        'end is heard',
        'undisturbed',
        'handler runs, undisturbed',
        'end is heard, undisturbed',
      ],
      gentle,
    ),
    '',
    `How long after the grace period of ${GRACE_MS} ms a guest that does not listen is gone; one stop at a time among`,
    `${BATCH} guests; ms.`,
    '',
    table(['guest', 'stops', 'late: median / p99 / maximum', 'p99.9', 'aim'], forced),
    '',
    `Many that do not listen, stopped at once with the same grace period: ms until all are gone, ${ROUNDS_AT_ONCE} rounds.`,
    '',
    table(['language', 'stops', 'all are gone after (aim: 1000 within 3 s)', 'through their cell (aim: none)'], atOnce),
  ].join('\n');
}

/** One stop. */
interface Stop {
  /** From the call to the guest's handler, in ms; undefined where nobody notes it. */
  seenMs?: number;
  /** From the call to when its end is heard, in ms. */
  endedMs: number;
  undisturbed: boolean;
}

function rowOf(what: string, stops: Stop[]): string[] {
  const quiet = stops.filter((stop) => stop.undisturbed);
  return [what, ...tailsOf(stops), String(quiet.length), ...tailsOf(quiet)];
}

function tailsOf(stops: Stop[]): string[] {
  const seen = stops.flatMap(({ seenMs }) => seenMs ?? []);
  return [seen.length > 0 ? showTail(spreadOf(seen)) : '', showTail(spreadOf(stops.map(({ endedMs }) => endedMs)))];
}

/** Threads that leave when they are told to, and next to nothing between them and who waits for their end. */
async function bareThreads(start: () => Promise<{ leave(): Promise<void> }>): Promise<Stop[]> {
  const stops: Stop[] = [];
  for (let count = 0; count < GENTLE; count += 1) {
    const thread = await start();
    await settle(SETTLE_MS);
    let endedMs = 0;
    const quiet = await undisturbed(async () => {
      const startedMs = performance.now();
      await thread.leave();
      endedMs = performance.now() - startedMs;
    });
    stops.push({ endedMs, undisturbed: quiet });
  }
  return stops;
}

async function threadOf(server: BareServer): Promise<{ leave(): Promise<void> }> {
  await server.call('thread');
  return { leave: () => server.call('leave') };
}

/** The same guests as children of this process, which are sent the signal by `send`. */
async function bareStops(language: 'javascript' | 'python', send: (child: ChildProcess) => unknown): Promise<Stop[]> {
  const stops: Stop[] = [];
  const [program, flag] = language === 'javascript' ? [process.execPath, '-e'] : [PYTHON, '-c'];
  for (let count = 0; count < GENTLE; count += 1) {
    const child = spawn(program, [flag, EXITING[language]], { stdio: ['ignore', 'pipe', 'inherit'] });
    let written = '';
    child.stdout.on('data', (data) => {
      written += data;
    });
    await once(child.stdout, 'data');
    await settle(SETTLE_MS);
    const closed = once(child, 'close');
    const exited = once(child, 'exit').then(() => performance.now());
    let [startedMs, endedMs] = [0, 0];
    const quiet = await undisturbed(async () => {
      startedMs = performance.now();
      await send(child);
      endedMs = (await exited) - startedMs;
    });
    await closed;
    stops.push({ seenMs: seenMs(written, startedMs), endedMs, undisturbed: quiet });
  }
  return stops;
}

/** The guest's second line is when its handler ran, in Unix ms. */
function seenMs(written: string, startedMs: number): number {
  return Number(written.split('\n')[1]) - performance.timeOrigin - startedMs;
}

/** Starts guests in one session and stops them. */
class Runner {
  readonly #client: DaemonClient;
  readonly #language: 'javascript' | 'python';
  #next = 0;

  private constructor(client: DaemonClient, language: 'javascript' | 'python') {
    this.#client = client;
    this.#language = language;
  }

  static async create(client: DaemonClient, language: 'javascript' | 'python'): Promise<Runner> {
    await client.createSession('s');
    const runner = new Runner(client, language);
    for (let count = 0; count < WARM_UP; count += 1) await runner.stop(await runner.start(EXITING[language]), 1_000);
    return runner;
  }

  async start(code: string): Promise<string> {
    this.#next += 1;
    const executionId = `e${this.#next}`;
    await this.#client.executeSnippet({ sessionId: 's', executionId, language: this.#language, code });
    await this.#printed(executionId);
    return executionId;
  }

  /** Resolves with how long the stop took to be heard as the end, by one who waits already, in ms. */
  async stop(
    executionId: string,
    graceMs: number,
    end: Promise<unknown> = this.#client.wait('s', executionId),
  ): Promise<number> {
    const startedMs = performance.now();
    await this.#client.cancelExecution('s', executionId, { graceMs });
    await end;
    return performance.now() - startedMs;
  }

  async gently(): Promise<Stop[]> {
    const stops: Stop[] = [];
    for (let count = 0; count < GENTLE; count += 1) {
      const executionId = await this.start(EXITING[this.#language]);
      const end = this.#client.wait('s', executionId);
      await settle(SETTLE_MS);
      let [startedMs, endedMs] = [0, 0];
      const quiet = await undisturbed(async () => {
        startedMs = performance.now();
        endedMs = await this.stop(executionId, 5_000, end);
      });
      const written = await this.#printed(executionId);
      stops.push({ seenMs: seenMs(written, startedMs), endedMs, undisturbed: quiet });
    }
    return stops;
  }

  async forcibly(stops: number): Promise<number[]> {
    const late: number[] = [];
    while (late.length < stops) {
      const ids: string[] = [];
      while (ids.length < BATCH) {
        ids.push(...(await Promise.all(Array.from({ length: 10 }, () => this.start(DEAF[this.#language])))));
      }
      for (const id of ids) late.push((await this.stop(id, GRACE_MS)) - GRACE_MS);
    }
    return late;
  }

  async #printed(executionId: string): Promise<string> {
    let text = '';
    for await (const { data } of this.#client.streamOutput('s', executionId)) {
      text += data.toString();
      if (text.includes('ready')) break;
    }
    if (!text.includes('ready')) throw new Error(`${executionId} printed ${JSON.stringify(text)}`);
    if (text.split('\n').length > 2) return text;
    // After the end: all of it.
    for await (const { data } of this.#client.streamOutput('s', executionId, {
      follow: false,
      stdoutPosition: text.length,
    })) {
      text += data.toString();
    }
    return text;
  }
}

async function throughTheCell(): Promise<string[]> {
  await using daemon = await DaemonUnderTest.start();
  using client = connectDaemon({ socket: daemon.socket });
  const runner = await Runner.create(client, 'javascript');
  const late: number[] = [];
  for (let count = 0; count < CELLS; count += 1) {
    late.push((await runner.stop(await runner.start(STUCK), GRACE_MS)) - GRACE_MS);
  }
  const spread = spreadOf(late);
  return [
    'javascript, stuck in native code: its cell is killed',
    String(CELLS),
    showTail(spread),
    spread.p999.toFixed(1),
    'all below 250',
  ];
}

/** Those of one session, many to a cell. Also how many took their cell with them, which is not to happen. */
async function allAtOnce(language: 'javascript' | 'python', count: number): Promise<string[]> {
  await using daemon = await DaemonUnderTest.start({ maxStarting: 64 });
  using client = connectDaemon({ socket: daemon.socket });
  const runner = await Runner.create(client, language);
  const [ms, cells]: [number[], number[]] = [[], []];
  for (let round = 0; round < ROUNDS_AT_ONCE; round += 1) {
    const ids: string[] = [];
    while (ids.length < count) {
      ids.push(...(await Promise.all(Array.from({ length: 50 }, () => runner.start(DEAF[language])))));
    }
    const startedMs = performance.now();
    const ends = await Promise.all(
      ids.map(async (id) => {
        const end = client.wait('s', id);
        await client.cancelExecution('s', id, { graceMs: GRACE_MS });
        return end;
      }),
    );
    ms.push(performance.now() - startedMs);
    cells.push(ends.filter(({ result }) => result?.rung === 'cell').length);
  }
  return [language, String(count), ms.map((each) => each.toFixed(0)).join(', '), cells.join(', ')];
}
