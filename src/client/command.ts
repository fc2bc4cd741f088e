import { nanoid } from 'nanoid';
import type { ExecutionResult } from '../../machines/execution.ts';
import type { OutputChunk } from '../output/output-files.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { abandon } from './abandon.ts';
import type { DaemonClient } from './client.ts';
import { COMMAND, FRAME, frame, TERMINAL } from './command-programs.ts';
import { retry } from './reconnect.ts';

/** Beside which execution a command runs: in its session, directory and environment, under limits of its own. */
export type CommandPlace = Omit<Snippet, 'code' | 'args' | 'stdin'>;

/** What to run: a program with its arguments, by a Python of the session; or code in the place's own language. */
export type CommandProgram =
  | { argv: string[]; terminal: boolean }
  | { code: string; args: string[]; terminal?: undefined };

/** How a command runs. */
export interface CommandOptions {
  /** Its input is what is written to it; else that is at its end. */
  stdin: boolean;
  /** Ends it by force. */
  signal: AbortSignal;
  /** How long the daemon that is to run it may be away, in ms. */
  limitMs: number;
}

/** How long the daemon has to say that a command which is killed is gone, in ms. */
const KILL_LIMIT_MS = 2_000;

/** One command beside an execution: an execution of its own, whose id begins with the other's. */
export class Command {
  readonly #client: DaemonClient;
  readonly #snippet: Snippet;
  readonly #terminal: boolean;
  readonly #signal: AbortSignal;
  readonly #admitted: Promise<void>;
  /** Input is written in the order it came. */
  #written: Promise<unknown>;
  /** Aborts when it was killed and nobody said that it is gone. */
  readonly #lost = new AbortController();
  #isKilled = false;

  /** Hands it in; what goes wrong with that, `run` rejects with. */
  constructor(client: DaemonClient, place: CommandPlace, program: CommandProgram, options: CommandOptions) {
    this.#client = client;
    this.#terminal = program.terminal === true;
    const code = this.#terminal ? TERMINAL : COMMAND;
    const snippet = 'argv' in program ? { language: 'python', code, args: program.argv } : program;
    const executionId = `${place.executionId}/exec/${nanoid()}`;
    const { stdin, signal, limitMs } = options;
    this.#snippet = { ...place, ...snippet, executionId, stdin };
    this.#signal = signal;
    const admit = () => client.executeSnippet(this.#snippet, { signal: this.#lost.signal });
    this.#admitted = retry(admit, { limitMs, signal });
    this.#written = this.#admitted;
    this.#admitted.catch(() => {});
  }

  /** What it writes, and its result. It is killed where that is not read to its end. */
  async *run(): AsyncGenerator<OutputChunk, ExecutionResult | undefined> {
    const { sessionId, executionId } = this.#snippet;
    const { signal } = this.#lost;
    let result: ExecutionResult | undefined;
    this.#signal.addEventListener('abort', this.#kill);
    if (this.#signal.aborted) this.#kill();
    try {
      await this.#admitted;
      yield* this.#client.streamOutput(sessionId, executionId, { signal });
      ({ result } = await this.#client.wait(sessionId, executionId, { signal }));
    } finally {
      this.#signal.removeEventListener('abort', this.#kill);
      if (result === undefined) this.#kill();
    }
    if (result?.reason === 'start_failed') throw new Error(result.message ?? 'the command could not be started');
    return result;
  }

  /** Of its standard input, or what is typed at its terminal; `end` is the end of it. */
  write(data: Uint8Array, end: boolean): void {
    if (!this.#terminal) this.#send(data, end);
    else if (data.byteLength > 0) this.#send(frame(FRAME.data, data));
    if (this.#terminal && end) this.#send(frame(FRAME.end, Buffer.alloc(0)));
  }

  /** Of its terminal, in characters; nothing without one. */
  resize(rows: number, columns: number): void {
    const size = Buffer.alloc(4);
    size.writeUInt16BE(rows & 0xffff, 0);
    size.writeUInt16BE(columns & 0xffff, 2);
    if (this.#terminal) this.#send(frame(FRAME.size, size));
  }

  readonly #kill = (): void => {
    if (this.#isKilled) return;
    this.#isKilled = true;
    const { sessionId, executionId } = this.#snippet;
    const error = new Error('the command was killed, and no daemon says that it is gone');
    setTimeout(() => this.#lost.abort(error), KILL_LIMIT_MS).unref();
    // What may be on its way to the daemon is to come first.
    const kill = () => abandon(this.#client, sessionId, executionId);
    void this.#admitted.then(kill, kill);
  };

  #send(data: Uint8Array, end = false): void {
    const { sessionId, executionId } = this.#snippet;
    // It may have exited meanwhile.
    this.#written = this.#written
      .then(() => this.#client.writeInput(sessionId, executionId, data, end))
      .catch(() => {});
  }
}
