import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import type { DaemonClient } from './client.ts';
import { reconnecting, retry } from './reconnect.ts';

/** Hears of each round: the figures of one execution, undefined when it is not among those that run. */
type Follower = (figures: ExecutionMetrics | undefined) => void;

interface Feed {
  /** By execution id. */
  followers: Map<string, Set<Follower>>;
  end: AbortController;
}

/** What {@link MetricsFeed.follow} follows. */
export interface Followed {
  sessionId: string;
  executionId: string;
  /** In ms. */
  intervalMs: number;
  /** Ends it. */
  signal: AbortSignal;
}

/**
 * Metrics of many executions, each followed by itself: those of one session at one interval share one stream, for a
 * message costs a daemon and its client far more than the figures in it.
 */
export class MetricsFeed {
  readonly #client: () => DaemonClient;
  readonly #feeds = new Map<string, Feed>();

  /** `client` may be another one with each call. */
  constructor(client: () => DaemonClient) {
    this.#client = client;
  }

  /**
   * Calls `hear` with figures at once, then with each round, over restarts of the daemon; resolves after the final ones, or
   * when `signal` aborts. A round that comes sooner than half an interval after the figures before is left out.
   */
  async follow(
    { sessionId, executionId, intervalMs, signal }: Followed,
    hear: (figures: ExecutionMetrics) => void,
  ): Promise<void> {
    if (signal.aborted) return;
    const over = Promise.withResolvers<void>();
    /** No round is taken before; never while it is asked. */
    let dueMs = Number.POSITIVE_INFINITY;
    const take = (figures: ExecutionMetrics) => {
      dueMs = performance.now() + intervalMs / 2;
      hear(figures);
      if (figures.complete) over.resolve();
    };
    const ask = async () => {
      dueMs = Number.POSITIVE_INFINITY;
      take(await retry(() => this.#client().getExecutionMetrics(sessionId, executionId), { signal }));
    };
    const leave = this.#join(sessionId, intervalMs, executionId, (figures) => {
      if (performance.now() < dueMs) return;
      if (figures === undefined) ask().catch(over.reject);
      else take(figures);
    });
    const abort = () => over.resolve();
    signal.addEventListener('abort', abort);
    try {
      await ask();
      await over.promise;
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      signal.removeEventListener('abort', abort);
      leave();
    }
  }

  /** Returns what ends it. */
  #join(sessionId: string, intervalMs: number, executionId: string, follower: Follower): () => void {
    const key = `${intervalMs} ${sessionId}`;
    const feed = this.#feeds.get(key) ?? this.#open(key, sessionId, intervalMs);
    const followers = feed.followers.get(executionId) ?? new Set();
    feed.followers.set(executionId, followers.add(follower));
    return () => {
      followers.delete(follower);
      if (followers.size === 0) feed.followers.delete(executionId);
      if (feed.followers.size === 0) this.#close(key, feed);
    };
  }

  #open(key: string, sessionId: string, intervalMs: number): Feed {
    const feed: Feed = { followers: new Map(), end: new AbortController() };
    this.#feeds.set(key, feed);
    void this.#run(feed, { sessionId, intervalMs });
    return feed;
  }

  async #run({ followers, end: { signal } }: Feed, watched: { sessionId: string; intervalMs: number }): Promise<void> {
    const rounds = () => this.#client().watchExecutionMetrics({ ...watched, signal });
    while (!signal.aborted) {
      try {
        for await (const round of reconnecting(rounds, { signal })) tell(followers, round);
      } catch {
        // Each follower asks for itself now, and hears why.
      }
      tell(followers, []);
      await sleep(watched.intervalMs, undefined, { signal }).catch(() => {});
    }
  }

  #close(key: string, feed: Feed): void {
    feed.end.abort();
    if (this.#feeds.get(key) === feed) this.#feeds.delete(key);
  }
}

function tell(followers: Feed['followers'], round: ExecutionMetrics[]): void {
  const figures = new Map(round.map((each) => [each.executionId, each]));
  for (const [executionId, all] of followers) for (const follower of all) follower(figures.get(executionId));
}
