import type { handleBidiStreamingCall } from '@grpc/grpc-js';
import { Command, type DaemonClient } from '../client/index.ts';
import {
  type ExecTaskResponse,
  type ExecTaskStreamingRequest,
  ExecTaskStreamingResponse as Response,
} from '../gen/nomad/driver.ts';
import { statusOf } from '../plugin/rpc.ts';
import { exitOf, type Task } from './task.ts';

/** What a command's name must be for the next word to be code in the task's own language. */
const EVAL = 'elide-eval';
/** How much output a health check is shown: the newest, as Nomad's own drivers keep it. */
const COLLECTED_BYTES = 4096;

type Find = (id: string) => Task;

function commandOf(client: DaemonClient, task: Task, words: string[], terminal: boolean, stdin: boolean): Command {
  const [name, code = '', ...args] = words;
  if (!name) throw new Error('error cmd must have at least one value');
  const program = name === EVAL ? { code, args } : { argv: words, terminal };
  return new Command(client, { ...task.state.place, executionId: task.id }, program, stdin);
}

/** A command to its end; what it writes to either stream comes as standard output. */
export async function execCollected(
  client: DaemonClient,
  task: Task,
  words: string[],
  timeoutMs: number,
): Promise<ExecTaskResponse> {
  const signal = timeoutMs > 0 ? AbortSignal.timeout(timeoutMs) : new AbortController().signal;
  const output = commandOf(client, task, words, false, false).run(signal);
  for (let stdout = Buffer.alloc(0); ; ) {
    const { done, value } = await output.next();
    if (done) return { stdout, stderr: Buffer.alloc(0), result: exitOf(value) };
    stdout = Buffer.concat([stdout, value.data]).subarray(-COLLECTED_BYTES);
  }
}

/** A command whose streams are those of the call. */
export function execStreaming(
  clientOf: () => DaemonClient,
  find: Find,
): handleBidiStreamingCall<ExecTaskStreamingRequest, Response> {
  return (call) => {
    const left = new AbortController();
    call.on('cancelled', () => left.abort());
    call.on('error', () => left.abort());
    const run = async ({ setup }: ExecTaskStreamingRequest) => {
      if (setup === undefined) throw new Error('the first message of an exec must have its setup');
      const { taskId, command: words, tty } = setup;
      const command = commandOf(clientOf(), find(taskId), words, tty, true);
      call.on('data', ({ stdin, ttySize }: ExecTaskStreamingRequest) => {
        if (ttySize !== undefined) command.resize(ttySize.height, ttySize.width);
        if (stdin !== undefined) command.write(stdin.data, stdin.close);
      });
      for (const output = command.run(left.signal); ; ) {
        const { done, value } = await output.next();
        if (done) {
          call.write(Response.fromPartial({ stdout: { close: true } }));
          if (!tty) call.write(Response.fromPartial({ stderr: { close: true } }));
          call.write(Response.fromPartial({ exited: true, result: exitOf(value) }));
          call.end();
          return;
        }
        const operation = { data: value.data };
        const isOutput = tty || value.stream === 'stdout';
        call.write(Response.fromPartial(isOutput ? { stdout: operation } : { stderr: operation }));
      }
    };
    call.once('data', (first) => run(first).catch((error) => call.emit('error', statusOf(error))));
  };
}
