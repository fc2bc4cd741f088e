import type { Duration } from '../gen/google/protobuf/duration.ts';
import {
  type CPUUsage,
  CPUUsage_Fields as Cpu,
  MemoryUsage_Fields as Memory,
  type MemoryUsage,
  type TaskStatsResponse,
} from '../gen/nomad/driver.ts';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import { millisecondsOf } from './rpc.ts';

const SHORTEST_MS = 100;
const USUAL_MS = 1_000;

/** Which figures are said. */
const CPU_FIELDS = [Cpu.SYSTEM_MODE, Cpu.USER_MODE, Cpu.PERCENT];
const MEMORY_FIELDS = [Memory.RSS, Memory.USAGE, Memory.MAX_USAGE];

/** Between two samples, in ms, for what the agent asked. */
export const intervalMsOf = (asked: Duration | undefined) => Math.max(SHORTEST_MS, millisecondsOf(asked) || USUAL_MS);

/** Makes of figures what Nomad shows: memory as RSS and usage, CPU in percent of one core since the figures before. */
export function statsSince(coreSpeedMhz: number): (now: ExecutionMetrics) => TaskStatsResponse {
  let before: ExecutionMetrics | undefined;
  return (now) => {
    const aggResourceUsage = { cpu: cpuOf(now, before ?? now, coreSpeedMhz), memory: memoryOf(now) };
    before = now;
    return { stats: { id: now.executionId, timestamp: new Date(), aggResourceUsage, resourceUsageByPid: {} } };
  };
}

function cpuOf(now: ExecutionMetrics, before: ExecutionMetrics, coreSpeedMhz: number): CPUUsage {
  const seconds = (now.atMs - before.atMs) / 1000;
  const percent = (used: number) => (seconds > 0 ? Math.max(0, (used * 100) / seconds) : 0);
  const userMode = percent(now.userSeconds - before.userSeconds);
  const systemMode = percent(now.systemSeconds - before.systemSeconds);
  const total = userMode + systemMode;
  return {
    userMode,
    systemMode,
    percent: total,
    totalTicks: (total / 100) * coreSpeedMhz,
    throttledPeriods: 0n,
    throttledTime: 0n,
    measuredFields: CPU_FIELDS,
  };
}

function memoryOf({ memoryBytes, peakMemoryBytes }: ExecutionMetrics): MemoryUsage {
  const bytes = BigInt(Math.round(memoryBytes));
  return {
    rss: bytes,
    usage: bytes,
    maxUsage: BigInt(Math.round(peakMemoryBytes)),
    cache: 0n,
    kernelUsage: 0n,
    kernelMaxUsage: 0n,
    swap: 0n,
    measuredFields: MEMORY_FIELDS,
  };
}
