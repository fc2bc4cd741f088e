import { once } from 'node:events';
import { nanoid } from 'nanoid';
import type { ExecutionResult } from '../../machines/execution.ts';
import type { OutputChunk } from '../output/output-files.ts';
import type { Snippet } from '../supervisor/requests.ts';
import type { DaemonClient } from './client.ts';
import { COMMAND, FRAME, frame, TERMINAL } from './command-programs.ts';

/** Beside which execution a command runs: in its session, directory and environment, under limits of its own. */
export type CommandPlace = Omit<Snippet, 'code' | 'args' | 'stdin'>;

/** What to run: a program with its arguments, by a Python of the session; or code in the place's own language. */
export type CommandProgram =
  | { argv: string[]; terminal: boolean }
  | { code: string; args: string[]; terminal?: undefined };

/** One command beside an execution: an execution of its own, whose id begins with the other's. */
export class Command {
  readonly #client: DaemonClient;
  readonly #snippet: Snippet;
  readonly #terminal: boolean;
  /** Input is written in the order it came. */
  #written: Promise<unknown>;

  /** Hands it in; what goes wrong with that, `run` rejects with. `stdin` false: its input is at its end. */
  constructor(client: DaemonClient, place: CommandPlace, program: CommandProgram, stdin: boolean) {
    this.#client = client;
    this.#terminal = program.terminal === true;
    const code = this.#terminal ? TERMINAL : COMMAND;
    const snippet = 'argv' in program ? { language: 'python', code, args: program.argv } : program;
    const executionId = `${place.executionId}/exec/${nanoid()}`;
    this.#snippet = { ...place, ...snippet, executionId, stdin };
    this.#written = client.executeSnippet(this.#snippet);
    this.#written.catch(() => {});
  }

  /** What it writes, and its result. Ended by force when `signal` aborts. */
  async *run(signal: AbortSignal): AsyncGenerator<OutputChunk, ExecutionResult | undefined> {
    const { sessionId, executionId } = this.#snippet;
    await this.#written;
    const kill = () => this.#client.cancelExecution(sessionId, executionId, { signal: 'SIGKILL', graceMs: 0 });
    const aborted = signal.aborted ? Promise.resolve() : once(signal, 'abort');
    aborted.then(kill).catch(() => {});
    yield* this.#client.streamOutput(sessionId, executionId);
    const { result } = await this.#client.wait(sessionId, executionId);
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

  #send(data: Uint8Array, end = false): void {
    const { sessionId, executionId } = this.#snippet;
    // It may have exited meanwhile.
    this.#written = this.#written
      .then(() => this.#client.writeInput(sessionId, executionId, data, end))
      .catch(() => {});
  }
}
