import type { ExecutionStatus } from '../api.ts';
import type { Daemon } from '../daemon.ts';
import { InvalidArgumentError } from '../errors.ts';
import type { ExecutionApiServer } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import * as Api from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { textOf } from '../output/utf8.ts';
import { VERSION } from '../version.ts';
import { metricsOf, millisecondsOf, numberOf } from '../wire/execution-configuration.ts';
import {
  errorOf,
  eventOf,
  secondsOf,
  sessionConfigurationOf,
  sessionOf,
  snippetOf,
  statusOf,
  summaryOf,
} from './convert.ts';
import type { Handlers } from './handlers.ts';

/** How much output of each stream a status reply holds: with every byte replaced by U+FFFD still below 4 MiB in all. */
const STATUS_OUTPUT_BYTES = 512 * 1024;
const LARGEST_PAGE = 1000;
/** How many bytes of executions a page holds, if it holds more than one: a client takes 4 MiB unless it says otherwise. */
const LARGEST_PAGE_BYTES = 3 * 1024 * 1024;

/** `elide.daemon.v1alpha1.ExecutionApi` over a daemon: decode, one call, encode. */
export function executionService(daemon: Daemon, handlers: Handlers): ExecutionApiServer {
  const { unary, stream } = { unary: handlers.unary.bind(handlers), stream: handlers.stream.bind(handlers) };
  return {
    createSession: unary(async ({ sessionId, config }: Api.CreateSessionRequest) => {
      const session = await daemon.createSession(sessionId, sessionConfigurationOf(config));
      return { sessionId, status: Api.SessionStatus.ACTIVE, createdAt: secondsOf(session.createdAtMs) };
    }),

    getSession: unary(async ({ sessionId }: Api.GetSessionRequest) => sessionOf(await daemon.getSession(sessionId))),

    deleteSession: unary(async ({ sessionId, force, refuseIfBusy, graceMs }: Api.DeleteSessionRequest) => {
      await daemon.deleteSession(sessionId, {
        force,
        refuseIfBusy,
        graceMs: millisecondsOf(graceMs, undefined, 'grace_ms'),
      });
      return { success: true };
    }),

    executeSnippet: unary(async (request: Api.ExecuteSnippetRequest) => {
      const { sessionId, executionId, state, result } = await daemon.executeSnippet(snippetOf(request));
      return { sessionId, executionId, status: statusOf(state, result) };
    }),

    getExecutionStatus: unary(async ({ sessionId, executionId }: Api.GetExecutionStatusRequest) => {
      const found = await daemon.getExecutionStatus(sessionId, executionId);
      const [stdout, stderr] = await Promise.all([tail(daemon, found, 'stdout'), tail(daemon, found, 'stderr')]);
      const { state, result, sequence, stdoutBytes, stderrBytes, outputEvicted } = found;
      return {
        ...summaryOf(found),
        complete: state === 'exited',
        exitCode: result?.exitCode ?? 0,
        stdout: stdout.text,
        stderr: stderr.text,
        error: errorOf(result),
        timedOut: result?.reason === 'timed_out',
        sequence: BigInt(sequence),
        stdoutBytes: BigInt(stdoutBytes),
        stderrBytes: BigInt(stderrBytes),
        stdoutPosition: BigInt(stdout.position),
        stderrPosition: BigInt(stderr.position),
        outputEvicted,
      };
    }),

    cancelExecution: unary(async (request: Api.CancelExecutionRequest) => {
      const { sessionId, executionId, signal, graceMs, timeoutSeconds } = request;
      const success = await daemon.cancelExecution(sessionId, executionId, {
        signal,
        graceMs: millisecondsOf(graceMs, timeoutSeconds === 0 ? undefined : timeoutSeconds, 'timeout'),
      });
      return { success, message: success ? '' : `execution "${executionId}" has exited, or there is none` };
    }),

    health: unary(async () => {
      const { maxRunning, maxQueuedInAll: maxQueued } = daemon.config;
      return { healthy: daemon.healthy, version: VERSION, maxRunning, maxQueued };
    }),

    watchExecution: stream(async function* (
      { sessionId, executionId, fromSequence }: Api.WatchExecutionRequest,
      signal,
    ) {
      const options = { fromSequence: numberOf(fromSequence, 'from_sequence'), signal };
      // Looked up once: with its end it may be nobody's any more.
      const found = await daemon.getExecution(sessionId, executionId);
      const warnings = [...found.warnings];
      for await (const event of daemon.watchExecution(sessionId, executionId, options)) {
        if (event.warning !== undefined && event.sequence > found.sequence) warnings.push(event.warning);
        yield eventOf(event, { ...found, warnings, times: { ...found.times, exitedAtMs: event.atMs } });
      }
    }),

    streamExecutionOutput: stream(async function* (request: Api.StreamExecutionOutputRequest, signal) {
      const { sessionId, executionId, includeStdout, includeStderr } = request;
      const both = includeStdout === includeStderr;
      const chunks = daemon.streamOutput(sessionId, executionId, {
        streams: both ? ['stdout', 'stderr'] : [includeStdout ? 'stdout' : 'stderr'],
        stdoutPosition: numberOf(request.stdoutPosition, 'stdout_position'),
        stderrPosition: numberOf(request.stderrPosition, 'stderr_position'),
        follow: !request.noFollow,
        signal,
      });
      for await (const { stream: name, position, atMs, data } of chunks) {
        yield { stream: name, data, timestamp: BigInt(Math.trunc(atMs)), position: BigInt(position) };
      }
    }),

    signalExecution: unary(async ({ sessionId, executionId, signal, signalTree }: Api.SignalExecutionRequest) => ({
      success: await daemon.signalExecution(sessionId, executionId, signal, { signalTree }),
    })),

    waitExecution: unary(async ({ sessionId, executionId, timeoutMs }: Api.WaitExecutionRequest, signal) => {
      const limitMs = millisecondsOf(timeoutMs, undefined, 'timeout_ms');
      const execution = await daemon.wait(sessionId, executionId, { timeoutMs: limitMs, signal });
      return { complete: execution.state === 'exited', execution: summaryOf(execution) };
    }),

    writeExecutionInput: unary(async (request: Api.WriteExecutionInputRequest, signal) => {
      const { sessionId, executionId, data, end } = request;
      const position = request.position === undefined ? undefined : numberOf(request.position, 'position');
      await daemon.writeInput(sessionId, executionId, data, end, { position, signal });
      return {};
    }),

    getExecutionMetrics: unary(async ({ sessionId, executionId }: Api.GetExecutionMetricsRequest) =>
      metricsOf(await daemon.getExecutionMetrics(sessionId, executionId)),
    ),

    watchExecutionMetrics: stream(async function* (
      { sessionId, executionId, intervalMs, allowPartial }: Api.WatchExecutionMetricsRequest,
      signal,
    ) {
      const options = { sessionId: sessionId || undefined, executionId: executionId || undefined, signal };
      const rounds = daemon.watchExecutionMetrics({ ...options, intervalMs: intervalMs || undefined, allowPartial });
      let partial = false;
      for await (const round of rounds) {
        yield { executions: round.map(metricsOf), partial, timestamp: BigInt(Date.now()) };
        partial = allowPartial && executionId === '';
      }
    }),

    releaseExecution: unary(async ({ sessionId, executionId }: Api.ReleaseExecutionRequest) => {
      await daemon.releaseExecution(sessionId, executionId);
      return {};
    }),

    getEnforcement: unary(async () => ({ limits: daemon.enforcement() })),

    listSessions: unary(async () => ({ sessions: (await daemon.listSessions()).map(sessionOf) })),

    listExecutions: unary(async ({ sessionId, pageSize, pageToken }: Api.ListExecutionsRequest) => {
      if (pageSize > LARGEST_PAGE) throw new InvalidArgumentError(`page_size is ${pageSize}; at most ${LARGEST_PAGE}`);
      if (!/^\d{0,15}$/.test(pageToken)) throw new InvalidArgumentError(`page_token "${pageToken}" is none of ours`);
      // The number of the last one before: what is given up meanwhile moves no page.
      const after = Number(pageToken);
      for (let size = pageSize || LARGEST_PAGE; ; size = Math.ceil(size / 2)) {
        const { executions, next } = await daemon.pageOfExecutions(sessionId || undefined, { after, size });
        const page = { executions: executions.map(summaryOf), nextPageToken: next === undefined ? '' : String(next) };
        const { byteLength } = Api.ListExecutionsResponse.encode(page).finish();
        if (byteLength <= LARGEST_PAGE_BYTES || size === 1) return page;
      }
    }),

    listLanguages: unary(async () => ({ languages: daemon.languages() })),
  };
}

/** Ends where the status does that was looked up before: a guest may have written more since. */
async function tail(daemon: Daemon, status: ExecutionStatus, stream: 'stdout' | 'stderr') {
  const { sessionId, executionId, [`${stream}Bytes` as const]: end } = status;
  const { position, data } = await daemon.tailOutput(sessionId, executionId, stream, STATUS_OUTPUT_BYTES, end);
  const { text, skipped } = textOf(data, { cutBefore: position > 0 });
  return { text, position: position + skipped };
}
