import type { ExecutionResult, ExitReason, Rung } from '../../machines/execution.ts';
import type { ExecutionStatus, SessionSnapshot } from '../daemon.ts';
import * as Api from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { OutputChunk } from '../output/output-files.ts';
import type { ExecutionSnapshot, ExecutionTimes, LifecycleState, StatusEvent } from '../supervisor/execution-record.ts';
import type { SessionConfiguration, Snippet } from '../supervisor/requests.ts';

/** An execution as lists and waits show it. */
export type ExecutionSummary = Omit<ExecutionSnapshot, 'sequence'>;

/** The word of an enum's value: `timed_out` for `TIMED_OUT`; undefined for none, and for one that this client is too old to know. */
function wordOf<Word extends string>(words: Record<string, number>, value: number): Word | undefined {
  const name = Object.keys(words).find((key) => words[key] === value);
  return name === undefined || value === 0 ? undefined : (name.toLowerCase() as Word);
}

const stateOf = (state: Api.LifecycleState) => wordOf<LifecycleState>(Api.LifecycleState, state) ?? 'pending';
const rungOf = (rung: Api.LadderRung) => wordOf<Rung>(Api.LadderRung, rung);
const msOf = (ms: bigint) => (ms === 0n ? undefined : Number(ms));

function resultOf(result: Api.ExecutionResult | undefined): ExecutionResult | undefined {
  if (result === undefined) return undefined;
  return {
    reason: wordOf<ExitReason>(Api.ExitReason, result.reason) ?? 'failed',
    rung: rungOf(result.rung),
    exitCode: result.exitCode,
    signal: result.signal || undefined,
    message: result.message || undefined,
  };
}

function timesOf(times: Api.ExecutionTimes | undefined): ExecutionTimes {
  return {
    acceptedAtMs: Number(times?.acceptedAtMs ?? 0n),
    startedAtMs: msOf(times?.startedAtMs ?? 0n),
    signaledAtMs: msOf(times?.signaledAtMs ?? 0n),
    exitedAtMs: msOf(times?.exitedAtMs ?? 0n),
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
    pid,
  };
}

export function statusOf(status: Api.GetExecutionStatusResponse): ExecutionStatus {
  const { sessionId, executionId, language, state, rung, result, times, pid } = status;
  return {
    sessionId,
    executionId,
    language,
    state: stateOf(state),
    rung: rungOf(rung),
    result: resultOf(result),
    times: timesOf(times),
    sequence: Number(status.sequence),
    pid,
    stdoutBytes: Number(status.stdoutBytes),
    stderrBytes: Number(status.stderrBytes),
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

export function sessionRequest(sessionId: string, config: SessionConfiguration): Api.CreateSessionRequest {
  return {
    sessionId,
    config: {
      contextPoolSize: config.contextPoolSize ?? 0,
      enabledLanguages: config.enabledLanguages ?? [],
      enabledIntrinsics: config.enabledIntrinsics ?? [],
      memoryLimitMb: BigInt(config.memoryLimitMb ?? 0),
      enableAi: config.enableAi ?? false,
    },
  };
}

export function snippetRequest(snippet: Snippet): Api.ExecuteSnippetRequest {
  const { sessionId, executionId, code, language, env = {}, args = [] } = snippet;
  return {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    config: {
      memoryLimitMb: undefined,
      enableAi: undefined,
      timeoutSeconds: undefined,
      enabledIntrinsics: [],
      timeoutMs: bigintOf(snippet.timeoutMs),
      graceMs: bigintOf(snippet.graceMs),
      workingDirectory: snippet.workingDirectory,
      sourceFileName: snippet.sourceFileName,
      stdin: snippet.stdin,
    },
  };
}

export const bigintOf = (value: number | undefined) => (value === undefined ? undefined : BigInt(value));
