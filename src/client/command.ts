import { nanoid } from 'nanoid';
import type { ExecutionResult, ExitReason } from '../../machines/execution.ts';
import type { OutputChunk } from '../output/output-files.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { abandon, forget } from './abandon.ts';
import type { CallOptions, DaemonClient } from './client.ts';
import { COMMAND, FRAME, frame, TERMINAL } from './command-programs.ts';
import { shown, typed } from './cooked.ts';
import { retry } from './reconnect.ts';

/** Beside which execution a command runs: in its session, directory and environment, under limits of its own. */
export type CommandPlace = Omit<Snippet, 'code' | 'args' | 'stdin'>;

/**
 * What to run: a program with its arguments, by a Python of the session; or code in the place's own language. `terminal`: the
 * caller is one, in raw mode. A program then has one of its own; code has not, and is spoken to as through one.
 */
export type CommandProgram =
  | { argv: string[]; terminal: boolean }
  | { code: string; args: string[]; terminal?: boolean | undefined };

/** How a command runs. */
export interface CommandOptions {
  /** Its input is what is written to it; else that is at its end. */
  stdin: boolean;
  /** Ends it by force. */
  signal: AbortSignal;
  /** How long the daemon may be away, in ms. */
  limitMs: number;
  /** How long it waits for a place on the node, in ms. Default 5000: somebody waits for it. */
  queueLimitMs?: number | undefined;
}

/** How long the daemon has to say that a command which is killed is gone, in ms. */
const KILL_LIMIT_MS = 2_000;

/** How much a command may write: the daemon keeps it on disk until the command has ended. */
const OUTPUT_LIMIT_BYTES = 256 * 2 ** 20;
const QUEUE_LIMIT_MS = 5_000;
/** How much of what is typed may wait for code that does not read, in bytes. Only what is behind more than that has to wait. */
const TYPED_BYTES = 16 * 2 ** 10;

/** Ends that say nothing of the command's own. */
const FAILURES: Partial<Record<ExitReason, string>> = {
  start_failed: 'the command could not be started',
  queue_timed_out: 'no place came free for the command in time: the node is full, or busy with what starts there',
  output_exceeded: 'the command was ended for its output',
};

/** Whether it was more than killed while it waited. */
const wasStarted = ({ reason, exitCode }: ExecutionResult) => reason !== 'cancelled' || exitCode !== -1;

/** In the id of each command that this process has handed in. */
const STARTER = nanoid();

/** Whether that is the id of a command beside this execution which another process has handed in. */
export const isCommandOfAnother = (id: string, executionId: string) =>
  id.startsWith(`${executionId}/exec/`) && !id.includes(STARTER);

/** One command beside an execution: an execution of its own, whose id begins with the other's. */
export class Command {
  readonly #client: DaemonClient;
  readonly #snippet: Snippet;
  readonly #terminal: boolean;
  /** It is spoken to as through a terminal, and has none. */
  readonly #isCooked: boolean;
  #interrupts = 0;
  readonly #signal: AbortSignal;
  readonly #limitMs: number;
  readonly #queueLimitMs: number;
  readonly #admitted: Promise<void>;
  /** Input is written in the order it came. */
  #written: Promise<void>;
  #position = 0;
  /** How much of what was typed waits to be taken. */
  #typedBytes = 0;
  /** Aborts when nothing is asked of it any more. */
  readonly #over = new AbortController();
  /** Resolves when the daemon has been told to end it. */
  #killed: Promise<void> | undefined;

  /** Hands it in; what goes wrong with that, `run` rejects with. */
  constructor(client: DaemonClient, place: CommandPlace, program: CommandProgram, options: CommandOptions) {
    this.#client = client;
    const { terminal = false, ...own } = program;
    this.#terminal = terminal && 'argv' in own;
    this.#isCooked = terminal && 'code' in own;
    const code = this.#terminal ? TERMINAL : COMMAND;
    const snippet = 'argv' in own ? { language: 'python', code, args: own.argv } : own;
    const executionId = `${place.executionId}/exec/${STARTER}/${nanoid()}`;
    const { stdin, signal, limitMs, queueLimitMs = QUEUE_LIMIT_MS } = options;
    this.#snippet = { ...place, ...snippet, executionId, stdin, ahead: true };
    this.#signal = signal;
    this.#limitMs = limitMs;
    this.#queueLimitMs = queueLimitMs;
    this.#admitted = retry(() => this.#admit({ signal: this.#over.signal }), { limitMs, signal });
    this.#written = this.#admitted;
    this.#admitted.catch(() => {});
  }

  /** What it writes, and its result. It is killed where that is not read to its end. */
  async *run(): AsyncGenerator<OutputChunk, ExecutionResult | undefined> {
    const { sessionId, executionId } = this.#snippet;
    const follow = { signal: this.#over.signal, patienceMs: this.#limitMs };
    let result: ExecutionResult | undefined;
    this.#signal.addEventListener('abort', this.#kill);
    if (this.#signal.aborted) this.#kill();
    try {
      await this.#admitted;
      for await (const chunk of this.#client.streamOutput(sessionId, executionId, follow)) {
        yield this.#isCooked ? { ...chunk, data: shown(chunk.data) } : chunk;
      }
      ({ result } = await this.#client.wait(sessionId, executionId, follow));
    } finally {
      this.#signal.removeEventListener('abort', this.#kill);
      if (result === undefined) this.#kill();
      else this.#over.abort();
      this.#release().catch(() => {});
    }
    const isOwn = result && (this.#interrupts > 0 || wasStarted(result));
    const failure = result && FAILURES[isOwn ? result.reason : 'queue_timed_out'];
    if (failure === undefined) return result;
    throw new Error(result?.message === undefined ? failure : `${failure}: ${result.message}`);
  }

  /**
   * Of its standard input, or what is typed at its terminal; `end` is the end of it. Resolves when it is taken, nobody is there
   * any more to take it, or it need not be waited for.
   */
  write(data: Uint8Array, end: boolean): Promise<void> {
    if (this.#isCooked) return this.#type(data, end);
    if (!this.#terminal) return this.#send(data, end);
    const framed = frame(FRAME.data, data);
    return this.#send(end ? Buffer.concat([framed, frame(FRAME.end, Buffer.alloc(0))]) : framed);
  }

  /** Of its terminal, in characters; nothing without one. Resolves as `write` does. */
  async resize(rows: number, columns: number): Promise<void> {
    const size = Buffer.alloc(4);
    size.writeUInt16BE(rows & 0xffff, 0);
    size.writeUInt16BE(columns & 0xffff, 2);
    if (this.#terminal) await this.#send(frame(FRAME.size, size));
  }

  /** Under limits of its own, where the session's are not lower. */
  async #admit(options: CallOptions): Promise<void> {
    const { config } = await this.#client.getSession(this.#snippet.sessionId, options);
    const { outputLimitBytes = Infinity, queueTimeoutMs = Infinity } = config.executionCeilings;
    const limits = {
      outputLimitBytes: Math.min(OUTPUT_LIMIT_BYTES, outputLimitBytes),
      queueTimeoutMs: Math.min(this.#queueLimitMs, queueTimeoutMs),
    };
    await this.#client.executeSnippet({ ...this.#snippet, ...limits, outputPolicy: 'kill' }, options);
  }

  /** The daemon is to keep nothing of it. */
  async #release(): Promise<void> {
    const { sessionId, executionId } = this.#snippet;
    await this.#killed;
    await forget(this.#client, sessionId, executionId);
  }

  /** Code that computes reads nothing: what comes next may be Ctrl-C. */
  async #type(data: Uint8Array, end: boolean): Promise<void> {
    const { input, ends, interrupts } = typed(data);
    for (let count = 0; count < interrupts; count += 1) this.#interrupt();
    if (input.byteLength === 0 && !end && !ends) return;
    this.#typedBytes += input.byteLength;
    const taken = this.#send(input, end || ends).then(() => {
      this.#typedBytes -= input.byteLength;
    });
    if (this.#typedBytes > TYPED_BYTES) await taken;
  }

  /** Stops it, the second time by force. */
  #interrupt(): void {
    const { sessionId, executionId } = this.#snippet;
    this.#interrupts += 1;
    if (this.#interrupts > 2) return;
    const how = this.#interrupts === 1 ? { signal: 'SIGINT' } : { signal: 'SIGKILL', graceMs: 0 };
    const stop = () => this.#client.cancelExecution(sessionId, executionId, how);
    // It may have exited meanwhile.
    this.#admitted.then(() => retry(stop, { signal: this.#over.signal })).catch(() => {});
  }

  readonly #kill = (): void => {
    if (this.#killed !== undefined) return;
    const { sessionId, executionId } = this.#snippet;
    const error = new Error('the command was killed, and no daemon says that it is gone');
    setTimeout(() => this.#over.abort(error), KILL_LIMIT_MS).unref();
    // What may be on its way to the daemon is to come first.
    const kill = () => abandon(this.#client, sessionId, executionId);
    this.#killed = this.#admitted.then(kill, kill);
  };

  #send(data: Uint8Array, end = false): Promise<void> {
    const { sessionId, executionId } = this.#snippet;
    const { signal } = this.#over;
    const position = this.#position;
    this.#position += data.byteLength;
    const send = () => this.#client.writeInput(sessionId, executionId, data, end, { position, signal });
    // It may have exited meanwhile.
    this.#written = this.#written.then(() => retry(send, { signal })).catch(() => {});
    return this.#written;
  }
}
