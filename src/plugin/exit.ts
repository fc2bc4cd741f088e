import { constants } from 'node:os';
import type { ExecutionResult, ExitReason } from '../../machines/execution.ts';
import type { ExitResult } from '../gen/nomad/driver.ts';

/** Ends that are a limit's or the daemon's doing, not the guest's own: failed, whatever the exit code. */
const TROUBLE: readonly ExitReason[] = [
  'timed_out',
  'queue_timed_out',
  'output_exceeded',
  'start_failed',
  'cell_lost',
  'session_closed',
  'daemon_lost',
];

/** Why an end is a failure, where its exit does not say it; else empty. */
export function troubleOf({ reason, exitCode, message }: ExecutionResult): string {
  // Of a guest that was killed for its memory the exit says so; one whose child was may end with 0.
  const isTrouble = TROUBLE.includes(reason) || (reason === 'memory_exceeded' && exitCode === 0);
  if (!isTrouble) return '';
  return message === undefined ? reason : `${reason}: ${message}`;
}

/** An end in the agent's words; one that nobody saw has code -1. */
export function exitOf(result: ExecutionResult | undefined): ExitResult {
  const { exitCode = -1, signal, reason } = result ?? {};
  const number = constants.signals[signal as NodeJS.Signals] ?? 0;
  return { exitCode, signal: number, oomKilled: reason === 'memory_exceeded' };
}
