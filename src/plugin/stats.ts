import type { Duration } from '../gen/google/protobuf/duration.ts';
import { CPUUsage_Fields as Cpu, MemoryUsage_Fields as Memory, TaskStatsResponse } from '../gen/nomad/driver.ts';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import { millisecondsOf } from './rpc.ts';

const SHORTEST_MS = 100;
const USUAL_MS = 1_000;

/** Between two samples, in ms, for what the agent asked. */
export const intervalMsOf = (asked: Duration | undefined) => Math.max(SHORTEST_MS, millisecondsOf(asked) || USUAL_MS);

/**
 * What Nomad shows: memory as RSS and usage, CPU in percent of one core since the sample before. What `until` breaks off is
 * at its end: a host takes an error for a failure of the driver's.
 */
export async function* statsOf(
  figures: AsyncIterable<ExecutionMetrics>,
  coreSpeedMhz: number,
  until: AbortSignal,
): AsyncGenerator<TaskStatsResponse> {
  try {
    yield* samplesOf(figures, coreSpeedMhz);
  } catch (error) {
    if (!until.aborted) throw error;
  }
}

async function* samplesOf(
  figures: AsyncIterable<ExecutionMetrics>,
  coreSpeedMhz: number,
): AsyncGenerator<TaskStatsResponse> {
  let before: ExecutionMetrics | undefined;
  for await (const now of figures) {
    const seconds = (now.atMs - (before ?? now).atMs) / 1000;
    const percent = (used: number) => (seconds > 0 ? Math.max(0, (used * 100) / seconds) : 0);
    const userMode = percent(now.userSeconds - (before ?? now).userSeconds);
    const systemMode = percent(now.systemSeconds - (before ?? now).systemSeconds);
    const total = userMode + systemMode;
    const bytes = BigInt(Math.round(now.memoryBytes));
    const maxUsage = BigInt(Math.round(now.peakMemoryBytes));
    const measured = {
      cpu: [Cpu.SYSTEM_MODE, Cpu.USER_MODE, Cpu.PERCENT],
      memory: [Memory.RSS, Memory.USAGE, Memory.MAX_USAGE],
    };
    const cpu = {
      userMode,
      systemMode,
      percent: total,
      totalTicks: (total / 100) * coreSpeedMhz,
      measuredFields: measured.cpu,
    };
    const memory = { rss: bytes, usage: bytes, maxUsage, measuredFields: measured.memory };
    yield TaskStatsResponse.fromPartial({
      stats: { id: now.executionId, timestamp: new Date(), aggResourceUsage: { cpu, memory } },
    });
    before = now;
  }
}
