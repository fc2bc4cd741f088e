import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import type { ExecutionResult } from '../../machines/execution.ts';
import type { Endpoints, StopOptions } from '../../src/api.ts';
import type { DaemonConfig } from '../../src/config.ts';
import { createDaemon } from '../../src/create-daemon.ts';
import type { Daemon } from '../../src/daemon.ts';
import { isAlive } from '../../src/processes.ts';
import type { ExecutionSnapshot } from '../../src/supervisor/execution-record.ts';
import type { SessionConfiguration, Snippet } from '../../src/supervisor/requests.ts';
import { eventually } from './eventually.ts';
import { FORCED_LIMIT_MS } from './forced-limit.ts';
import { disposeOfLeftovers, leftovers } from './leftovers.ts';
import { childrenOf, closedAgain, descendants, openDescriptors, openFiles, processesWith } from './processes.ts';

/** What an execution came to. */
export interface Ended {
  result: ExecutionResult;
  snapshot: ExecutionSnapshot;
  /** Its status events: `pending`, `running`, `signaled.graceful` and so on. */
  steps: string[];
  stdout: string;
  stderr: string;
}

type Request = Partial<Snippet> & { code: string };

/** A daemon of the source tree on a state directory and socket of its own, with everything gone when it is disposed. */
export class TestDaemon implements AsyncDisposable {
  readonly root: string;
  readonly daemon: Daemon;
  endpoints: Endpoints = { socket: undefined, tcp: undefined };
  #count = 0;

  private constructor(root: string, daemon: Daemon) {
    this.root = root;
    this.daemon = daemon;
  }

  static async start(config: DaemonConfig = {}): Promise<TestDaemon> {
    const root = temporaryDirectory();
    const paths = { stateDir: join(root, 's'), socket: join(root, 'd.sock') };
    const test = new TestDaemon(
      root,
      createDaemon({ logLevel: 'silent', forcedLimitMs: FORCED_LIMIT_MS, ...paths, ...config }),
    );
    leftovers.add(test);
    test.endpoints = await test.daemon.start();
    return test;
  }

  /** A session of a new name. */
  async session(config: SessionConfiguration = {}, name = 'session'): Promise<TestSession> {
    this.#count += 1;
    const sessionId = `${name}-${this.#count}`;
    await this.daemon.createSession(sessionId, config);
    return new TestSession(this.daemon, sessionId);
  }

  /** A directory for a guest's files. */
  directory(): string {
    this.#count += 1;
    const path = join(this.root, `dir-${this.#count}`);
    mkdirSync(path);
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    leftovers.delete(this);
    await this.daemon.stop({ force: true, detach: false });
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** One session of a {@link TestDaemon}. */
export class TestSession {
  readonly daemon: Daemon;
  readonly sessionId: string;
  #count = 0;

  constructor(daemon: Daemon, sessionId: string) {
    this.daemon = daemon;
    this.sessionId = sessionId;
  }

  /** Submits a snippet, JavaScript unless it says. */
  async submit(request: Request | string): Promise<TestExecution> {
    this.#count += 1;
    const { code, executionId = `e${this.#count}`, language = 'javascript', ...rest } = asRequest(request);
    await this.daemon.executeSnippet({ sessionId: this.sessionId, executionId, code, language, ...rest });
    return new TestExecution(this.daemon, this.sessionId, executionId);
  }

  /** Submits a snippet and waits until it printed `ready`. */
  async ready(request: Request | string): Promise<TestExecution> {
    const execution = await this.submit(request);
    await execution.printed('ready');
    return execution;
  }

  /** Submits a snippet and waits for its end. */
  async run(request: Request | string): Promise<Ended> {
    return (await this.submit(request)).end();
  }

  /** Process ids of the session's cells, those that end left out. */
  async cellPids(): Promise<number[]> {
    const { cells } = await this.daemon.getSession(this.sessionId);
    return cells.filter(({ state }) => state !== 'stopping').map(({ pid }) => pid);
  }

  /** The one process id of the session's one cell. */
  async cellPid(): Promise<number> {
    const pids = await this.cellPids();
    if (pids.length !== 1 || !pids[0]) throw new Error(`expected one cell, found ${pids.length}`);
    return pids[0];
  }

  async close(graceMs = 0): Promise<void> {
    await this.daemon.deleteSession(this.sessionId, { graceMs });
  }
}

/** One execution of a {@link TestSession}. */
export class TestExecution {
  readonly daemon: Daemon;
  readonly sessionId: string;
  readonly executionId: string;

  constructor(daemon: Daemon, sessionId: string, executionId: string) {
    this.daemon = daemon;
    this.sessionId = sessionId;
    this.executionId = executionId;
  }

  /** Resolves with what was written so far once that holds `text`. */
  async printed(text: string): Promise<string> {
    const chunks: Buffer[] = [];
    for await (const { stream, data } of this.daemon.streamOutput(this.sessionId, this.executionId)) {
      if (stream === 'stdout') chunks.push(data);
      const written = Buffer.concat(chunks).toString();
      if (written.includes(text)) return written;
    }
    const { result, stdout, stderr } = await this.end();
    throw new Error(`${this.executionId} ended without "${text}": ${JSON.stringify({ result, stdout, stderr })}`);
  }

  /** Resolves when a status event of this step has come: `running`, `signaled.forced`. */
  async reached(wanted: string): Promise<void> {
    for await (const event of this.daemon.watchExecution(this.sessionId, this.executionId)) {
      if (stepOf(event) === wanted) return;
    }
    throw new Error(`${this.executionId} never reached ${wanted}`);
  }

  cancel(options: StopOptions = {}): Promise<boolean> {
    return this.daemon.cancelExecution(this.sessionId, this.executionId, options);
  }

  signal(name: string): Promise<boolean> {
    return this.daemon.signalExecution(this.sessionId, this.executionId, name);
  }

  write(text: string | Uint8Array, end = false): Promise<void> {
    return this.daemon.writeInput(this.sessionId, this.executionId, Buffer.from(text as string), end);
  }

  async snapshot(): Promise<ExecutionSnapshot> {
    return this.daemon.getExecutionStatus(this.sessionId, this.executionId);
  }

  /** Resolves when it has exited: everything there is to know of it. */
  async end(): Promise<Ended> {
    const steps: string[] = [];
    for await (const event of this.daemon.watchExecution(this.sessionId, this.executionId)) steps.push(stepOf(event));
    const snapshot = await this.snapshot();
    if (snapshot.result === undefined) throw new Error(`${this.executionId}: the watch ended before the execution`);
    const { stdout, stderr } = await this.output();
    return { result: snapshot.result, snapshot, steps, stdout, stderr };
  }

  /** What was written by now. */
  async output(): Promise<{ stdout: string; stderr: string }> {
    const written: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
    for await (const { stream, data } of this.daemon.streamOutput(this.sessionId, this.executionId, {
      follow: false,
    })) {
      written[stream].push(data);
    }
    return {
      stdout: Buffer.concat(written.stdout).toString(),
      stderr: Buffer.concat(written.stderr).toString(),
    };
  }
}

function asRequest(request: Request | string): Request {
  return typeof request === 'string' ? { code: request } : request;
}

function stepOf({ state, rung }: { state: string; rung: string | undefined }): string {
  return rung === undefined ? state : `${state}.${rung}`;
}

/** A new directory with a path short enough for sockets below it, removed after the last test of the file. */
export function temporaryDirectory(): string {
  const path = mkdtempSync('/tmp/elide-test-');
  temporary.push(path);
  return path;
}

const temporary: string[] = [];
afterAll(async () => {
  await disposeOfLeftovers();
  for (const path of temporary) rmSync(path, { recursive: true, force: true });
});

/** The directories of output that there are, one for each execution whose output lies in files. */
export function outputDirectories({ daemon }: TestDaemon): string[] {
  const output = join(daemon.config.stateDir, 'daemon', 'output');
  return readdirSync(output).flatMap((sessionKey) => readdirSync(join(output, sessionKey)));
}

export { childrenOf, closedAgain, descendants, eventually, isAlive, openDescriptors, openFiles, processesWith };
