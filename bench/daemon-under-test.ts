import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ChannelCredentials } from '@grpc/grpc-js';
import {
  DeleteSessionRequest,
  ExecutionApiClient,
  type ExecutionStatusEvent,
  SessionConfiguration,
  type StreamExecutionOutputResponse,
} from '../src/gen/elide/daemon/v1alpha1/execution_api.ts';

const MAIN = fileURLToPath(new URL('../src/main.js', import.meta.url));

/** The interpreter itself, not a launcher script that a `python3` on the `PATH` may be. */
export const PYTHON = execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], { encoding: 'utf8' }).trim();

/** A daemon of its own, as a process, with a client. */
export class DaemonUnderTest implements AsyncDisposable {
  readonly client: ExecutionApiClient;
  /** Path of its socket. */
  readonly socket: string;
  /** From spawn to the line that says it is ready, in ms. */
  readonly readyMs: number;
  readonly pid: number;
  /** With its socket, its configuration and its state directory `state`. */
  readonly directory: string;
  readonly #child: ChildProcess;
  #next = 0;

  private constructor(child: ChildProcess, directory: string, readyMs: number) {
    this.#child = child;
    this.directory = directory;
    this.socket = join(directory, 'd.sock');
    this.pid = child.pid as number;
    this.readyMs = readyMs;
    this.client = new ExecutionApiClient(`unix:${directory}/d.sock`, ChannelCredentials.createInsecure(), {
      'grpc.max_receive_message_length': 64 * 1024 * 1024,
      // As the project's own client has it.
      'grpc-node.flow_control_window': 8 * 1024 * 1024,
    });
  }

  /** With `directory`, on the one of a daemon before. */
  static async start(
    config: object = {},
    directory = mkdtempSync(join(tmpdir(), 'elide-bench-')),
  ): Promise<DaemonUnderTest> {
    const configPath = join(directory, 'config.json');
    writeFileSync(configPath, JSON.stringify(config));
    const startedMs = performance.now();
    const flags = [
      '--socket',
      join(directory, 'd.sock'),
      '--state-dir',
      join(directory, 'state'),
      '--config',
      configPath,
    ];
    const child = spawn(process.execPath, [MAIN, ...flags, '--log-level', 'warn'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    return new DaemonUnderTest(child, directory, performance.now() - startedMs);
  }

  async createSession(sessionId: string, contextPoolSize = 10): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const config = SessionConfiguration.fromPartial({ contextPoolSize });
    this.client.createSession({ sessionId, config }, (error) => (error ? reject(error) : resolve()));
    return promise;
  }

  /** Accepts an execution and answers with its id. */
  async execute(sessionId: string, language: string, code: string): Promise<string> {
    this.#next += 1;
    const executionId = `e${this.#next}`;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const request = { sessionId, executionId, code, language, env: {}, args: [], config: undefined };
    this.client.executeSnippet(request, (error) => (error ? reject(error) : resolve()));
    await promise;
    return executionId;
  }

  /** Resolves with the final event. */
  async finalEvent(sessionId: string, executionId: string): Promise<ExecutionStatusEvent> {
    let last: ExecutionStatusEvent | undefined;
    const stream = this.client.watchExecution({ sessionId, executionId, fromSequence: 0n });
    for await (const event of stream as AsyncIterable<ExecutionStatusEvent>) last = event;
    return last as ExecutionStatusEvent;
  }

  /** Resolves when the execution has left `pending`. */
  async started(sessionId: string, executionId: string): Promise<void> {
    const stream = this.client.watchExecution({ sessionId, executionId, fromSequence: 0n });
    for await (const { sequence } of stream as AsyncIterable<ExecutionStatusEvent>) if (sequence > 1n) break;
    stream.cancel();
  }

  /** Accepts an execution and waits for its final event. */
  async run(sessionId: string, language: string, code: string): Promise<void> {
    const event = await this.finalEvent(sessionId, await this.execute(sessionId, language, code));
    if (event.result?.exitCode !== 0) throw new Error(`not completed: ${JSON.stringify(event, (_, v) => String(v))}`);
  }

  output(sessionId: string, executionId: string): AsyncIterable<StreamExecutionOutputResponse> {
    return this.client.streamExecutionOutput({
      sessionId,
      executionId,
      includeStdout: true,
      includeStderr: true,
      stdoutPosition: 0n,
      stderrPosition: 0n,
      noFollow: false,
    });
  }

  deleteSession(sessionId: string): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.client.deleteSession(DeleteSessionRequest.fromPartial({ sessionId }), (error) =>
      error ? reject(error) : resolve(),
    );
    return promise;
  }

  /** Cells, zygotes and guests of this daemon: every process below it, but none that has left its tree. */
  async cellPids(): Promise<number[]> {
    const processes = await listProcesses();
    const found = new Set<number>([this.pid]);
    for (let grew = true; grew; ) {
      grew = false;
      for (const { pid, parent } of processes) {
        if (found.has(parent) && !found.has(pid)) {
          found.add(pid);
          grew = true;
        }
      }
    }
    found.delete(this.pid);
    return [...found];
  }

  /** Ends the daemon; its directory stays. */
  async end(signal: NodeJS.Signals): Promise<void> {
    this.client.close();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill(signal);
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end('SIGTERM');
    rmSync(this.directory, { recursive: true, force: true });
  }
}

async function listProcesses(): Promise<{ pid: number; parent: number }[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const stats = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')));
  return stats.flatMap((stat, index) => {
    if (stat === '') return [];
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
    return [{ pid: Number(pids[index]), parent }];
  });
}

/** Proportional set size of some processes together, in MiB: shared pages count once in all. */
export async function pssMb(pids: number[]): Promise<number> {
  const rollups = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => '')));
  return rollups.reduce((sum, rollup) => sum + Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0) / 1024, 0);
}

/** Resident set size of a process, in MiB. */
export async function rssMb(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024;
}
