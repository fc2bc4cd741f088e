import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { connectDaemon, type DaemonClient } from '../../src/client/client.ts';
import type { DaemonConfig } from '../../src/config.ts';
import { killTrees } from '../../src/processes.ts';
import type { Snippet } from '../../src/supervisor/requests.ts';
import { eventually } from '../support/eventually.ts';
import { FORCED_LIMIT_MS } from '../support/forced-limit.ts';
import { leftovers } from '../support/leftovers.ts';
import { cellsBelow } from '../support/processes.ts';
import type { DaemonFaults } from './daemon-faults.ts';

const MAIN = fileURLToPath(new URL('../../dist/src/main.js', import.meta.url));
const DAEMON_FAULTS = new URL('./daemon-faults.ts', import.meta.url).href;

/** How a node is made, beside its daemon's configuration. */
export interface NodeOptions {
  /** Its directory is a file system of its own, of so many MiB: it can be full. Only root may mount one. */
  diskMb?: number | undefined;
  /** How many files and directories that file system may have. Default: as many as fit. */
  inodes?: number | undefined;
  /** Its daemons have no rights beyond those of a user: they are another one's where this is root's. */
  unprivileged?: boolean | undefined;
  /** How large the heap of its daemons may get, in MiB. Default: as Node has it. */
  heapMb?: number | undefined;
  /** The program of its daemons. Default: the one that is built here. */
  main?: string | undefined;
}

const NOBODY = 65_534;

/** A cell is let go soon, and is not killed for a guest that a slow machine takes long to end. */
const DEFAULTS: DaemonConfig = { cellIdleMs: 2_000, forcedLimitMs: FORCED_LIMIT_MS };

/** How long the guests of a node that is done with have to end by themselves, in ms. Later than this a signal is of another act. */
const FORCE_MS = 300;

/** How far below the root of a hierarchy this process may be. */
const DEEPEST_GROUP = 4;

function subdirectories(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true }).flatMap((entry) =>
      entry.isDirectory() ? [entry.name] : [],
    );
  } catch {
    // Not there, or gone meanwhile.
    return [];
  }
}

/** One state directory, and the daemons that come and go on it: each the built program. Gone when it is disposed. */
export class FaultNode implements AsyncDisposable {
  /** Short enough for sockets below it. */
  readonly root = mkdtempSync('/tmp/elide-test-');
  readonly socket = join(this.root, 'd.sock');
  /** Where the next daemon is told that it is. */
  stateDir = join(this.root, 's');
  readonly #config = join(this.root, 'config.json');
  /** Beside it: there is room when the disk is full. */
  readonly #faults = `${this.root}.json`;
  readonly #mounted: boolean;
  readonly #user: { uid?: number; gid?: number } = {};
  readonly #main: string;
  readonly #heap: string[];
  #daemon: ChildProcess | undefined;
  #exited: Promise<unknown> = Promise.resolve();
  #client: DaemonClient | undefined;
  #running = Promise.withResolvers<void>();
  #turn: Promise<void> = Promise.resolve();
  /** Every daemon there was. */
  readonly daemonPids: number[] = [];
  /** What all of them said on stderr. */
  log = '';

  private constructor({ diskMb, inodes = 0, unprivileged = false, heapMb, main = MAIN }: NodeOptions) {
    this.#main = main;
    this.#heap = heapMb === undefined ? [] : [`--max-old-space-size=${heapMb}`];
    if (unprivileged && process.getuid?.() === 0) {
      this.#user = { uid: NOBODY, gid: NOBODY };
      chownSync(this.root, NOBODY, NOBODY);
    }
    this.#mounted = diskMb !== undefined;
    if (diskMb === undefined) return;
    execFileSync('mount', [
      '-t',
      'tmpfs',
      '-o',
      `size=${diskMb}m,nr_inodes=${inodes},mode=0700`,
      'elide-test',
      this.root,
    ]);
  }

  static async start(config: DaemonConfig = {}, options: NodeOptions = {}): Promise<FaultNode> {
    const node = new FaultNode(options);
    leftovers.add(node);
    await node.start(config);
    return node;
  }

  /** Starts a daemon, with its faults; resolves when it is ready, rejects with what it said when it ends before. */
  async start(config?: DaemonConfig, faults?: DaemonFaults): Promise<void> {
    if (faults !== undefined) writeFileSync(this.#faults, JSON.stringify(faults));
    if (config !== undefined) writeFileSync(this.#config, JSON.stringify({ ...DEFAULTS, ...config }));
    const flags = ['--socket', this.socket, '--state-dir', this.stateDir, '--config', this.#config];
    const node = [...this.#heap, '--import', DAEMON_FAULTS];
    const daemon = spawn(process.execPath, [...node, this.#main, ...flags, '--log-level', 'warn'], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ELIDE_TEST_FAULTS: this.#faults },
      ...this.#user,
    });
    const said = this.log.length;
    daemon.stderr.on('data', (data) => {
      this.log += data;
    });
    const ended = once(daemon, 'close').then(([code, signal]) => {
      this.log += `the daemon is gone: ${code ?? signal}\n`;
    });
    this.#exited = ended;
    this.#daemon = daemon;
    const ready = once(daemon.stdout, 'data').then(() => true);
    if (await Promise.race([ready, ended.then(() => false)])) {
      this.daemonPids.push(this.pid);
      this.#running.resolve();
      return;
    }
    this.#daemon = undefined;
    throw new Error(this.log.slice(said).trim());
  }

  /** Resolves while a daemon runs, or once the next one does. */
  get running(): Promise<void> {
    return this.#running.promise;
  }

  /** Makes the running daemon suffer from these, and from those it was told of before. */
  async afflict(faults: DaemonFaults): Promise<void> {
    writeFileSync(this.#faults, JSON.stringify(faults));
    process.kill(this.pid, 'SIGUSR2');
    await eventually('the daemon has its faults', () => !existsSync(this.#faults));
  }

  get pid(): number {
    if (this.#daemon?.pid === undefined) throw new Error('no daemon runs');
    return this.#daemon.pid;
  }

  /** Connects with the first call, and again to the next daemon. */
  get client(): DaemonClient {
    this.#client ??= connectDaemon({ socket: this.socket });
    return this.#client;
  }

  /** Ends the daemon, and resolves when it is gone. */
  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.#running.resolve();
    this.#running = Promise.withResolvers<void>();
    this.#daemon?.kill(signal);
    await this.#exited;
    this.#daemon = undefined;
    this.#client?.close();
    this.#client = undefined;
  }

  /** Kills the daemon and starts the next one. */
  async restart(config?: DaemonConfig): Promise<void> {
    await this.end();
    await this.start(config);
  }

  /**
   * Makes the state directory read-only for every path below it, or no longer. A file that is open for writing stays so, and
   * would keep the whole file system from being remounted. Only for a node with a file system of its own.
   */
  setReadOnly(readOnly: boolean): void {
    if (!readOnly) {
      execFileSync('umount', [this.stateDir]);
      return;
    }
    execFileSync('mount', ['--bind', this.stateDir, this.stateDir]);
    execFileSync('mount', ['-o', 'remount,bind,ro', this.stateDir]);
  }

  /** Takes the daemon from those who would start or end it at the same time. */
  async exclusively(act: () => Promise<void>): Promise<void> {
    const turn = this.#turn.then(act);
    this.#turn = turn.catch(() => {});
    await turn;
  }

  /** Starts a snippet of session `s`, JavaScript unless it says, and waits until it printed `ready`. */
  async ready(snippet: Partial<Snippet> & { executionId: string; code: string }): Promise<void> {
    await this.client.executeSnippet({ sessionId: 's', language: 'javascript', ...snippet });
    await this.printed(snippet.executionId, 'ready');
  }

  /** Resolves once its standard output holds `text`. */
  async printed(executionId: string, text: string): Promise<void> {
    let written = '';
    for await (const { data } of this.client.streamOutput('s', executionId, { streams: ['stdout'] })) {
      written += data;
      if (written.includes(text)) return;
    }
    throw new Error(`${executionId} ended without "${text}": ${written}`);
  }

  async stdout(executionId: string): Promise<string> {
    const chunks: Buffer[] = [];
    for await (const { data } of this.client.streamOutput('s', executionId, { streams: ['stdout'] })) chunks.push(data);
    return Buffer.concat(chunks).toString();
  }

  /** `pending`, `running`, `signaled.graceful`: each step of an execution, in order. */
  async steps(executionId: string): Promise<string[]> {
    const steps: string[] = [];
    for await (const { state, rung } of this.client.watchExecution('s', executionId)) {
      steps.push(rung === undefined || state === 'exited' ? state : `${state}.${rung}`);
    }
    return steps;
  }

  /** The processes of its cells, found by the sockets they listen on. */
  cellPids(): number[] {
    return cellsBelow(join(this.stateDir, 'daemon', 'cells'));
  }

  /** Control groups that its daemons have made, each once: `elide-PID.../cell-KEY`. */
  controlGroups(): string[] {
    const mine = new RegExp(`^elide-(${this.daemonPids.join('|')})-`);
    const look = (directory: string, depth: number): string[] =>
      subdirectories(directory).flatMap((name) => {
        const path = join(directory, name);
        if (mine.test(name)) return [name, ...subdirectories(path).map((cell) => `${name}/${cell}`)];
        return depth > 0 ? look(path, depth - 1) : [];
      });
    return [...new Set(look('/sys/fs/cgroup', DEEPEST_GROUP))];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    leftovers.delete(this);
    // Only a daemon knows everything that is to be ended.
    if (this.#daemon === undefined) await this.start().catch(() => {});
    const force = setInterval(() => this.#daemon?.kill('SIGTERM'), FORCE_MS);
    await this.end('SIGTERM').finally(() => clearInterval(force));
    killTrees(this.cellPids());
    await eventually('no cell is left', () => this.cellPids().length === 0);
    if (this.#mounted) execFileSync('umount', ['--lazy', this.root]);
    for (const path of [this.root, this.#faults]) rmSync(path, { recursive: true, force: true });
  }
}

/** Ends that cells have written down. */
export function endsWritten(node: FaultNode): string[] {
  const cells = join(node.stateDir, 'daemon', 'cells');
  return readdirSync(cells).filter((name) => name.endsWith('.ends') && statSync(join(cells, name)).size > 0);
}
