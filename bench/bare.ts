import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ChannelCredentials } from '@grpc/grpc-js';
import { HealthClient } from '../src/gen/grpc/health/v1/health.ts';
import { PYTHON } from './daemon-under-test.ts';

const SERVER = fileURLToPath(new URL('./bare-server.js', import.meta.url));

/** A gRPC server in a process of its own that does next to nothing: see `bare-server.ts`. */
export class BareServer implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #directory: string;
  readonly #client: HealthClient;

  private constructor(child: ChildProcess, directory: string, client: HealthClient) {
    this.#child = child;
    this.#directory = directory;
    this.#client = client;
  }

  static async start(): Promise<BareServer> {
    const directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
    const socket = join(directory, 'bare.sock');
    const child = spawn(process.execPath, [SERVER, socket], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    return new BareServer(child, directory, new HealthClient(`unix:${socket}`, ChannelCredentials.createInsecure()));
  }

  call(service: `${number}` | 'thread' | 'leave' | '' = ''): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#client.check({ service }, (error) => (error ? reject(error) : resolve()));
    return promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.close();
    await killed(this.#child);
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Forks for each line, runs it as a program, waits for its end and answers. */
const FORK_SERVER = `
import os, sys
for line in iter(sys.stdin.readline, ''):
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        exec(compile(line, 'main.py', 'exec'), {'__name__': '__main__'})
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    os.write(1, b'done\\n')
`;

/** A running Python that forks for each program: the least that a fresh interpreter can cost. */
export class ForkServer implements AsyncDisposable {
  readonly #child = spawn(PYTHON, ['-c', FORK_SERVER], { stdio: ['pipe', 'pipe', 'ignore'] });

  static async start(): Promise<ForkServer> {
    const server = new ForkServer();
    await server.run('');
    return server;
  }

  async run(code: string): Promise<void> {
    const answered = once(this.#child.stdout, 'data');
    this.#child.stdin.write(`${code}\n`);
    await answered;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await killed(this.#child);
  }
}

async function killed(child: ChildProcess): Promise<void> {
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}
