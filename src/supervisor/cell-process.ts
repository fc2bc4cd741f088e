import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { nanoid } from 'nanoid';
import type { GuestExit } from '../../machines/execution.ts';
import { FromCell, type Hello, type Start, ToCell } from '../gen/elide/cell/v1/cell.ts';
import { CELL_MAIN } from '../package-root.ts';
import { isAlive, killGroupUntilGone, killSessionUntilGone, killTrees, untilGone } from '../processes.ts';
import { FramedSocket, PROTOCOL_VERSION } from '../wire/framing.ts';

/**
 * Flags of every cell. Without `--no-turboshaft-loop-unrolling` V8 drops the stack check of some unrolled loops, and
 * `for(;;)new Array(1000).fill(1.5)` in a thread cannot be terminated; `node:ffi` would give every guest native code.
 */
export const CELL_FLAGS = [
  '--no-turboshaft-loop-unrolling',
  ...(process.allowedNodeEnvironmentFlags.has('--experimental-ffi') ? ['--no-experimental-ffi'] : []),
];

/** V8's words, on stderr, before it aborts a process whose heap is exhausted. */
const HEAP_EXHAUSTED = /heap out of memory|Reached heap limit|invalid table size|Committing semi space failed/;
const LOG_TAIL_CHARS = 400;

/** What a guest of a cell reports to the daemon. */
export interface GuestObserver {
  started(info: { pid: number; atMs: number }): void;
  exited(exit: GuestExit, atMs: number): void;
  /** The cell is gone, and the guest, processes included, with it. */
  lost(reason: 'cell_lost' | 'memory_exceeded', message: string): void;
}

/** What the cell's own supervisor hears. */
export interface CellObserver {
  spawned(pid: number): void;
  ready(): void;
  /** The process is gone; called once. */
  exited(message: string): void;
}

interface RemoteGuest {
  observer: GuestObserver;
  pid: number;
  /** One for each input that the guest has not taken yet, oldest first. */
  inputs: (() => void)[];
}

/** The daemon's side of one cell: starts the process, speaks its protocol, and says when it is gone. */
export class CellProcess {
  readonly #guests = new Map<string, RemoteGuest>();
  readonly #observer: CellObserver;
  readonly #files: { socket: string; token: string; log: string };
  readonly #hello: Omit<Hello, 'token' | 'protocolVersion'>;
  readonly #token = nanoid(32);
  #child: ChildProcess | undefined;
  #connection: FramedSocket<FromCell, ToCell> | undefined;
  #ready = false;
  /** Processes that were killed with the cell. */
  #killed = new Set<number>();
  #gone = false;

  /** Starts the process. `directory` exists, is 0700 and short enough for a socket's path. */
  constructor(options: {
    cellKey: string;
    directory: string;
    hello: Omit<Hello, 'token' | 'protocolVersion'>;
    observer: CellObserver;
  }) {
    const base = join(options.directory, options.cellKey);
    this.#files = { socket: `${base}.sock`, token: `${base}.token`, log: `${base}.log` };
    this.#hello = options.hello;
    this.#observer = options.observer;
    // A throw here would reach the machine as an error; a cell that cannot start is a cell that exited.
    try {
      this.#spawn();
    } catch (error) {
      queueMicrotask(() => this.#exited((error as Error).message));
    }
  }

  /** True from the end of the process on, also while what was below it is still seen to its end. */
  get isGone(): boolean {
    return this.#gone;
  }

  /** Runs a guest; its end reaches the observer, whatever happens to the cell. The cell must be ready. */
  start(request: Start, observer: GuestObserver): void {
    if (this.#gone) {
      observer.lost('cell_lost', 'the cell was gone before the guest started');
      return;
    }
    this.#guests.set(request.executionKey, { observer, pid: 0, inputs: [] });
    this.#send({ $case: 'start', value: request });
  }

  signal(executionKey: string, signal: string): void {
    this.#send({ $case: 'signal', value: { executionKey, signal } });
  }

  killGuest(executionKey: string): void {
    this.#send({ $case: 'kill', value: { executionKey } });
  }

  /** Appends to a guest's input; resolves when its pipe took it, or when the guest is gone. */
  write(executionKey: string, data: Buffer, end: boolean): Promise<void> {
    const guest = this.#guests.get(executionKey);
    if (guest === undefined) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    guest.inputs.push(resolve);
    this.#send({ $case: 'input', value: { executionKey, data, end } });
    return promise;
  }

  /** How many contexts the cell is to keep booted ahead at most, from now on. */
  keepWarm(count: number): void {
    this.#send({ $case: 'keepWarm', value: { count } });
  }

  /** Asks the cell to end its guests and itself. */
  shutdown(): void {
    if (this.#connection === undefined) this.kill();
    else this.#send({ $case: 'shutdown', value: {} });
  }

  /** Ends the process and all below it: what its guests started would outlive it. Confirmed by `exited`. */
  kill(): void {
    const pid = this.#child?.pid;
    if (!this.#gone && pid !== undefined && isAlive(pid)) this.#killed = killTrees([pid]);
  }

  #spawn(): void {
    writeFileSync(this.#files.token, this.#token, { mode: 0o600 });
    const log = openSync(this.#files.log, 'a', 0o600);
    try {
      const child = spawn(process.execPath, [...CELL_FLAGS, CELL_MAIN, this.#files.socket, this.#files.token], {
        cwd: '/',
        detached: true,
        env: {},
        stdio: ['ignore', 'pipe', log],
      });
      this.#child = child;
      child.once('error', (error) => this.#exited(`the cell did not start: ${error.message}`));
      child.once('exit', (code, signal) => this.#exited(signal ? `ended by ${signal}` : `exited with code ${code}`));
      child.stdout?.once('data', () => {
        child.stdout?.destroy();
        this.#connect();
      });
      if (child.pid !== undefined) {
        const { pid } = child;
        queueMicrotask(() => this.#observer.spawned(pid));
      }
    } finally {
      closeSync(log);
    }
  }

  #connect(): void {
    const connection = new FramedSocket<FromCell, ToCell>(connect(this.#files.socket), FromCell, ToCell);
    this.#connection = connection;
    connection.on('message', ({ body }) => body && this.#hear(body));
    // A cell whose channel is gone can neither be told nor believed: its end is the truth.
    connection.on('close', () => this.kill());
    connection.send({
      body: {
        $case: 'hello',
        value: { ...this.#hello, protocolVersion: PROTOCOL_VERSION, token: this.#token },
      },
    });
  }

  #hear(body: NonNullable<FromCell['body']>): void {
    switch (body.$case) {
      case 'welcome':
        break;
      case 'ready':
        if (this.#ready) break;
        this.#ready = true;
        this.#observer.ready();
        break;
      case 'started': {
        const guest = this.#guests.get(body.value.executionKey);
        if (guest === undefined) break;
        guest.pid = body.value.pid;
        guest.observer.started({ pid: body.value.pid, atMs: body.value.atMs });
        break;
      }
      case 'exited': {
        const { executionKey, exitCode, signal, cause, message, atMs } = body.value;
        const guest = this.#guests.get(executionKey);
        if (guest === undefined) break;
        this.#guests.delete(executionKey);
        for (const taken of guest.inputs) taken();
        const known = cause === 'heap_limit' || cause === 'start_failed' ? cause : undefined;
        guest.observer.exited(
          { exitCode, signal: signal || undefined, cause: known, message: message || undefined },
          atMs,
        );
        break;
      }
      case 'inputTaken':
        this.#guests.get(body.value.executionKey)?.inputs.shift()?.();
        break;
    }
  }

  /** The process is gone: so are its threads. What is left of processes below it is seen to its end before it counts. */
  #exited(how: string): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#connection?.destroy();
    const log = readTail(this.#files.log);
    for (const file of Object.values(this.#files)) rmSync(file, { force: true });
    // V8 does not say which of its threads ran out; with one guest there is no doubt.
    const reason = HEAP_EXHAUSTED.test(log) && this.#guests.size === 1 ? 'memory_exceeded' : 'cell_lost';
    const message = `the cell ${how}${log === '' ? '' : `: ${log.slice(-LOG_TAIL_CHARS).trim()}`}`;
    const guests = [...this.#guests.values()];
    this.#guests.clear();
    for (const { inputs } of guests) for (const taken of inputs) taken();
    const cell = this.#child?.pid;
    const swept = Promise.all([untilGone(this.#killed), cell !== undefined && killSessionUntilGone(cell)]);
    const ends = guests.map(async ({ pid, observer }) => {
      await Promise.all([swept, pid > 0 && killGroupUntilGone(pid)]);
      observer.lost(reason, message);
    });
    void Promise.all([swept, ...ends]).then(() => this.#observer.exited(message));
  }

  #send(body: NonNullable<ToCell['body']>): void {
    this.#connection?.send({ body });
  }
}

function readTail(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
