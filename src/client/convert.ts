import type { ExecutionResult, ExitReason, Rung } from '../../machines/execution.ts';
import type { ExecutionStatus, SessionSnapshot } from '../api.ts';
import * as Api from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { OutputChunk } from '../output/output-files.ts';
import { checkSessionTypes, checkSnippetTypes, checkText } from '../supervisor/argument-types.ts';
import type { ExecutionSnapshot, ExecutionTimes, LifecycleState, StatusEvent } from '../supervisor/execution-record.ts';
import type { ExecutionDefaults } from '../supervisor/limits.ts';
import type { OutputFiles, SessionConfiguration, Snippet } from '../supervisor/requests.ts';
import { bigintOf, configurationOf, optionsOf, uint32Of, usageFrom, wordOf } from '../wire/execution-configuration.ts';

/** An execution as lists and waits show it. */
export type ExecutionSummary = Omit<ExecutionSnapshot, 'sequence'>;

const stateOf = (state: Api.LifecycleState) => wordOf<LifecycleState>(Api.LifecycleState, state) ?? 'pending';
const rungOf = (rung: Api.LadderRung) => wordOf<Rung>(Api.LadderRung, rung);
/** Undefined for what is not set, or not yet. */
const setOf = (value: bigint) => (value === 0n ? undefined : Number(value));

function resultOf(result: Api.ExecutionResult | undefined): ExecutionResult | undefined {
  if (result === undefined) return undefined;
  return {
    reason: wordOf<ExitReason>(Api.ExitReason, result.reason) ?? 'failed',
    rung: rungOf(result.rung),
    exitCode: result.exitCode,
    signal: result.signal || undefined,
    message: result.message || undefined,
    usage: result.metrics && usageFrom(result.metrics),
  };
}

function timesOf(times: Api.ExecutionTimes | undefined): ExecutionTimes {
  return {
    acceptedAtMs: Number(times?.acceptedAtMs ?? 0n),
    startedAtMs: setOf(times?.startedAtMs ?? 0n),
    signaledAtMs: setOf(times?.signaledAtMs ?? 0n),
    exitedAtMs: setOf(times?.exitedAtMs ?? 0n),
  };
}

export function summaryOf(summary: Api.ExecutionSummary): ExecutionSummary {
  const { sessionId, executionId, language, state, rung, result, times, pid } = summary;
  return {
    sessionId,
    executionId,
    language,
    state: stateOf(state),
    rung: rungOf(rung),
    result: resultOf(result),
    times: timesOf(times),
    warnings: result?.warnings ?? [],
    pid,
  };
}

export function statusOf(status: Api.GetExecutionStatusResponse): ExecutionStatus {
  return {
    ...summaryOf(status),
    sequence: Number(status.sequence),
    stdoutBytes: Number(status.stdoutBytes),
    stderrBytes: Number(status.stderrBytes),
    outputEvicted: status.outputEvicted,
  };
}

export function eventOf(event: Api.ExecutionStatusEvent): StatusEvent {
  const { sequence, timestamp, state, rung, result } = event;
  return {
    sequence: Number(sequence),
    atMs: Number(timestamp),
    state: stateOf(state),
    rung: rungOf(rung),
    result: resultOf(result),
    warning: event.warning || undefined,
  };
}

export function chunkOf({ stream, position, timestamp, data }: Api.StreamExecutionOutputResponse): OutputChunk {
  return {
    stream: stream === 'stderr' ? 'stderr' : 'stdout',
    position: Number(position),
    atMs: Number(timestamp),
    data: Buffer.from(data.buffer, data.byteOffset, data.byteLength),
  };
}

/** `createdAtMs` is exact to the second: the API has no more. */
export function sessionOf(session: Api.GetSessionResponse): SessionSnapshot {
  const { sessionId, state, config, createdAt, cells } = session;
  return {
    sessionId,
    state: stateOf(state),
    config: {
      contextPoolSize: config?.contextPoolSize ?? 0,
      enabledLanguages: config?.enabledLanguages ?? [],
      enabledIntrinsics: config?.enabledIntrinsics ?? [],
      memoryLimitMb: Number(config?.memoryLimitMb ?? 0n),
      enableAi: config?.enableAi ?? false,
      executionDefaults: defined(config?.executionDefaults),
      executionCeilings: defined(config?.executionCeilings),
      maxRunning: config?.maxRunning ?? 0,
      maxQueued: config?.maxQueued ?? 0,
      weight: config?.weight ?? 0,
      idleTtlMs: setOf(config?.idleTtlMs ?? 0n),
      totalTtlMs: setOf(config?.totalTtlMs ?? 0n),
      retainedAgeMs: setOf(config?.retainedAgeMs ?? 0n),
      retainedExecutions: config?.retainedExecutions,
      outputBudgetBytes: setOf(config?.outputBudgetBytes ?? 0n),
    },
    createdAtMs: Number(createdAt) * 1000,
    counts: {
      pending: session.pendingExecutions,
      running: session.runningExecutions,
      exited: session.exitedExecutions,
    },
    cells: cells as SessionSnapshot['cells'],
  };
}

/** The options that are set. */
function defined(config: Api.ExecutionConfiguration | undefined): ExecutionDefaults {
  if (config === undefined) return {};
  const options = optionsOf(config, 'config');
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** Throws for what is not of its type, of which the wire would make something else; as does {@link snippetRequest}. */
export function sessionRequest(sessionId: string, config: SessionConfiguration): Api.CreateSessionRequest {
  checkText(sessionId, 'session_id');
  checkSessionTypes(config);
  const { executionDefaults: defaults, executionCeilings: ceilings } = config;
  return {
    sessionId,
    config: {
      contextPoolSize: uint32Of(config.contextPoolSize ?? 0, 'config.context_pool_size'),
      enabledLanguages: config.enabledLanguages ?? [],
      enabledIntrinsics: config.enabledIntrinsics ?? [],
      memoryLimitMb: bigintOf(config.memoryLimitMb ?? 0, 'config.memory_limit_mb'),
      enableAi: config.enableAi ?? false,
      executionDefaults: defaults && configurationOf(defaults, 'config.execution_defaults'),
      executionCeilings: ceilings && configurationOf(ceilings, 'config.execution_ceilings'),
      maxRunning: uint32Of(config.maxRunning ?? 0, 'config.max_running'),
      maxQueued: uint32Of(config.maxQueued ?? 0, 'config.max_queued'),
      weight: uint32Of(config.weight ?? 0, 'config.weight'),
      idleTtlMs: bigintOf(config.idleTtlMs, 'config.idle_ttl_ms'),
      totalTtlMs: bigintOf(config.totalTtlMs, 'config.total_ttl_ms'),
      retainedAgeMs: bigintOf(config.retainedAgeMs, 'config.retained_age_ms'),
      retainedExecutions: uint32Of(config.retainedExecutions, 'config.retained_executions'),
      outputBudgetBytes: bigintOf(config.outputBudgetBytes, 'config.output_budget_bytes'),
    },
  };
}

export function snippetRequest(snippet: Snippet): Api.ExecuteSnippetRequest {
  checkSnippetTypes(snippet);
  const { sessionId, executionId, code, language, env = {}, args = [] } = snippet;
  const { workingDirectory, sourceFileName, stdin, ahead, outputFiles } = snippet;
  return {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    ahead,
    config: {
      ...configurationOf(snippet, 'config'),
      workingDirectory,
      sourceFileName,
      stdin,
      outputFiles: outputFiles && outputFilesOf(outputFiles),
    },
  };
}

function outputFilesOf({ stdout, stderr, maxFiles, maxFileBytes }: OutputFiles): Api.OutputFiles {
  return {
    stdout,
    stderr,
    maxFiles: uint32Of(maxFiles, 'config.output_files.max_files'),
    maxFileBytes: bigintOf(maxFileBytes, 'config.output_files.max_file_bytes'),
  };
}
