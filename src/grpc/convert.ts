import type { ExitReason, ExecutionResult as Result, Rung } from '../../machines/execution.ts';
import type { SessionSnapshot } from '../daemon.ts';
import { InvalidArgumentError } from '../errors.ts';
import {
  ExitReason as ApiExitReason,
  LifecycleState as ApiLifecycleState,
  type SessionConfiguration as ApiSessionConfiguration,
  type ExecuteSnippetRequest,
  type ExecutionResult,
  ExecutionStatus,
  type ExecutionStatusEvent,
  type ExecutionSummary,
  type ExecutionTimes,
  type GetSessionResponse,
  LadderRung,
  SessionStatus,
} from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionSnapshot, LifecycleState, StatusEvent } from '../supervisor/execution-record.ts';
import type { SessionConfiguration, Snippet } from '../supervisor/requests.ts';

const STATES = {
  pending: ApiLifecycleState.PENDING,
  running: ApiLifecycleState.RUNNING,
  signaled: ApiLifecycleState.SIGNALED,
  exited: ApiLifecycleState.EXITED,
} satisfies Record<LifecycleState, ApiLifecycleState>;

const RUNGS = {
  graceful: LadderRung.GRACEFUL,
  forced: LadderRung.FORCED,
  cell: LadderRung.CELL,
} satisfies Record<Rung, LadderRung>;

const REASONS = {
  completed: ApiExitReason.COMPLETED,
  failed: ApiExitReason.FAILED,
  cancelled: ApiExitReason.CANCELLED,
  signaled: ApiExitReason.SIGNALED,
  timed_out: ApiExitReason.TIMED_OUT,
  queue_timed_out: ApiExitReason.QUEUE_TIMED_OUT,
  memory_exceeded: ApiExitReason.MEMORY_EXCEEDED,
  output_exceeded: ApiExitReason.OUTPUT_EXCEEDED,
  start_failed: ApiExitReason.START_FAILED,
  cell_lost: ApiExitReason.CELL_LOST,
  session_closed: ApiExitReason.SESSION_CLOSED,
  daemon_lost: ApiExitReason.DAEMON_LOST,
} satisfies Record<ExitReason, ApiExitReason>;

/** Ends that the first clients know as an error of the execution, not as the guest's own exit code. */
const ERRORS: Partial<Record<ExitReason, string>> = {
  timed_out: 'the run limit passed',
  queue_timed_out: 'the queue limit passed before the execution started',
  memory_exceeded: 'the memory limit was exceeded',
  output_exceeded: 'the output limit was exceeded',
  start_failed: 'the execution could not be started',
  cell_lost: 'the cell of the execution was lost',
  daemon_lost: 'the daemon was lost',
};

/** The five states of the first clients. */
export function statusOf(state: LifecycleState, result: Result | undefined): ExecutionStatus {
  if (state === 'pending') return ExecutionStatus.QUEUED;
  if (state !== 'exited' || result === undefined) return ExecutionStatus.RUNNING;
  if (result.reason === 'completed') return ExecutionStatus.COMPLETED;
  return result.reason === 'cancelled' || result.reason === 'session_closed'
    ? ExecutionStatus.CANCELLED
    : ExecutionStatus.FAILED;
}

/** Empty unless the execution failed to run to an end of its own. */
export function errorOf(result: Result | undefined): string {
  const error = result && ERRORS[result.reason];
  if (error === undefined) return '';
  return result?.message === undefined ? error : `${error}: ${result.message}`;
}

export const rungOf = (rung: Rung | undefined): LadderRung => (rung ? RUNGS[rung] : LadderRung.UNSPECIFIED);
export const stateOf = (state: LifecycleState): ApiLifecycleState => STATES[state];

export function resultOf(result: Result | undefined): ExecutionResult | undefined {
  if (result === undefined) return undefined;
  const { reason, rung, exitCode, signal = '', message = '' } = result;
  return { reason: REASONS[reason], rung: rungOf(rung), exitCode, signal, message };
}

export function timesOf(times: ExecutionSnapshot['times']): ExecutionTimes {
  const { acceptedAtMs, startedAtMs, signaledAtMs, exitedAtMs } = times;
  const ms = (value: number | undefined) => BigInt(Math.trunc(value ?? 0));
  return {
    acceptedAtMs: ms(acceptedAtMs),
    startedAtMs: ms(startedAtMs),
    signaledAtMs: ms(signaledAtMs),
    exitedAtMs: ms(exitedAtMs),
  };
}

export function summaryOf(snapshot: ExecutionSnapshot): ExecutionSummary {
  const { sessionId, executionId, language, state, rung, result, times, pid } = snapshot;
  return {
    sessionId,
    executionId,
    language,
    status: statusOf(state, result),
    state: stateOf(state),
    rung: rungOf(rung),
    result: resultOf(result),
    times: timesOf(times),
    pid,
  };
}

export function eventOf(sessionId: string, executionId: string, event: StatusEvent): ExecutionStatusEvent {
  const { state, rung, result, atMs, sequence } = event;
  return {
    sessionId,
    executionId,
    status: statusOf(state, result),
    complete: state === 'exited',
    exitCode: result?.exitCode ?? 0,
    error: errorOf(result),
    timestamp: BigInt(Math.trunc(atMs)),
    sequence: BigInt(sequence),
    state: stateOf(state),
    rung: rungOf(rung),
    result: resultOf(result),
  };
}

export function sessionOf(snapshot: SessionSnapshot): GetSessionResponse {
  const { sessionId, state, config, createdAtMs, counts, cells } = snapshot;
  return {
    sessionId,
    status: state === 'pending' || state === 'running' ? SessionStatus.ACTIVE : SessionStatus.CLOSED,
    config: { ...config, memoryLimitMb: BigInt(config.memoryLimitMb) },
    createdAt: secondsOf(createdAtMs),
    state: stateOf(state),
    pendingExecutions: counts.pending,
    runningExecutions: counts.running,
    exitedExecutions: counts.exited,
    cells,
  };
}

export const secondsOf = (ms: number): bigint => BigInt(Math.trunc(ms / 1000));

export function sessionConfigurationOf(config: ApiSessionConfiguration | undefined): SessionConfiguration {
  if (config === undefined) return {};
  return { ...config, memoryLimitMb: numberOf(config.memoryLimitMb, 'config.memory_limit_mb') };
}

export function snippetOf(request: ExecuteSnippetRequest): Snippet {
  const { sessionId, executionId, code, language, env, args, config } = request;
  if (config?.memoryLimitMb !== undefined || config?.enableAi === true || config?.enabledIntrinsics.length) {
    throw new InvalidArgumentError(
      'config: memory_limit_mb, enable_ai and enabled_intrinsics belong to the session; an execution has no own ones yet',
    );
  }
  return {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    timeoutMs: millisecondsOf(config?.timeoutMs, config?.timeoutSeconds, 'config.timeout'),
    graceMs: millisecondsOf(config?.graceMs, undefined, 'config.grace_ms'),
    workingDirectory: config?.workingDirectory,
    sourceFileName: config?.sourceFileName,
    stdin: config?.stdin,
  };
}

/** A duration that may be given in ms or in whole seconds; ms win. */
export function millisecondsOf(ms: bigint | undefined, seconds: number | undefined, field: string): number | undefined {
  if (ms !== undefined) return numberOf(ms, field);
  return seconds === undefined ? undefined : seconds * 1000;
}

/** A 64-bit integer that is small enough to count with. */
export function numberOf(value: bigint, field: string): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw new InvalidArgumentError(`${field} is ${value}: out of range`);
  return number;
}
