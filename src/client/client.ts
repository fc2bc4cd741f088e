import { setTimeout as sleep } from 'node:timers/promises';
import type {
  ClientReadableStream,
  ClientUnaryCall,
  CallOptions as GrpcCallOptions,
  Metadata,
  ServiceError,
} from '@grpc/grpc-js';
import type {
  DeleteOptions,
  ExecutionStatus,
  InputOptions,
  MetricsOptions,
  SessionSnapshot,
  SignalOptions,
  StopOptions,
  StreamOptions,
} from '../api.ts';
import { AlreadyExistsError, FailedPreconditionError, UnauthenticatedError } from '../errors.ts';
import * as Api from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { OutputChunk } from '../output/output-files.ts';
import { checkText } from '../supervisor/argument-types.ts';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import type { StatusEvent } from '../supervisor/execution-record.ts';
import type { Language } from '../supervisor/languages.ts';
import type { Enforcement } from '../supervisor/limits.ts';
import type { SessionConfiguration, Snippet } from '../supervisor/requests.ts';
import { bigintOf, metricsFrom, uint32Of } from '../wire/execution-configuration.ts';
import { errorOf, UnreachableError } from './client-error.ts';
import { type Connection, connectionOf, type DaemonAddress, hasFiles, MAX_TIMER_MS, nameOf } from './connection.ts';
import {
  chunkOf,
  type ExecutionSummary,
  eventOf,
  sessionOf,
  sessionRequest,
  snippetRequest,
  statusOf,
  summaryOf,
} from './convert.ts';
import { Line, RECONNECT_MS } from './line.ts';
import { MetricsRounds } from './metrics-rounds.ts';
import { type Patience, reconnecting, retry } from './reconnect.ts';

/** What every call takes. */
export interface CallOptions {
  /** Ends the call; it rejects with the signal's reason. What the call has started in the daemon stays. */
  signal?: AbortSignal | undefined;
  /** The call's own deadline in ms; it rejects with a `ClientError` of code `deadline_exceeded`. Default: none. */
  deadlineMs?: number | undefined;
}

/** What calls take that last until something happens: they ride through a restart, or a shortage, of the daemon. */
export interface FollowOptions extends CallOptions {
  /**
   * How long the daemon may be away, or lack what the call needs, as descriptors, in ms, before the call rejects as any other
   * does; 0: not at all. Default 10000 for one that has answered before, 0 for another.
   */
  patienceMs?: number | undefined;
}

const PATIENCE_MS = 10_000;

/** How long after its own limit a wait goes on for the daemon to say how things stand, in ms. */
const LATE_ANSWER_MS = 5_000;

/**
 * How long after a call that found nobody the next one looks, in ms: calls cost far more than the failure they share. Less
 * than one that waits by itself lets pass.
 */
const LOOK_MS = 100;

/** What requests say whose they are by. */
interface Named {
  sessionId?: string;
  executionId?: string;
}

type Answer<Res> = (error: ServiceError | null, response: Res) => void;
type UnaryMethod<Req, Res> = (
  request: Req,
  metadata: Metadata,
  options: Partial<GrpcCallOptions>,
  callback: Answer<Res>,
) => ClientUnaryCall;
type StreamMethod<Req, Res> = (
  request: Req,
  metadata: Metadata,
  options: Partial<GrpcCallOptions>,
) => ClientReadableStream<Res>;

/**
 * Makes a client of the daemon at this address. It connects with the first call, and again after a connection broke. Throws
 * an `InvalidArgumentError` that names a file of credentials which cannot be used, or an address that is none.
 */
export function connectDaemon(address: DaemonAddress): DaemonClient {
  return new DaemonClient(address, connectionOf(address));
}

const METHODS: Api.ExecutionApiClient = Api.ExecutionApiClient.prototype;

/**
 * A daemon's API with the daemon library's own names, values and errors. Rejects with the daemon's error classes; with
 * `UnreachableError` when nobody answers; with `UnauthenticatedError` when its files of credentials cannot be used; with
 * `ClientError` for any other gRPC status.
 */
export class DaemonClient {
  /** For people: `unix:PATH` or `tcp:HOST:PORT`. */
  readonly address: string;
  readonly #target: DaemonAddress;
  /** For the first line: files may be such as are read only once. */
  #read: Connection | undefined;
  #line: Line | undefined;
  /** Those that calls are still open on. */
  readonly #retired = new Set<Line>();
  /** What the last call found that nobody took. */
  #away: { failure: UnreachableError; nextLookMs: number } | undefined;
  /** A daemon has answered. */
  #met = false;
  #closed = false;
  /** What ends each call that is open. */
  readonly #ends = new Set<() => void>();

  /** `read`: what the address says, with what its files hold, where that is known. */
  constructor(address: DaemonAddress, read?: Connection) {
    this.address = nameOf(address);
    this.#target = address;
    this.#read = read;
  }

  /** Ends open calls and lets the connection go; they, and calls after it, reject with a `FailedPreconditionError`. */
  close(): void {
    this.#closed = true;
    for (const end of this.#ends) end();
    this.#line?.close();
    for (const line of this.#retired) line.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  health(options?: CallOptions): Promise<Api.HealthResponse> {
    return this.#unary(METHODS.health, {}, options);
  }

  async languages(options?: CallOptions): Promise<Language[]> {
    return (await this.#unary(METHODS.listLanguages, {}, options)).languages;
  }

  /** The same id with the same configuration again is harmless; with another it is an `AlreadyExistsError`. */
  async createSession(sessionId: string, config: SessionConfiguration = {}, options?: CallOptions): Promise<void> {
    await this.#unary(METHODS.createSession, sessionRequest(sessionId, config), options);
  }

  /** As {@link createSession}; a session with another configuration is replaced when nothing runs in it, else kept: false. */
  async openSession(sessionId: string, config: SessionConfiguration, options?: CallOptions): Promise<boolean> {
    try {
      await this.createSession(sessionId, config, options);
      return true;
    } catch (error) {
      if (!(error instanceof AlreadyExistsError)) throw error;
    }
    try {
      await this.deleteSession(sessionId, { ...options, refuseIfBusy: true });
    } catch (error) {
      if (error instanceof FailedPreconditionError && !this.#closed) return false;
      throw error;
    }
    await this.createSession(sessionId, config, options);
    return true;
  }

  async getSession(sessionId: string, options?: CallOptions): Promise<SessionSnapshot> {
    return sessionOf(await this.#unary(METHODS.getSession, { sessionId }, options));
  }

  async listSessions(options?: CallOptions): Promise<SessionSnapshot[]> {
    return (await this.#unary(METHODS.listSessions, {}, options)).sessions.map(sessionOf);
  }

  /** Stops everything in the session; resolves when all of it is gone. */
  async deleteSession(
    sessionId: string,
    { force = false, refuseIfBusy = false, graceMs, ...options }: CallOptions & DeleteOptions = {},
  ): Promise<void> {
    const request = { sessionId, force, refuseIfBusy, graceMs: bigintOf(graceMs, 'grace_ms') };
    await this.#unary(METHODS.deleteSession, request, options);
  }

  /** Accepts a snippet, and resolves before it runs. The same id with the same request again is harmless. */
  async executeSnippet(snippet: Snippet, options?: CallOptions): Promise<void> {
    await this.#unary(METHODS.executeSnippet, snippetRequest(snippet), options);
  }

  async getExecutionStatus(sessionId: string, executionId: string, options?: CallOptions): Promise<ExecutionStatus> {
    return statusOf(await this.#unary(METHODS.getExecutionStatus, { sessionId, executionId }, options));
  }

  /** Oldest first; of one session or of all. Asks page after page. */
  async *listExecutions(sessionId?: string, options?: CallOptions): AsyncGenerator<ExecutionSummary> {
    for (let pageToken = ''; ; ) {
      const request = { sessionId: sessionId ?? '', pageSize: 0, pageToken };
      const page = await this.#unary(METHODS.listExecutions, request, options);
      yield* page.executions.map(summaryOf);
      if (page.nextPageToken === '') return;
      pageToken = page.nextPageToken;
    }
  }

  /** Starts the ladder: true when a stop is under way, false when there is nothing to stop (any more). */
  async cancelExecution(
    sessionId: string,
    executionId: string,
    stop: StopOptions = {},
    options?: CallOptions,
  ): Promise<boolean> {
    const { signal = '', graceMs } = stop;
    const request = { sessionId, executionId, signal, timeoutSeconds: 0, graceMs: bigintOf(graceMs, 'grace_ms') };
    return (await this.#unary(METHODS.cancelExecution, request, options)).success;
  }

  /** Delivers one signal by name, with `signalTree` to the guest's child processes too; false when the execution has exited. */
  async signalExecution(
    sessionId: string,
    executionId: string,
    signal: string,
    { signalTree = false, ...options }: CallOptions & SignalOptions = {},
  ): Promise<boolean> {
    const request = { sessionId, executionId, signal, signalTree };
    return (await this.#unary(METHODS.signalExecution, request, options)).success;
  }

  /** What an execution uses now, or used in all once it has exited. */
  async getExecutionMetrics(sessionId: string, executionId: string, options?: CallOptions): Promise<ExecutionMetrics> {
    return metricsFrom(await this.#unary(METHODS.getExecutionMetrics, { sessionId, executionId }, options));
  }

  /**
   * The same at an interval: of one execution until its end, or of all that run, in a session or in all. Rides through a
   * restart of the daemon; the round after it has the CPU share since the start.
   */
  async *watchExecutionMetrics({
    sessionId = '',
    executionId = '',
    intervalMs = 0,
    patienceMs,
    ...options
  }: FollowOptions & MetricsOptions = {}): AsyncGenerator<ExecutionMetrics[]> {
    uint32Of(intervalMs, 'interval_ms');
    const request = { sessionId, executionId, intervalMs, allowPartial: true };
    const open = () => this.#stream(METHODS.watchExecutionMetrics, request, options);
    const rounds = new MetricsRounds();
    for await (const response of reconnecting(open, this.#patience(options, patienceMs))) {
      const round = rounds.add(response);
      yield round;
      // Where the connection is lost behind these, another would bring them again.
      if (executionId !== '' && round[0]?.complete) return;
    }
  }

  /** By which mechanism the node holds each limit, for each engine. */
  async enforcement(options?: CallOptions): Promise<Enforcement[]> {
    return (await this.#unary(METHODS.getEnforcement, {}, options)).limits;
  }

  /**
   * Resolves when the execution has exited, or when `timeoutMs` passed: look at the state to see which. Rides through a
   * restart of the daemon, within that time. Where a daemon that is there does not answer 5 s after it either, rejects with
   * a `ClientError` of code `deadline_exceeded`.
   */
  async wait(
    sessionId: string,
    executionId: string,
    { timeoutMs, patienceMs, ...options }: FollowOptions & { timeoutMs?: number | undefined } = {},
  ): Promise<ExecutionSummary> {
    // Of what is wrong what is left may be right.
    bigintOf(timeoutMs, 'timeout_ms');
    const beganMs = performance.now();
    const left = () => timeoutMs && Math.max(0, Math.round(timeoutMs - (performance.now() - beganMs)));
    return retry(
      async () => {
        const leftMs = left();
        const request = { sessionId, executionId, timeoutMs: bigintOf(leftMs, 'timeout_ms') };
        const { deadlineMs = leftMs === undefined ? undefined : leftMs + LATE_ANSWER_MS } = options;
        const { execution } = await this.#unary(METHODS.waitExecution, request, { ...options, deadlineMs });
        return summaryOf(execution ?? Api.ExecutionSummary.create({ sessionId, executionId }));
      },
      this.#patience(options, patienceMs, () => left() === 0),
    );
  }

  /**
   * Appends to an execution's standard input; resolves when the guest's pipe took it. `end` closes it. With `position`, the
   * place of its first byte in all input, the call may be made again: what the guest has already is not written twice. Rejects
   * with `OutOfRangeError` for a position in the future, with `FailedPreconditionError` for bytes behind the end, and for an
   * execution that has exited: after a call that nobody answered this leaves open whether it was taken.
   */
  async writeInput(
    sessionId: string,
    executionId: string,
    data: Uint8Array,
    end = false,
    { position, ...options }: CallOptions & InputOptions = {},
  ): Promise<void> {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    const request = { sessionId, executionId, data: bytes, end, position: bigintOf(position, 'position') };
    await this.#unary(METHODS.writeExecutionInput, request, options);
  }

  /** Gives up a finished execution: its result, its output, its id. */
  async releaseExecution(sessionId: string, executionId: string, options?: CallOptions): Promise<void> {
    await this.#unary(METHODS.releaseExecution, { sessionId, executionId }, options);
  }

  /** Every status event from a sequence number on, those to come included; ends after the last one. Rides through a restart. */
  async *watchExecution(
    sessionId: string,
    executionId: string,
    { fromSequence = 1, patienceMs, ...options }: FollowOptions & { fromSequence?: number | undefined } = {},
  ): AsyncGenerator<StatusEvent> {
    let next = fromSequence;
    const open = () => {
      const request = { sessionId, executionId, fromSequence: bigintOf(next, 'from_sequence') };
      return this.#stream(METHODS.watchExecution, request, options);
    };
    for await (const event of reconnecting(open, this.#patience(options, patienceMs))) {
      const { sequence } = event;
      next = Number(sequence) + 1;
      yield eventOf(event);
    }
  }

  /**
   * The bytes an execution wrote, both streams interleaved as they were written. Follows until its end, and rides through a
   * restart of the daemon.
   */
  async *streamOutput(
    sessionId: string,
    executionId: string,
    { streams = ['stdout', 'stderr'], patienceMs, ...options }: FollowOptions & StreamOptions = {},
  ): AsyncGenerator<OutputChunk> {
    const [includeStdout, includeStderr] = [streams.includes('stdout'), streams.includes('stderr')];
    // To the daemon a request for none is one for both.
    if (!includeStdout && !includeStderr) return;
    const next = { stdout: options.stdoutPosition ?? 0, stderr: options.stderrPosition ?? 0 };
    const open = () =>
      this.#stream(
        METHODS.streamExecutionOutput,
        {
          sessionId,
          executionId,
          includeStdout,
          includeStderr,
          stdoutPosition: bigintOf(next.stdout, 'stdout_position'),
          stderrPosition: bigintOf(next.stderr, 'stderr_position'),
          noFollow: options.follow === false,
        },
        options,
      );
    for await (const message of reconnecting(open, this.#patience(options, patienceMs))) {
      const chunk = chunkOf(message);
      next[chunk.stream] = chunk.position + chunk.data.byteLength;
      yield chunk;
    }
  }

  /** Unless the caller says, a return is waited for only of a daemon that was there; and for no call whose time `isUp`. */
  #patience({ signal }: CallOptions, patienceMs?: number, isUp = () => false): Patience {
    const limitMs = () => patienceMs ?? (this.#met ? PATIENCE_MS : 0);
    return { limitMs: () => (this.#closed || isUp() ? 0 : limitMs()), signal, ofShortage: true };
  }

  #requireOpen(signal: AbortSignal | undefined): void {
    signal?.throwIfAborted();
    if (this.#closed) throw new FailedPreconditionError('this client was closed');
  }

  /** Where nobody was there a moment ago, one call looks for the daemon; the others fail as the last look did. */
  #connect(): Line {
    const nowMs = performance.now();
    if (this.#line?.isConnected) this.#away = undefined;
    if (this.#away !== undefined) {
      if (nowMs < this.#away.nextLookMs) throw this.#away.failure;
      this.#away.nextLookMs = nowMs + LOOK_MS;
    }
    if (this.#line === undefined || this.#line.isClosed) {
      this.#line = new Line(this.#target, this.#read);
      this.#read = undefined;
    }
    return this.#line;
  }

  /** Where there was no way in, the next call reads the files of credentials anew: they may hold others by then. */
  #failureOf(error: unknown, line: Line): unknown {
    const failure = errorOf(error, this.address);
    if (isUnsent(failure)) this.#away = { failure, nextLookMs: performance.now() + LOOK_MS };
    if (this.#line === line && isRefusal(failure) && hasFiles(this.#target)) {
      this.#line = undefined;
      this.#retired.add(line);
      line.retire(() => this.#retired.delete(line));
    }
    return failure;
  }

  /** A connection is tried anew at a distance: a call that was never sent waits for the next try, for a daemon that was met. */
  async #unary<Req extends Named, Res>(
    method: UnaryMethod<Req, Res>,
    request: Req,
    options: CallOptions = {},
  ): Promise<Res> {
    const beganMs = performance.now();
    for (;;) {
      try {
        return await this.#call(method, request, options);
      } catch (error) {
        const isPatient = this.#met && !this.#closed && performance.now() - beganMs <= RECONNECT_MS * 2;
        if (!isUnsent(error) || !isPatient) throw error;
        await sleep(LOOK_MS, undefined, { signal: options.signal }).catch(() => {});
      }
    }
  }

  async #call<Req extends Named, Res>(
    method: UnaryMethod<Req, Res>,
    request: Req,
    { signal, deadlineMs }: CallOptions,
  ): Promise<Res> {
    this.#requireOpen(signal);
    checkIds(request);
    const line = this.#connect();
    const { promise, resolve, reject } = Promise.withResolvers<Res>();
    const call = method.call(line.api, request, line.metadata.clone(), grpcOptions(deadlineMs), (error, response) => {
      if (signal?.aborted || this.#closed) return;
      const failure = error && this.#failureOf(error, line);
      this.#met ||= !isRefusal(failure);
      if (failure === null) resolve(response);
      else reject(failure);
    });
    using _open = this.#open(line, signal, () => {
      reject();
      call.cancel();
    });
    try {
      return await promise;
    } catch (error) {
      this.#requireOpen(signal);
      throw error;
    }
  }

  async *#stream<Req extends Named, Res>(
    method: StreamMethod<Req, Res>,
    request: Req,
    { signal, deadlineMs }: CallOptions = {},
  ): AsyncGenerator<Res> {
    this.#requireOpen(signal);
    checkIds(request);
    const line = this.#connect();
    const call = method.call(line.api, request, line.metadata.clone(), grpcOptions(deadlineMs));
    // Cancelling makes an error event, after which nobody may be listening any more.
    call.on('error', () => {});
    using _open = this.#open(line, signal, () => call.cancel());
    try {
      for await (const message of call as AsyncIterable<Res>) {
        this.#met = true;
        yield message;
      }
    } catch (error) {
      this.#requireOpen(signal);
      throw this.#failureOf(error, line);
    } finally {
      call.cancel();
    }
  }

  /** A call on this line, open until it is disposed of: `end` is called when its caller leaves or the client is closed. */
  #open(line: Line, signal: AbortSignal | undefined, end: () => void): Disposable {
    line.hold();
    this.#ends.add(end);
    signal?.addEventListener('abort', end);
    const dispose = () => {
      signal?.removeEventListener('abort', end);
      this.#ends.delete(end);
      line.release();
    };
    return { [Symbol.dispose]: dispose };
  }
}

/** What is no text would be another id on the wire. */
function checkIds(request: Named): void {
  if ('sessionId' in request) checkText(request.sessionId, 'session_id');
  if ('executionId' in request) checkText(request.executionId, 'execution_id');
}

function isUnsent(failure: unknown): failure is UnreachableError {
  return failure instanceof UnreachableError && failure.isUnsent;
}

/** Nobody was there, or did not let this client in. */
function isRefusal(failure: unknown): boolean {
  return failure instanceof UnreachableError || failure instanceof UnauthenticatedError;
}

function grpcOptions(deadlineMs: number | undefined): Partial<GrpcCallOptions> {
  // What no timer takes is as good as none: gRPC would take it for one that has passed.
  return deadlineMs === undefined || deadlineMs > MAX_TIMER_MS ? {} : { deadline: Date.now() + deadlineMs };
}
