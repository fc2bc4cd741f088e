import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import {
  type CallOptions,
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
} from '@grpc/grpc-js';
import { encode } from '@msgpack/msgpack';
import { HealthClient } from '../../src/gen/grpc/health/v1/health.ts';
import { BasePluginClient, NomadConfig } from '../../src/gen/nomad/base.ts';
import { DriverClient, TaskConfig, type TaskHandle } from '../../src/gen/nomad/driver.ts';
import { GRPCBrokerClient, GRPCControllerClient, GRPCStdioClient } from '../../src/gen/nomad/go_plugin.ts';
import { leftovers } from '../support/leftovers.ts';

/** The program of the executable, as the build leaves it. */
export const PLUGIN = fileURLToPath(new URL('../../dist/nomad/plugin.cjs', import.meta.url));

export const COOKIE = 'e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255';
/** What an agent adds to its plugins' environment. */
export const AGENT_ENV = {
  NOMAD_PLUGIN_MAGIC_COOKIE: COOKIE,
  PLUGIN_PROTOCOL_VERSIONS: '2',
  PLUGIN_MIN_PORT: '10000',
  PLUGIN_MAX_PORT: '25000',
};

/** A plugin that was started outside the handshake: what it said, and how it ended. */
export async function refusedWith(env: NodeJS.ProcessEnv): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [PLUGIN], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')]);
  return { code: code as number, stdout, stderr };
}

type Answer<Res> = (error: ServiceError | null, response: Res) => void;
type Unary<Req, Res> = (
  request: Req,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: Answer<Res>,
) => ClientUnaryCall;

/** A plugin process with a host's connection to it, as a Nomad agent has them. */
export class PluginHost implements AsyncDisposable {
  readonly child: ChildProcess;
  /** What the plugin logged, line by line. */
  readonly log: string[];
  readonly line: string;
  readonly base: BasePluginClient;
  readonly driver: DriverClient;
  readonly controller: GRPCControllerClient;
  readonly health: HealthClient;
  readonly stdio: GRPCStdioClient;
  readonly broker: GRPCBrokerClient;

  private constructor(child: ChildProcess, log: string[], line: string) {
    this.child = child;
    this.log = log;
    this.line = line;
    const target = `unix:${line.split('|')[3]}`;
    const options = { 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 };
    const connect = <C>(
      Client: new (target: string, c: ReturnType<typeof credentials.createInsecure>, o: object) => C,
    ) => new Client(target, credentials.createInsecure(), { ...options, 'grpc.default_authority': 'unused' });
    this.base = connect(BasePluginClient);
    this.driver = connect(DriverClient);
    this.controller = connect(GRPCControllerClient);
    this.health = connect(HealthClient);
    this.stdio = connect(GRPCStdioClient);
    this.broker = connect(GRPCBrokerClient);
  }

  /** Starts the plugin, with a launcher as its user; with a configuration, as the instance that is to stay. */
  static async start(
    config?: Record<string, unknown>,
    env: NodeJS.ProcessEnv = {},
    launcher: string[] = [],
  ): Promise<PluginHost> {
    const [program = '', ...args] = [...launcher, process.execPath, PLUGIN];
    const child = spawn(program, args, {
      env: { ...process.env, ...AGENT_ENV, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const log: string[] = [];
    createInterface({ input: child.stderr }).on('line', (said) => log.push(said));
    const lines = createInterface({ input: child.stdout });
    const [line] = await Promise.race([
      once(lines, 'line'),
      once(child, 'exit').then(([code]) =>
        Promise.reject(new Error(`the plugin exited with ${code}: ${log.join('\n')}`)),
      ),
    ]);
    const host = new PluginHost(child, log, line as string);
    leftovers.add(host);
    if (config !== undefined) await host.setConfig(config);
    return host;
  }

  call<Req, Res>(client: object, method: Unary<Req, Res>, request: Req): Promise<Res> {
    const { promise, resolve, reject } = Promise.withResolvers<Res>();
    method.call(client, request, new Metadata(), {}, (error, response) =>
      error === null ? resolve(response) : reject(error),
    );
    // A test that fails leaves calls behind, and must be heard with its own error, not with theirs.
    promise.catch(() => {});
    return promise;
  }

  setConfig(config: unknown, driver: object | undefined = topology(2, 2000)): Promise<unknown> {
    const bytes = config instanceof Uint8Array ? config : encode(config);
    return this.call(this.base, this.base.setConfig, {
      msgpackConfig: Buffer.from(bytes),
      nomadConfig: driver && NomadConfig.fromPartial({ driver }),
      pluginApiVersion: 'v0.1.0',
    });
  }

  start = (task: TaskConfig) => this.call(this.driver, this.driver.startTask, { task });
  wait = (taskId: string) => this.call(this.driver, this.driver.waitTask, { taskId });
  inspect = (taskId: string) => this.call(this.driver, this.driver.inspectTask, { taskId });
  destroy = (taskId: string, force = true) => this.call(this.driver, this.driver.destroyTask, { taskId, force });
  signal = (taskId: string, signal: string) => this.call(this.driver, this.driver.signalTask, { taskId, signal });
  stop = (taskId: string, signal: string, ms: number) =>
    this.call(this.driver, this.driver.stopTask, { taskId, signal, timeout: duration(ms) });
  recover = (handle: TaskHandle | undefined) => this.call(this.driver, this.driver.recoverTask, { taskId: '', handle });
  exec = (taskId: string, command: string[], ms = 60_000) =>
    this.call(this.driver, this.driver.execTask, { taskId, command, timeout: duration(ms) });

  /** Starts a task and waits for its end. */
  async run(task: TaskConfig) {
    await this.start(task);
    return this.wait(task.id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    leftovers.delete(this);
    for (const client of [this.base, this.driver, this.controller, this.health, this.stdio, this.broker])
      client.close();
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill('SIGKILL');
    await once(this.child, 'exit');
  }
}

export const duration = (ms: number) => ({ seconds: BigInt(Math.trunc(ms / 1000)), nanos: (ms % 1000) * 1e6 });

/** A node of so many cores of that speed in MHz. */
export function topology(cores: number, mhz: number) {
  const core = (coreId: number) => ({ coreId, baseSpeed: BigInt(mhz) });
  return { topology: { cores: Array.from({ length: cores }, (_, n) => core(n)) } };
}

let count = 0;

/** A task of an allocation directory below `root`, laid out as an agent does. */
export function taskIn(root: string, config: unknown, more: Partial<TaskConfig> = {}): TaskConfig {
  count += 1;
  const allocId = `alloc-${count}`;
  const allocDir = join(root, allocId);
  for (const path of ['alloc/logs', 'alloc/data', 'task/local', 'task/secrets']) {
    mkdirSync(join(allocDir, path), { recursive: true });
  }
  const logs = join(allocDir, 'alloc', 'logs');
  return TaskConfig.fromPartial({
    id: `${allocId}/task/0a1b2c3d`,
    name: 'task',
    allocId,
    allocDir,
    env: { PATH: process.env.PATH ?? '', NOMAD_TASK_DIR: join(allocDir, 'task/local') },
    msgpackDriverConfig: config instanceof Uint8Array ? Buffer.from(config) : Buffer.from(encode(config)),
    stdoutPath: join(logs, '.task.stdout.fifo'),
    stderrPath: join(logs, '.task.stderr.fifo'),
    ...more,
  });
}

/** What lies in the files that an agent serves a task's logs from. */
export function logsOf({ allocDir, name }: TaskConfig, stream: 'stdout' | 'stderr' = 'stdout'): string {
  const directory = join(allocDir, 'alloc', 'logs');
  const files = readdirSync(directory).filter((file) => file.startsWith(`${name}.${stream}.`));
  return files.map((file) => readFileSync(join(directory, file), 'utf8')).join('');
}

/** Everything a stream brings until `enough`, which then is cancelled; or until its end. */
export async function collect<T>(call: ClientReadableStream<T>, enough: (items: T[]) => boolean): Promise<T[]> {
  const items: T[] = [];
  call.on('error', () => {});
  for await (const item of call) {
    items.push(item as T);
    if (enough(items)) break;
  }
  call.cancel();
  return items;
}

/** The status detail by which an agent knows whether to start anew. */
export function detailOf(error: unknown): Buffer | undefined {
  const metadata = (error as { metadata?: Metadata }).metadata;
  return metadata?.get('grpc-status-details-bin')[0] as Buffer | undefined;
}
