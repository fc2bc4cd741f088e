import { constants } from 'node:os';
import type { ExecutionResult, ExitReason } from '../../machines/execution.ts';
import type { ExitResult } from '../gen/nomad/driver.ts';

/** Ends that are a limit's or the daemon's doing, not the guest's own: failed, whatever the exit code. */
export const TROUBLE: readonly ExitReason[] = [
  'timed_out',
  'queue_timed_out',
  'output_exceeded',
  'start_failed',
  'cell_lost',
  'session_closed',
  'daemon_lost',
];

/** An end in the agent's words; one that nobody saw has code -1. */
export function exitOf(result: ExecutionResult | undefined): ExitResult {
  const { exitCode = -1, signal, reason } = result ?? {};
  const number = constants.signals[signal as NodeJS.Signals] ?? 0;
  return { exitCode, signal: number, oomKilled: reason === 'memory_exceeded' };
}
