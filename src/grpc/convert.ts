import type { ExitReason, ExecutionResult as Result, Rung } from '../../machines/execution.ts';
import type { SessionSnapshot } from '../api.ts';
import { InvalidArgumentError } from '../errors.ts';
import {
  ExitReason as ApiExitReason,
  LifecycleState as ApiLifecycleState,
  type SessionConfiguration as ApiSessionConfiguration,
  type ExecuteSnippetRequest,
  type ExecutionConfiguration,
  type ExecutionResult,
  ExecutionStatus,
  type ExecutionStatusEvent,
  type ExecutionSummary,
  type ExecutionTimes,
  type GetSessionResponse,
  Isolation,
  LadderRung,
  OutputPolicy,
  SessionStatus,
  TimeoutAction,
} from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionSnapshot, LifecycleState, StatusEvent } from '../supervisor/execution-record.ts';
import { type ExecutionLimits, LIMITS } from '../supervisor/limits.ts';
import type { SessionConfiguration, Snippet } from '../supervisor/requests.ts';
import {
  bigintOf,
  configurationOf,
  enumValueOf,
  metricsOf,
  numberOf,
  optionsOf,
} from '../wire/execution-configuration.ts';

/** Ends that the first clients know as an error of the execution, not as the guest's own exit code. */
const ERRORS: Partial<Record<ExitReason, string>> = {
  timed_out: 'a time limit passed',
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

const rungOf = (rung: Rung | undefined): LadderRung => (rung ? enumValueOf(LadderRung, rung) : LadderRung.UNSPECIFIED);
const stateOf = (state: LifecycleState): ApiLifecycleState => enumValueOf(ApiLifecycleState, state);

export function resultOf(result: Result | undefined, of: ExecutionSnapshot): ExecutionResult | undefined {
  if (result === undefined) return undefined;
  const { reason, rung, exitCode, signal = '', message = '', usage } = result;
  const { sessionId, executionId, warnings, times } = of;
  const atMs = times.exitedAtMs ?? 0;
  const metrics = usage && metricsOf({ ...usage, sessionId, executionId, atMs, cpuPercent: 0, complete: true });
  return {
    reason: enumValueOf(ApiExitReason, reason),
    rung: rungOf(rung),
    exitCode,
    signal,
    message,
    metrics,
    warnings,
  };
}

function timesOf(times: ExecutionSnapshot['times']): ExecutionTimes {
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
    result: resultOf(result, snapshot),
    times: timesOf(times),
    pid,
  };
}

export function eventOf(event: StatusEvent, of: ExecutionSnapshot): ExecutionStatusEvent {
  const { state, rung, result, atMs, sequence, warning = '' } = event;
  const { sessionId, executionId } = of;
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
    result: resultOf(result, of),
    warning,
  };
}

export function sessionOf(snapshot: SessionSnapshot): GetSessionResponse {
  const { sessionId, state, config, createdAtMs, counts, cells } = snapshot;
  return {
    sessionId,
    status: state === 'pending' || state === 'running' ? SessionStatus.ACTIVE : SessionStatus.CLOSED,
    config: {
      ...config,
      memoryLimitMb: BigInt(config.memoryLimitMb),
      executionDefaults: configurationOf(config.executionDefaults, 'config.execution_defaults'),
      executionCeilings: configurationOf(config.executionCeilings, 'config.execution_ceilings'),
      idleTtlMs: bigintOf(config.idleTtlMs, 'config.idle_ttl_ms'),
      totalTtlMs: bigintOf(config.totalTtlMs, 'config.total_ttl_ms'),
      retainedAgeMs: bigintOf(config.retainedAgeMs, 'config.retained_age_ms'),
      outputBudgetBytes: bigintOf(config.outputBudgetBytes, 'config.output_budget_bytes'),
    },
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
  const { executionDefaults: defaults, executionCeilings: ceilings } = config;
  if (defaults !== undefined) requireOptionsOnly(defaults, 'config.execution_defaults');
  return {
    ...config,
    memoryLimitMb: numberOf(config.memoryLimitMb, 'config.memory_limit_mb'),
    executionDefaults: defaults && optionsOf(defaults, 'config.execution_defaults'),
    executionCeilings: ceilings && ceilingsOf(ceilings),
    idleTtlMs: checkableOf(config.idleTtlMs),
    totalTtlMs: checkableOf(config.totalTtlMs),
    retainedAgeMs: checkableOf(config.retainedAgeMs),
    outputBudgetBytes: checkableOf(config.outputBudgetBytes),
  };
}

/** A number for a check that names its range: what no number holds exactly is beyond any. */
const checkableOf = (value: bigint | undefined) => (value === undefined ? undefined : Number(value));

/** Ceilings are figures; anything else that was said there would be without effect, and so is refused. */
function ceilingsOf(config: ExecutionConfiguration): ExecutionLimits {
  const prefix = 'config.execution_ceilings';
  requireOptionsOnly(config, prefix);
  const limits: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(optionsOf(config, prefix))) {
    if (value === undefined) continue;
    if (!Object.hasOwn(LIMITS, name)) throw new InvalidArgumentError(`${prefix}.${name} is no limit`);
    limits[name] = value;
  }
  return limits;
}

/** Throws when something is set that belongs to one execution. */
function requireOptionsOnly(config: ExecutionConfiguration, prefix: string): void {
  requireKnown(config, prefix);
  const { workingDirectory, sourceFileName, stdin, outputFiles } = config;
  for (const [field, value] of Object.entries({ workingDirectory, sourceFileName, stdin, outputFiles })) {
    if (value !== undefined) throw new InvalidArgumentError(`${prefix}.${field} belongs to an execution`);
  }
}

/** Throws when something is set that would be without effect here. */
function requireKnown(config: ExecutionConfiguration, prefix: string): void {
  requireValue(TimeoutAction, config.onTimeout, `${prefix}.on_timeout`);
  requireValue(OutputPolicy, config.outputPolicy, `${prefix}.output_policy`);
  requireValue(Isolation, config.isolation, `${prefix}.isolation`);
  const { enableAi, enabledIntrinsics } = config;
  if (enableAi !== true && enabledIntrinsics.length === 0) return;
  throw new InvalidArgumentError(
    `${prefix}: enable_ai and enabled_intrinsics belong to the session; an execution has no own ones yet`,
  );
}

function requireValue(words: Record<string, number>, value: number, field: string): void {
  if (Object.values(words).includes(value)) return;
  throw new InvalidArgumentError(`${field} is ${value}, which this daemon does not know`);
}

export function snippetOf(request: ExecuteSnippetRequest): Snippet {
  const { sessionId, executionId, code, language, env, args, ahead, config } = request;
  if (config !== undefined) requireKnown(config, 'config');
  const files = config?.outputFiles;
  return {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    ahead,
    ...(config && optionsOf(config, 'config')),
    workingDirectory: config?.workingDirectory,
    sourceFileName: config?.sourceFileName,
    stdin: config?.stdin,
    outputFiles: files && {
      ...files,
      maxFileBytes: numberOf(files.maxFileBytes, 'config.output_files.max_file_bytes'),
    },
  };
}
