import type { WatchExecutionMetricsResponse } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import { metricsFrom } from '../wire/execution-configuration.ts';

/** Makes partial rounds of metrics whole again. */
export class MetricsRounds {
  /** Of all that run, by session and execution, and between them what is in no name. */
  readonly #known = new Map<string, ExecutionMetrics>();

  /** Who was left out did nothing. What has exited is in one round, as it was told. */
  add({ executions, partial, timestamp }: WatchExecutionMetricsResponse): ExecutionMetrics[] {
    const atMs = Number(timestamp);
    if (!partial) this.#known.clear();
    for (const [key, metrics] of this.#known) this.#known.set(key, { ...metrics, atMs, cpuPercent: 0 });
    for (const each of executions) this.#known.set(`${each.sessionId}\0${each.executionId}`, metricsFrom(each));
    const round = [...this.#known.values()];
    for (const [key, { complete }] of this.#known) if (complete) this.#known.delete(key);
    return round;
  }
}
