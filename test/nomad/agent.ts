import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { leftovers } from '../support/leftovers.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** Makes the driver's executable of what the build left, in a directory of its own: others make theirs meanwhile. */
function buildPlugin(directory: string): void {
  const config = JSON.parse(readFileSync(join(ROOT, 'sea.json'), 'utf8'));
  const path = join(directory, 'sea.json');
  writeFileSync(path, JSON.stringify({ ...config, output: join(directory, 'plugins', 'elide') }));
  execFileSync(process.execPath, [`--build-sea=${path}`], { cwd: ROOT, stdio: 'ignore' });
}

export interface TaskEvent {
  Type: string;
  DisplayMessage: string;
  ExitCode: number;
  Signal: number;
  /** In ns. */
  Time: number;
  Details: Record<string, string>;
}

export interface Allocation {
  ID: string;
  ClientStatus: string;
  DesiredStatus: string;
  ModifyIndex: number;
  CreateIndex: number;
  JobVersion: number;
  DeploymentStatus: { Healthy: boolean | null } | null;
  TaskStates: Record<string, { State: string; Failed: boolean; Restarts: number; Events: TaskEvent[] }> | null;
}

/** A task of the job that {@link Agent.run} makes. */
export interface TaskSpec {
  Driver?: string;
  Config: object;
  [field: string]: unknown;
}

export interface JobSpec {
  Type?: string;
  Count?: number;
  Group?: object;
  Job?: object;
}

/**
 * A real Nomad agent, a client with the driver in its plugin directory, and a server beside it that stays: a server that has
 * just started turns clients away, and they come again only after a quarter of a minute.
 */
export class Agent implements AsyncDisposable {
  readonly directory: string;
  readonly nomad: string;
  #server: ChildProcess | undefined;
  #child: ChildProcess | undefined;
  #port = 0;
  #jobs = 0;
  /** Configuration of the client beside its own. */
  #files: string[] = [];

  private constructor(nomad: string, directory: string) {
    this.nomad = nomad;
    this.directory = directory;
  }

  /**
   * With `config` for the driver, as lines of HCL, or with a configuration file that has that too. Resolves when the node is
   * ready; nothing is left when it never is.
   */
  static async start(nomad: string, directory: string, config: string | { file: string }, more = ''): Promise<Agent> {
    const agent = new Agent(nomad, directory);
    leftovers.add(agent);
    try {
      await agent.#start(config, more);
      return agent;
    } catch (error) {
      await agent[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #start(config: string | { file: string }, more: string): Promise<void> {
    const { directory } = this;
    mkdirSync(join(directory, 'plugins'), { recursive: true });
    buildPlugin(directory);
    const [http, rpc, serf] = [await freePort(), await freePort(), await freePort()];
    this.#port = http;
    writeFileSync(join(directory, 'server.hcl'), serverConfiguration(directory, { http, rpc, serf }));
    this.#server = this.#spawn('server');
    await until('the server leads, and has its keys', async () => {
      const keys = await this.get<unknown[]>('/v1/operator/keyring/keys').catch(() => []);
      return keys.length > 0;
    });
    this.#port = await freePort();
    const driver = typeof config === 'string' ? `plugin "elide" {\n  config {\n${config}\n  }\n}` : '';
    this.#files = typeof config === 'string' ? [] : [config.file];
    writeFileSync(
      join(directory, 'client.hcl'),
      clientConfiguration(directory, { http: this.#port }, `127.0.0.1:${rpc}`, `${driver}\n${more}`),
    );
    await this.restart();
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  /** The plugin process of this agent; undefined between two. */
  get pluginPid(): number | undefined {
    // The first ones are only asked who they are; one whose agent was killed is no child of the next.
    const path = join(this.directory, 'plugins', 'elide');
    const pids = processes().filter((pid) => commandOf(pid).startsWith(path));
    return pids.length === 1 ? pids[0] : undefined;
  }

  get env(): NodeJS.ProcessEnv {
    return { ...process.env, NOMAD_ADDR: `http://127.0.0.1:${this.#port}` };
  }

  /** Starts it, again after an end. */
  async restart(): Promise<void> {
    this.#child = this.#spawn('client');
    await until('the node is ready', async () => {
      const nodes = await this.get<{ Status: string }[]>('/v1/nodes').catch(() => []);
      return nodes.some(({ Status }) => Status === 'ready');
    });
    // To the server it may have been ready all the time.
    for (const { ID, ClientStatus } of await this.get<Allocation[]>('/v1/allocations')) {
      if (ClientStatus !== 'running') continue;
      const files = () => this.get(`/v1/client/fs/ls/${ID}?path=/`);
      await until(`the client knows ${ID}`, () =>
        files().then(
          () => true,
          () => false,
        ),
      );
    }
  }

  #spawn(role: 'server' | 'client'): ChildProcess {
    const log = openSync(join(this.directory, `${role}.log`), 'a');
    const files = [join(this.directory, `${role}.hcl`), ...(role === 'client' ? this.#files : [])];
    const args = ['agent', ...files.map((file) => `-config=${file}`)];
    return spawn(this.nomad, args, { stdio: ['ignore', log, log], cwd: this.directory });
  }

  /** SIGINT is an agent's good order: its tasks run on. */
  async end(signal: NodeJS.Signals = 'SIGINT', child = this.#child): Promise<void> {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill(signal);
    await exited;
  }

  async get<T>(path: string): Promise<T> {
    return this.#request<T>('GET', path);
  }

  async put<T>(path: string, body: object = {}): Promise<T> {
    return this.#request<T>('PUT', path, body);
  }

  async #request<T>(method: string, path: string, body?: object): Promise<T> {
    const init = body === undefined ? { method } : { method, body: JSON.stringify(body) };
    const response = await fetch(`http://127.0.0.1:${this.#port}${path}`, init);
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return (text.startsWith('{') || text.startsWith('[') ? JSON.parse(text) : text) as T;
  }

  /** Runs a job of one task, once unless it says otherwise, and gives its id. */
  async run(task: TaskSpec, { Type = 'batch', Count = 1, Group = {}, Job = {} }: JobSpec = {}, id?: string) {
    this.#jobs += id === undefined ? 1 : 0;
    const ID = id ?? `job-${this.#jobs}`;
    const once = {
      RestartPolicy: { Attempts: 0, Mode: 'fail', Interval: 6e10, Delay: 1e9 },
      ReschedulePolicy: { Attempts: 0, Unlimited: false },
    };
    const LogConfig = { MaxFiles: 2, MaxFileSizeMB: 1 };
    const Tasks = [{ Name: 't', Driver: 'elide', Resources: { CPU: 10, MemoryMB: 64 }, LogConfig, ...task }];
    const TaskGroups = [{ Name: 'g', Count, ...once, Tasks, EphemeralDisk: { SizeMB: 10 }, ...Group }];
    await this.put('/v1/jobs', { Job: { ID, Name: ID, Type, Datacenters: ['*'], TaskGroups, ...Job } });
    return ID;
  }

  allocations(job: string): Promise<Allocation[]> {
    return this.get(`/v1/job/${job}/allocations`);
  }

  /** The newest allocation of a job once it is as wanted. */
  async allocation(job: string, wanted: (allocation: Allocation) => boolean): Promise<Allocation> {
    let found: Allocation | undefined;
    try {
      await until(`an allocation of ${job}`, async () => {
        const all = await this.allocations(job);
        found = all.sort((a, b) => b.CreateIndex - a.CreateIndex)[0];
        return found !== undefined && wanted(found);
      });
    } catch (error) {
      throw new Error(`${(error as Error).message}: ${JSON.stringify(found)}`, { cause: error });
    }
    return found as Allocation;
  }

  running(job: string): Promise<Allocation> {
    return this.allocation(job, ({ ClientStatus, TaskStates }) => ClientStatus === 'running' && TaskStates !== null);
  }

  /** Once its one task has ended for good: its events, and the last end. */
  async ended(job: string): Promise<{ allocation: Allocation; events: TaskEvent[]; end: TaskEvent | undefined }> {
    const done = ['complete', 'failed'];
    const allocation = await this.allocation(job, ({ ClientStatus }) => done.includes(ClientStatus));
    const events = allocation.TaskStates?.t?.Events ?? [];
    return { allocation, events, end: events.findLast(({ Type }) => Type === 'Terminated') };
  }

  logs(allocation: string, type: 'stdout' | 'stderr' = 'stdout', task = 't'): Promise<string> {
    return this.get(`/v1/client/fs/logs/${allocation}?task=${task}&type=${type}&plain=true`);
  }

  /** Resolves once a task's output holds a text. */
  async printed(allocation: string, text: string): Promise<void> {
    await until(`"${text}" is in the log`, async () =>
      String(await this.logs(allocation).catch(() => '')).includes(text),
    );
  }

  async stop(job: string): Promise<void> {
    await this.#request('DELETE', `/v1/job/${job}`);
  }

  /** Ends the agent, with all that it runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    leftovers.delete(this);
    for (const { ID } of await this.get<{ ID: string }[]>('/v1/jobs').catch(() => [])) {
      await this.#request('DELETE', `/v1/job/${encodeURIComponent(ID)}?purge=true`).catch(() => {});
    }
    await until(
      'all allocations have ended',
      async () => {
        const all = await this.get<Allocation[]>('/v1/allocations').catch(() => []);
        return all.every(({ ClientStatus }) => ClientStatus !== 'running' && ClientStatus !== 'pending');
      },
      10_000,
    ).catch(() => {});
    await this.end();
    await this.end('SIGINT', this.#server);
    // An agent that is root gives each task a file system in memory for its secrets.
    const mounts = readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' ')[1] ?? '');
    for (const mount of mounts.filter((path) => path.startsWith(this.directory))) execFileSync('umount', [mount]);
  }
}

/** Looks again and again; rejects after a while with what it is about. */
export async function until(about: string, look: () => Promise<boolean>, limitMs = 60_000): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (!(await look())) {
    if (performance.now() > deadline) throw new Error(`not within ${limitMs} ms: ${about}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

function commonConfiguration(directory: string, role: string, ports: Record<string, number>): string {
  const lines = Object.entries(ports).map(([name, port]) => `  ${name} = ${port}`);
  return `
data_dir = "${join(directory, role)}"
bind_addr = "127.0.0.1"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
${lines.join('\n')}
}
limits {
  http_max_conns_per_client = 0
}`;
}

function serverConfiguration(directory: string, ports: Record<string, number>): string {
  return `${commonConfiguration(directory, 'server', ports)}
server {
  enabled = true
  bootstrap_expect = 1
}
`;
}

function clientConfiguration(
  directory: string,
  ports: Record<string, number>,
  server: string,
  plugins: string,
): string {
  return `${commonConfiguration(directory, 'data', ports)}
plugin_dir = "${join(directory, 'plugins')}"
telemetry {
  publish_allocation_metrics = true
}
client {
  enabled = true
  servers = ["${server}"]
  network_interface = "lo"
  cpu_total_compute = 20000
  memory_total_mb = 65536
  gc_max_allocs = 10000
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist" = "raw_exec,elide,mock_driver,floor"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
${plugins}
`;
}

/** All process ids there are. */
export function processes(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** A process's command line; empty once it is gone. */
export function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ');
  } catch {
    return '';
  }
}
