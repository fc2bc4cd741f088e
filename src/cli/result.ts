import type { ExecutionSummary } from '../client/index.ts';
import { formatDuration } from './values.ts';

/** What elidectl exits with when it or the daemon could not do what was asked. */
export const REFUSED = 125;
const TIMED_OUT = 124;
const KILLED = 137;

/** What a command's action leaves behind: the exit code. */
export type Finish = (exitCode: number) => void;

/** The exit code that stands for an execution's result. */
export function exitCodeOf({ result }: ExecutionSummary): number {
  if (result === undefined) return REFUSED;
  if (result.reason === 'timed_out') return TIMED_OUT;
  // It may have ended by itself, with 0, before it was killed.
  if (result.reason === 'memory_exceeded' || result.reason === 'output_exceeded') return KILLED;
  return result.exitCode < 0 ? REFUSED : result.exitCode;
}

/** How an execution ended, in one line without its name: `cancelled, forced, exit code 137 (SIGKILL), ran 1.2s`. */
export function describeResult({ result, times }: ExecutionSummary): string {
  if (result === undefined) return 'not exited';
  const { reason, rung, exitCode, signal, message } = result;
  const { startedAtMs, exitedAtMs } = times;
  const facts = [
    reason,
    rung,
    exitCode >= 0 ? `exit code ${exitCode}${signal ? ` (${signal})` : ''}` : undefined,
    startedAtMs && exitedAtMs ? `ran ${formatDuration(exitedAtMs - startedAtMs)}` : undefined,
  ];
  return `${facts.filter(Boolean).join(', ')}${message ? `: ${message}` : ''}`;
}
