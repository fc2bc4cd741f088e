import { setTimeout as sleep } from 'node:timers/promises';
import type { Usage } from '../../machines/execution.ts';
import { InvalidArgumentError } from '../errors.ts';
import type { ExecutionRecord } from './execution-record.ts';
import type { FinishedRecord } from './finished-record.ts';

const SHORTEST_INTERVAL_MS = 100;
const LONGEST_INTERVAL_MS = 3_600_000;
const DEFAULT_INTERVAL_MS = 1_000;

/** What one execution uses, and when that was so. */
export interface ExecutionMetrics extends Usage {
  sessionId: string;
  executionId: string;
  /** Unix ms. */
  atMs: number;
  /** CPU of one core, since the round before, else since the start: 150 is one and a half cores. */
  cpuPercent: number;
  /** The final figures. */
  complete: boolean;
}

/** What is known of an execution that no cell has. */
const NOTHING_USED: Usage = {
  userSeconds: 0,
  systemSeconds: 0,
  memoryBytes: 0,
  peakMemoryBytes: 0,
  heapBytes: 0,
  externalBytes: 0,
  wasmBytes: 0,
  processes: 0,
  threads: 0,
  stdoutBytes: 0,
  stderrBytes: 0,
  droppedBytes: 0,
};

/** What an execution uses now, or used in all once it has exited. `before` is the round before of the same stream. */
export async function metricsOf(
  record: ExecutionRecord | FinishedRecord,
  before: ExecutionMetrics | undefined,
): Promise<ExecutionMetrics> {
  const { sessionId, executionId } = record;
  const now = await record.measure?.();
  // It may have exited while its cell was asked.
  const { state, result, times } = record.snapshot;
  const complete = state === 'exited';
  const atMs = complete ? (times.exitedAtMs ?? 0) : Date.now();
  const usage = (complete ? result?.usage : now) ?? NOTHING_USED;
  const sinceMs = atMs - (before?.atMs ?? times.startedAtMs ?? atMs);
  const seconds = secondsOf(usage) - (before ? secondsOf(before) : 0);
  const cpuPercent = sinceMs > 0 ? Math.max(0, (seconds * 100_000) / sinceMs) : 0;
  return { ...usage, sessionId, executionId, atMs, cpuPercent, complete };
}

function secondsOf({ userSeconds, systemSeconds }: Usage): number {
  return userSeconds + systemSeconds;
}

/** Round after round until the execution has exited, its final figures last, or until `signal` aborts. */
export async function* metricsOfOne(
  record: ExecutionRecord | FinishedRecord,
  intervalMs: number | undefined,
  signal: AbortSignal,
): AsyncGenerator<ExecutionMetrics[]> {
  const distanceMs = checkInterval(intervalMs);
  let before: ExecutionMetrics | undefined;
  while (!signal.aborted && before?.complete !== true) {
    before = await metricsOf(record, before);
    yield [before];
    if (!before.complete) await record.exited(AbortSignal.any([signal, AbortSignal.timeout(distanceMs)]));
  }
}

/** What of an execution was told last, while it slept during which sleep, and until when that is true. */
interface Told {
  metrics: ExecutionMetrics;
  sleep: object | undefined;
  atMs: number;
}

/**
 * Round after round of every execution that runs, until `signal` aborts. Where rounds after the first may be partial, who
 * sleeps is told of until it has used no CPU since the round before, and then no more until it wakes; who has exited since
 * the round before is told of once more.
 */
export async function* metricsOfAll(
  running: () => ExecutionRecord[],
  intervalMs: number | undefined,
  allowPartial: boolean,
  signal: AbortSignal,
): AsyncGenerator<ExecutionMetrics[]> {
  const distanceMs = checkInterval(intervalMs);
  let before = new Map<ExecutionRecord, Told>();
  while (!signal.aborted) {
    const told = new Map<ExecutionRecord, Told>();
    const atMs = Date.now();
    const tell = async (record: ExecutionRecord, last: Told | undefined, sleep: object | undefined) => {
      const metrics = await metricsOf(record, last && { ...last.metrics, atMs: last.atMs });
      if (!metrics.complete) told.set(record, { sleep, metrics, atMs: metrics.atMs });
      return metrics;
    };
    const round: Promise<ExecutionMetrics>[] = [];
    for (const record of new Set([...running(), ...(allowPartial ? before.keys() : [])])) {
      const [last, sleep] = [before.get(record), record.sleep?.()];
      if (allowPartial && last !== undefined && isStill(last, sleep)) {
        last.atMs = atMs;
        told.set(record, last);
      } else {
        round.push(tell(record, last, sleep));
      }
    }
    yield await Promise.all(round);
    before = told;
    await sleep(distanceMs, undefined, { signal }).catch(() => {});
  }
}

/** It slept through, and had used nothing already when it was told of. */
function isStill({ metrics, sleep }: Told, now: object | undefined): boolean {
  return now !== undefined && sleep === now && metrics.cpuPercent === 0;
}

function checkInterval(intervalMs = DEFAULT_INTERVAL_MS): number {
  if (intervalMs >= SHORTEST_INTERVAL_MS && intervalMs <= LONGEST_INTERVAL_MS) return intervalMs;
  throw new InvalidArgumentError(
    `interval_ms is ${intervalMs}; it must be ${SHORTEST_INTERVAL_MS} to ${LONGEST_INTERVAL_MS}`,
  );
}
