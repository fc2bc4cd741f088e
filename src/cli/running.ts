import { constants } from 'node:os';
import {
  type CallOptions,
  type DaemonClient,
  type ExecutionSummary,
  isLost,
  retry,
  UnreachableError,
} from '../client/index.ts';
import { AlreadyExistsError, FailedPreconditionError, NotFoundError, ResourceExhaustedError } from '../errors.ts';
import { ONE_ACT_MS } from '../one-act.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { complain, OutputClosedError, OutputFailedError, write } from './output.ts';
import { describeResult, exitCodeOf } from './result.ts';

/** How long a second SIGINT counts as impatience when no grace period is named: the daemon's own default, in ms. */
const GRACE_MS = 5_000;
/** Nobody presses a key twice faster than this, in ms: also with a shorter grace period a second SIGINT counts. */
const LEAST_PATIENCE_MS = 1_000;
/** How long a command that nobody listens to, or that is to end by force, takes at most to say so to the daemon, in ms. */
const PARTING_MS = 2_000;
/** How long input, signals and a snippet on its way wait for a daemon that is away, or does not answer, in ms. */
const PATIENCE_MS = 10_000;
const RELAYED = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Has the daemon accept a snippet, in a session that is made with the daemon's defaults if there is none. */
export async function admit(client: DaemonClient, snippet: Snippet, options?: CallOptions): Promise<void> {
  const execute = () => client.executeSnippet(snippet, options);
  try {
    await answered(execute);
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    await answered(() => client.createSession(snippet.sessionId, {}, options)).catch((raced) => {
      if (!(raced instanceof AlreadyExistsError)) throw raced;
    });
    await answered(execute);
  }
}

/** Calls again where the connection broke before the answer: the daemon may have done what was asked. */
async function answered(call: () => Promise<void>): Promise<void> {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof UnreachableError) || error.isUnsent) throw error;
    await retry(call, { limitMs: PATIENCE_MS });
  }
}

/** Runs a snippet in the foreground: its output, input and signals are ours. Resolves with the exit code to have. */
export async function attend(client: DaemonClient, snippet: Snippet): Promise<number> {
  const { sessionId, executionId } = snippet;
  const admitted = admit(client, snippet);
  const relay = new SignalRelay(client, snippet, admitted);
  const over = new AbortController();
  let isAdmitted = false;
  const follow = async () => {
    await admitted;
    isAdmitted = true;
    if (snippet.stdin) void forwardInput(client, snippet, over.signal);
    for await (const { data, stream } of client.streamOutput(sessionId, executionId)) await write(data, stream);
    return await report(await client.wait(sessionId, executionId), relay.last);
  };
  try {
    return await Promise.race([follow(), relay.unheard.then((signal) => leave(signal, executionId))]);
  } catch (error) {
    if (error instanceof OutputClosedError || error instanceof OutputFailedError) {
      await client.cancelExecution(sessionId, executionId, {}, { deadlineMs: PARTING_MS }).catch(() => {});
    } else if (isAdmitted && (isLost(error) || error instanceof ResourceExhaustedError)) {
      await complain(`execution "${executionId}" may go on`);
    }
    throw error;
  } finally {
    over.abort();
    relay.close();
  }
}

/** Ends as the signal would have ended it, had nobody caught it. */
async function leave(signal: NodeJS.Signals, executionId: string): Promise<number> {
  await complain(`no daemon answers: ${signal} is not passed on, and execution "${executionId}" may go on`);
  return 128 + constants.signals[signal];
}

/** Says on stderr what the exit code leaves open: why it ended, where not by itself, and what of it is not as asked for. */
async function report(execution: ExecutionSummary, relayed: NodeJS.Signals | undefined): Promise<number> {
  const { result, executionId, warnings } = execution;
  const ownEnd = result?.reason === 'completed' || result?.reason === 'failed';
  const ourSignal = relayed !== undefined && (result?.reason === 'signaled' || result?.reason === 'cancelled');
  if (ourSignal && result.exitCode < 0) return 128 + constants.signals[relayed];
  const isExplained = ownEnd || ourSignal;
  if (!isExplained) await complain(`execution "${executionId}" ended: ${describeResult(execution)}`);
  const droppedBytes = result?.usage?.droppedBytes ?? 0;
  const amiss = [
    isExplained ? result.message : undefined,
    droppedBytes > 0 ? `${droppedBytes} bytes of output were dropped` : undefined,
    ...warnings,
  ];
  for (const what of amiss) if (what) await complain(`execution "${executionId}": ${what}`);
  return exitCodeOf(execution);
}

/** What can be read of stdin. To the program a failure is the end of it; to people it is said. */
async function* inputUntilFailure(): AsyncGenerator<Buffer> {
  try {
    yield* process.stdin;
  } catch (error) {
    await complain(`cannot read stdin: ${(error as Error).message}`);
  }
}

async function forwardInput(client: DaemonClient, snippet: Snippet, signal: AbortSignal): Promise<void> {
  const { sessionId, executionId } = snippet;
  let position = 0;
  const pass = (data: Uint8Array, end: boolean) =>
    retry(() => client.writeInput(sessionId, executionId, data, end, { signal, position }), {
      signal,
      limitMs: PATIENCE_MS,
    });
  try {
    for await (const data of inputUntilFailure()) {
      await pass(data, false);
      position += data.byteLength;
    }
    await pass(new Uint8Array(), true);
  } catch {
    // The program reads no more, or is gone: what becomes of it, the output stream says.
    process.stdin.destroy();
  }
}

/** Passes this process's signals on to an execution; impatience (SIGINT again and again) stops, then forces it. */
class SignalRelay {
  /** The newest signal that came. */
  last: NodeJS.Signals | undefined;
  readonly #client: DaemonClient;
  readonly #snippet: Snippet;
  readonly #admitted: Promise<void>;
  readonly #unheard = Promise.withResolvers<NodeJS.Signals>();
  #interrupts = 0;
  #lastInterruptMs = Number.NEGATIVE_INFINITY;

  constructor(client: DaemonClient, snippet: Snippet, admitted: Promise<void>) {
    this.#client = client;
    this.#snippet = snippet;
    this.#admitted = admitted;
    for (const name of RELAYED) process.on(name, this.#hear);
  }

  /** Resolves with the first signal that could not be passed on in time. */
  get unheard(): Promise<NodeJS.Signals> {
    return this.#unheard.promise;
  }

  close(): void {
    for (const name of RELAYED) process.off(name, this.#hear);
  }

  readonly #hear = (signal: NodeJS.Signals): void => {
    this.last = signal;
    if (signal === 'SIGINT' && performance.now() - this.#lastInterruptMs <= ONE_ACT_MS) return;
    const impatience = signal === 'SIGINT' ? this.#impatience() : 0;
    const limitMs = impatience > 1 ? PARTING_MS : PATIENCE_MS;
    const timer = setTimeout(() => this.#unheard.resolve(signal), limitMs);
    this.#pass(signal, impatience)
      .catch(() => {
        // Not admitted, or gone, or the daemon is for too long: the command ends with that anyway.
      })
      .finally(() => clearTimeout(timer));
  };

  async #pass(signal: NodeJS.Signals, impatience: number): Promise<void> {
    await this.#admitted;
    await retry(() => this.#send(signal, impatience), { limitMs: PATIENCE_MS });
  }

  async #send(signal: NodeJS.Signals, impatience: number): Promise<void> {
    const { sessionId, executionId } = this.#snippet;
    if (impatience > 0) {
      await this.#client.cancelExecution(sessionId, executionId, impatience > 1 ? { signal: 'SIGKILL' } : {});
      return;
    }
    try {
      await this.#client.signalExecution(sessionId, executionId, signal);
    } catch (error) {
      if (!(error instanceof FailedPreconditionError)) throw error;
      // Not started yet: nobody is there to hear the signal.
      await this.#client.cancelExecution(sessionId, executionId, { signal });
    }
  }

  /** How many SIGINTs came before this one, none of them longer ago than the grace period from the next. */
  #impatience(): number {
    const nowMs = performance.now();
    const soon = nowMs - this.#lastInterruptMs <= Math.max(this.#snippet.graceMs ?? GRACE_MS, LEAST_PATIENCE_MS);
    this.#interrupts = soon ? this.#interrupts + 1 : 0;
    this.#lastInterruptMs = nowMs;
    return this.#interrupts;
  }
}
