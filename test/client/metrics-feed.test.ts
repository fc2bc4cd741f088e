import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectDaemon, type DaemonClient, MetricsFeed } from '../../src/client/index.ts';
import { MetricsRounds } from '../../src/client/metrics-rounds.ts';
import { NotFoundError } from '../../src/errors.ts';
import { WatchExecutionMetricsResponse } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionMetrics } from '../../src/supervisor/execution-metrics.ts';
import { FaultNode } from '../faults/node.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonProcess;
let client: DaemonClient;

beforeAll(async () => {
  daemon = await DaemonProcess.start();
  client = connectDaemon({ socket: daemon.socket });
  await client.createSession('s');
});
afterAll(async () => {
  client?.close();
  await daemon?.stop();
});

/** Waits for its input. */
async function waiting(executionId: string): Promise<void> {
  const code = "process.stdin.once('data', () => process.exit(3))";
  await client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code, stdin: true });
  for await (const { state } of client.watchExecution('s', executionId)) if (state === 'running') break;
}

const end = (executionId: string) => client.writeInput('s', executionId, Buffer.from('\n'));

/** Collects what is followed; `over` resolves at its end. */
function follow(feed: MetricsFeed, executionId: string, signal = new AbortController().signal) {
  const figures: ExecutionMetrics[] = [];
  const hear = (each: ExecutionMetrics) => void figures.push(each);
  return { figures, over: feed.follow({ sessionId: 's', executionId, intervalMs: 200, signal }, hear) };
}

/** A feed, and the signal that ends each stream it has opened. */
function watchedFeed() {
  const streams: AbortSignal[] = [];
  const watched = new Proxy(client, {
    get(target, name) {
      const value = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      return (...args: { signal: AbortSignal }[]) => {
        if (name === 'watchExecutionMetrics' && args[0] !== undefined) streams.push(args[0].signal);
        return value.apply(target, args);
      };
    },
  });
  return { feed: new MetricsFeed(() => watched), streams };
}

test('many are followed through one stream, each to its own final figures', async () => {
  const { feed, streams } = watchedFeed();
  const ids = ['a', 'b', 'c'];
  for (const id of ids) await waiting(id);
  const followed = ids.map((id) => follow(feed, id));
  await eventually('figures of all', () => followed.every(({ figures }) => figures.length >= 3));

  await end('b');
  await followed[1]?.over;
  const seen = followed[0]?.figures.length ?? 0;
  await eventually('the others go on', () => (followed[0]?.figures.length ?? 0) >= seen + 2);
  for (const id of ['a', 'c']) await end(id);
  await Promise.all(followed.map(({ over }) => over));

  expect(streams).toHaveLength(1);
  for (const [index, { figures }] of followed.entries()) {
    expect(new Set(figures.map(({ executionId }) => executionId))).toEqual(new Set([ids[index]]));
    expect(figures.map(({ complete }) => complete).indexOf(true)).toBe(figures.length - 1);
  }
});

test('the stream ends with the last that follows, and a later one opens another', async () => {
  const { feed, streams } = watchedFeed();
  await waiting('d');
  for (let times = 0; times < 2; times += 1) {
    const left = new AbortController();
    const { figures, over } = follow(feed, 'd', left.signal);
    await eventually('figures', () => figures.length >= 2);
    expect(streams.map(({ aborted }) => aborted)).toEqual([...Array(times).fill(true), false]);
    left.abort();
    await over;
    expect(streams.at(-1)?.aborted).toBe(true);
  }
  await end('d');
});

test('what nobody knows is told as such', async () => {
  const feed = new MetricsFeed(() => client);

  await expect(follow(feed, 'nobody').over).rejects.toThrow(NotFoundError);
});

test('figures go on with the next daemon', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: "console.log('ready'); setInterval(() => {}, 1000)" });
  const feed = new MetricsFeed(() => node.client);
  const left = new AbortController();
  const { figures, over } = follow(feed, 'e', left.signal);
  await eventually('figures', () => figures.length >= 2);

  await node.restart();
  const seen = figures.length;

  await eventually('figures again', () => figures.length >= seen + 2);
  left.abort();
  await over;
});

test('executions whose names make the same text are two in each round', () => {
  const names = [
    { sessionId: 'a b', executionId: 'c' },
    { sessionId: 'a', executionId: 'b c' },
  ];

  const round = new MetricsRounds().add(WatchExecutionMetricsResponse.fromPartial({ executions: names }));

  expect(round).toEqual(names.map((name) => expect.objectContaining(name)));
});
