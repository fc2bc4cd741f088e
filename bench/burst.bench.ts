import { connectDaemon } from '../src/index.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';
import { show, spreadOf, table } from './statistics.ts';

const ROUNDS = 3;
const COUNT = 200;
const AT_ONE_TIME = [4, 8, 16, 32];

const GUESTS = {
  'JavaScript, threads': { language: 'javascript', code: 'console.log("hello")', isolation: 'thread' },
  'JavaScript, processes': { language: 'javascript', code: 'console.log("hello")', isolation: 'process' },
  Python: { language: 'python', code: 'print("hello")' },
} as const;

/** When the ends of many hellos that come at once are heard, by how many of them start at one time. */
export async function burst(): Promise<string> {
  const rows: string[][] = [];
  for (const [name, guest] of Object.entries(GUESTS)) {
    const ends = AT_ONE_TIME.map(() => ({ first: [] as number[], median: [] as number[], last: [] as number[] }));
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const [at, maxStarting] of AT_ONE_TIME.entries()) {
        const { min, median, max } = spreadOf(await allAtOnce(maxStarting, guest));
        ends[at]?.first.push(min);
        ends[at]?.median.push(median);
        ends[at]?.last.push(max);
      }
    }
    for (const [at, { first, median, last }] of ends.entries()) {
      rows.push([name, String(AT_ONE_TIME[at]), ...[first, median, last].map((ms) => show(spreadOf(ms), 0))]);
    }
  }
  return [
    `## ${COUNT} hellos at once`,
    '',
    'When their ends are heard, in ms from the first call, by `maxStarting`: how many start at one time. In a new session of a new',
    `daemon each time; median (min-max) of ${ROUNDS} in turn.`,
    '',
    table(['guests', 'start at one time', 'first', 'median', 'last'], rows),
  ].join('\n');
}

async function allAtOnce(maxStarting: number, guest: (typeof GUESTS)[keyof typeof GUESTS]): Promise<number[]> {
  await using daemon = await DaemonUnderTest.start({ maxStarting });
  using client = connectDaemon({ socket: daemon.socket });
  await client.createSession('s', { contextPoolSize: 10 });
  const startedMs = performance.now();
  return await Promise.all(
    Array.from({ length: COUNT }, async (_, at) => {
      await client.executeSnippet({ sessionId: 's', executionId: `e${at}`, ...guest });
      const { result } = await client.wait('s', `e${at}`);
      if (result?.reason !== 'completed') throw new Error(`not completed: ${JSON.stringify(result)}`);
      return performance.now() - startedMs;
    }),
  );
}
