import type { handleBidiStreamingCall } from '@grpc/grpc-js';
import type { Command, CommandOptions, CommandProgram } from '../client/index.ts';
import {
  type ExecTaskRequest,
  type ExecTaskResponse,
  type ExecTaskStreamingRequest,
  ExecTaskStreamingResponse as Response,
} from '../gen/nomad/driver.ts';
import { leavingOf, pump } from '../wire/calls.ts';
import { within } from '../within.ts';
import { exitOf } from './exit.ts';
import { millisecondsOf, statusOf } from './rpc.ts';

/** What a command's name must be for the next word to be code in the task's own language. */
const EVAL = 'elide-eval';
/** How much output a health check is shown: the newest, as Nomad's own drivers keep it. */
const COLLECTED_BYTES = 4096;
/**
 * After how long without output an empty message goes out, in ms. An agent sees that its caller is gone when it has
 * something to hand on, and ends the call with the next: a silent command would outlive its caller. Clients pass over it.
 */
const HEARTBEAT_MS = 5_000;

/** Hands in a command beside a task. Throws when there is no such task. */
export type StartCommand = (
  taskId: string,
  program: CommandProgram,
  options: Omit<CommandOptions, 'limitMs'>,
) => Command;

/** The words of a command, as what the daemon's client runs. Throws when there is none. */
function programOf(words: string[], terminal: boolean): CommandProgram {
  const [name, code = '', ...args] = words;
  if (!name) throw new Error('error cmd must have at least one value');
  return name === EVAL ? { code, args, terminal } : { argv: words, terminal };
}

/** A command to its end; what it writes to either stream comes as standard output. */
export async function execCollected(
  start: StartCommand,
  { taskId, command, timeout }: ExecTaskRequest,
  leaving: AbortSignal,
): Promise<ExecTaskResponse> {
  const timeoutMs = millisecondsOf(timeout);
  const signal = timeoutMs > 0 ? AbortSignal.any([leaving, AbortSignal.timeout(timeoutMs)]) : leaving;
  const options = { stdin: false, signal, queueLimitMs: timeoutMs || undefined };
  const output = start(taskId, programOf(command, false), options).run();
  for (let stdout = Buffer.alloc(0); ; ) {
    const { done, value } = await output.next();
    if (done) return { stdout, stderr: Buffer.alloc(0), result: exitOf(value) };
    stdout = Buffer.concat([stdout, value.data]).subarray(-COLLECTED_BYTES);
  }
}

async function* responsesOf(output: ReturnType<Command['run']>, tty: boolean): AsyncGenerator<Response> {
  try {
    for (;;) {
      const next = output.next();
      while (!(await within(HEARTBEAT_MS, next))) yield Response.create();
      const { done, value } = await next;
      if (done) {
        yield Response.fromPartial({ stdout: { close: true } });
        if (!tty) yield Response.fromPartial({ stderr: { close: true } });
        yield Response.fromPartial({ exited: true, result: exitOf(value) });
        return;
      }
      const operation = { data: value.data };
      const isOutput = tty || value.stream === 'stdout';
      yield Response.fromPartial(isOutput ? { stdout: operation } : { stderr: operation });
    }
  } finally {
    await output.return(undefined);
  }
}

/** What the host sends, no faster than the command takes it. */
async function feed(command: Command, requests: AsyncIterable<ExecTaskStreamingRequest>): Promise<void> {
  for await (const { stdin, ttySize } of requests) {
    if (ttySize !== undefined) await command.resize(ttySize.height, ttySize.width);
    if (stdin !== undefined) await command.write(stdin.data, stdin.close);
  }
}

/** A command whose streams are those of the call, which gets no more of its output than it reads. */
export function execStreaming(start: StartCommand): handleBidiStreamingCall<ExecTaskStreamingRequest, Response> {
  return (call) => {
    const leaving = leavingOf(call);
    const run = async () => {
      const requests = call.iterator({ destroyOnReturn: false });
      const setup = (await requests.next()).value?.setup;
      if (setup === undefined) throw new Error('the first message of an exec must have its setup');
      const { taskId, command: words, tty } = setup;
      const command = start(taskId, programOf(words, tty), { stdin: true, signal: leaving });
      // The call may break.
      feed(command, requests).catch(() => {});
      await pump(call, responsesOf(command.run(), tty), leaving);
      call.end();
    };
    // An error ends the streams of the call at once: what was written goes out before.
    const fail = (error: unknown) =>
      call.write(Response.fromPartial({ stdout: { close: true } }), () => call.emit('error', statusOf(error)));
    run().catch(fail);
  };
}
