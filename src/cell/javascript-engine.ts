import { closeSync, openSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, extname, join } from 'node:path';
import { inspect } from 'node:util';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import {
  CHILD_SLOTS,
  HARMLESS_SIGNALS,
  SHARED,
  SHARED_BYTES,
  signalName,
  signalNumber,
} from '../../workers/javascript/shared.ts';
import { packageType, transformTypeScript } from '../../workers/javascript/source.ts';
import { type OutputDescriptors, OutputWriter } from '../../workers/output-writer.ts';
import { childrenOfThread, killTrees, untilGone } from '../processes.ts';
import { type Context, type ContextEnd, ContextPool, type ContextPoolOptions } from './context-pool.ts';
import type { Engine, Guest, GuestEvents, GuestExit, StartRequest } from './engine.ts';
import type { CellMessage, MainSource, ThreadMessage, ThreadTask } from './messages.ts';

/** A thread that has not begun after this long is given up: its file hangs while it loads. */
const START_TIMEOUT_MS = 10_000;

/** How long killed child processes may take to be gone before the end of the execution is told all the same. */
const CHILD_LIMIT_MS = 1_000;

/** How many threads may fail to boot before a start is given up. */
const MAX_BOOTS = 3;

/** How long a thread that is about to be ended may take to note the child process it is just making. */
const SPAWN_WAIT_MS = 50;

/** What {@link JavaScriptEngine} needs to know. */
export type JavaScriptEngineOptions = ContextPoolOptions;

/** Runs JavaScript and TypeScript, each execution in a worker thread of its own that is never used again. */
export class JavaScriptEngine implements Engine {
  readonly #pool: ContextPool;
  readonly #guests = new Set<Guest>();

  constructor(options: JavaScriptEngineOptions) {
    this.#pool = new ContextPool(options);
  }

  /** Threads alive, and those of them that wait for an execution. */
  get threads(): { live: number; spare: number } {
    return { live: this.#pool.liveCount, spare: this.#pool.spareCount };
  }

  start(request: StartRequest, events: GuestEvents): Guest {
    const guest = new JavaScriptGuest(request, this.#pool, {
      started: (info) => events.started(info),
      exited: (exit) => {
        this.#guests.delete(guest);
        events.exited(exit);
      },
    });
    this.#guests.add(guest);
    return guest;
  }

  keepWarm(count: number): void {
    this.#pool.keepWarm(count);
  }

  async close(): Promise<void> {
    for (const guest of this.#guests) guest.kill();
    await this.#pool.close();
  }
}

/** One execution. */
class JavaScriptGuest implements Guest {
  readonly #request: StartRequest;
  readonly #events: GuestEvents;
  readonly #pool: ContextPool;
  #shared = new Int32Array(new SharedArrayBuffer(SHARED_BYTES));
  #descriptors: OutputDescriptors | undefined;
  #context: Context | undefined;
  #control: MessagePort | undefined;
  #startTimer: NodeJS.Timeout | undefined;
  #boots = 0;
  #started = false;
  #finished = false;
  #endedBy: number | undefined;
  /** Child processes that were killed with it, and those below them. */
  readonly #killed = new Set<number>();
  #timedOut = false;
  /** What was written, to be posted again should the thread fail to boot; given up once guest code has begun. */
  #sent: CellMessage[] | undefined = [];
  readonly #writes: (() => void)[] = [];

  constructor(request: StartRequest, pool: ContextPool, events: GuestEvents) {
    this.#request = request;
    this.#events = events;
    this.#pool = pool;
    try {
      this.#descriptors = openOutput(request.outputDir);
      const program = prepare(request);
      if (program.ok) this.#boot(program.task);
      else {
        new OutputWriter(this.#descriptors).write('stderr', Buffer.from(program.message));
        setImmediate(() => {
          this.#start();
          this.#finish({ exitCode: 1 });
        });
      }
    } catch (error) {
      setImmediate(() => this.#finish({ exitCode: 1, cause: 'start_failed', message: (error as Error).message }));
    }
  }

  signal(name: NodeJS.Signals): void {
    const number = signalNumber(name);
    if (this.#finished || number === undefined) return;
    if (name !== 'SIGKILL' && number < 32 && (Atomics.load(this.#shared, SHARED.listened) & (1 << number)) !== 0) {
      this.#post({ type: 'signal', name, number });
    } else if (!HARMLESS_SIGNALS.has(name)) this.#terminate(number);
  }

  kill(): void {
    this.#terminate(constants.signals.SIGKILL);
  }

  write(data: Uint8Array, end: boolean): Promise<void> {
    if (this.#finished || !this.#request.stdin) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#writes.push(resolve);
    const message: CellMessage = { type: 'input', bytes: data, end };
    this.#sent?.push(message);
    this.#post(message);
    return promise;
  }

  #boot(task: Omit<ThreadTask, 'control' | 'shared' | 'descriptors'>): void {
    const { port1, port2 } = new MessageChannel();
    this.#boots += 1;
    this.#control = port1;
    port1.on('message', (message: ThreadMessage) => this.#receive(message));
    port1.unref();
    for (const message of this.#sent ?? []) port1.postMessage(message);
    const context = this.#pool.take();
    this.#context = context;
    context.ended.then((end) => {
      port1.close();
      clearTimeout(this.#startTimer);
      const failed = Atomics.load(this.#shared, SHARED.begun) === 0 && this.#endedBy === undefined;
      if (failed && !this.#timedOut && this.#boots < MAX_BOOTS && !isHeapLimit(end)) this.#boot(task);
      else void this.#end(end);
    });
    this.#startTimer = setTimeout(() => {
      if (Atomics.load(this.#shared, SHARED.begun) === 1) return;
      this.#timedOut = true;
      context.terminate();
    }, START_TIMEOUT_MS);
    const descriptors = this.#descriptors as OutputDescriptors;
    context.run({ ...task, control: port2, shared: this.#shared.buffer as SharedArrayBuffer, descriptors });
  }

  #post(message: CellMessage): void {
    this.#control?.postMessage(message);
    Atomics.add(this.#shared, SHARED.wake, 1);
    Atomics.notify(this.#shared, SHARED.wake);
  }

  #receive(message: ThreadMessage): void {
    if (message.type === 'started') this.#start();
    else for (const resolve of this.#writes.splice(0, message.count)) resolve();
  }

  #start(): void {
    if (this.#started || this.#finished) return;
    this.#started = true;
    this.#sent = undefined;
    clearTimeout(this.#startTimer);
    this.#events.started({});
  }

  #terminate(number: number): void {
    if (this.#finished) return;
    this.#endedBy ??= number;
    const end = () => {
      this.#context?.terminate();
      // A thread that waits for a child synchronously cannot end before the child has.
      const thread = Atomics.load(this.#shared, SHARED.thread);
      if (thread !== 0) this.#kill(childrenOfThread(thread));
    };
    const spawning = Atomics.waitAsync(this.#shared, SHARED.spawning, 1, SPAWN_WAIT_MS);
    // Making a process is one call into native code: the thread could not end before it returns anyway.
    if (spawning.async) spawning.value.then(end);
    else end();
  }

  #kill(processes: Iterable<number>): void {
    for (const pid of killTrees(processes)) this.#killed.add(pid);
  }

  async #end(end: ContextEnd): Promise<void> {
    const begun = Atomics.load(this.#shared, SHARED.begun) === 1;
    // The thread may end before its message is read here.
    if (begun) this.#start();
    const children = this.#shared.subarray(SHARED.children, SHARED.children + CHILD_SLOTS).filter((pid) => pid !== 0);
    if (children.length > 0) this.#kill(children);
    await untilGone(this.#killed, CHILD_LIMIT_MS);
    if (end.error !== undefined && begun && !isHeapLimit(end)) this.#reportError(end.error);
    this.#finish(this.#exitOf(end, begun));
  }

  /** Writes an uncaught error the thread could not write itself. */
  #reportError(error: Error): void {
    if (Atomics.load(this.#shared, SHARED.reported) === 1 || this.#descriptors === undefined) return;
    try {
      new OutputWriter(this.#descriptors).write('stderr', Buffer.from(`${inspect(error)}\n`));
    } catch {
      // Standard error is full: the exit code tells that it failed.
    }
  }

  #exitOf(end: ContextEnd, begun: boolean): GuestExit {
    const signal = this.#endedBy ?? Atomics.load(this.#shared, SHARED.endedBy);
    if (isHeapLimit(end)) {
      return {
        exitCode: 137,
        signal: 'SIGKILL',
        cause: 'heap_limit',
        message: end.error?.message ?? 'heap limit reached',
      };
    }
    const name = signalName(signal);
    if (name !== undefined) return { exitCode: 128 + signal, signal: name };
    if (!begun) {
      const message = this.#timedOut ? `the thread did not start within ${START_TIMEOUT_MS} ms` : end.error?.message;
      return { exitCode: 1, cause: 'start_failed', message: message ?? `the thread ended with code ${end.code}` };
    }
    if (Atomics.load(this.#shared, SHARED.handlerThrew) === 1) return { exitCode: 7 };
    return { exitCode: end.code & 255 };
  }

  #finish(exit: GuestExit): void {
    if (this.#finished) return;
    this.#finished = true;
    if (this.#descriptors !== undefined) for (const fd of Object.values(this.#descriptors)) closeSync(fd);
    for (const resolve of this.#writes.splice(0)) resolve();
    this.#events.exited(exit);
  }
}

function isHeapLimit(end: ContextEnd): boolean {
  return end.error?.code === 'ERR_WORKER_OUT_OF_MEMORY';
}

function openOutput(directory: string): OutputDescriptors {
  const [stdout, stderr, marks] = ['stdout', 'stderr', 'marks'].map((name) => openSync(join(directory, name), 'a'));
  return { stdout: stdout as number, stderr: stderr as number, marks: marks as number };
}

type Prepared =
  | { ok: true; task: Omit<ThreadTask, 'control' | 'shared' | 'descriptors'> }
  | { ok: false; message: string };

/** Puts the program where it belongs and makes JavaScript of it; not `ok` when its TypeScript does not parse. */
function prepare(request: StartRequest): Prepared {
  const { mainPath, code, writeMain, outputDir } = request;
  if (writeMain) writeFileSync(mainPath, code);
  const typescript = request.language === 'typescript';
  let source: MainSource | undefined;
  if (typescript) {
    const result = transformTypeScript(mainPath, code);
    if (!result.ok) return { ok: false, message: `${result.message}\n` };
    source = { code: result.code, original: code, format: formatOf(mainPath, writeMain) };
  } else if (!writeMain || (extname(mainPath) === '.js' && packageType(dirname(mainPath)) !== undefined)) {
    // A private file may lie below somebody's package.json, which has nothing to say about it.
    source = { code, format: formatOf(mainPath, writeMain) };
  }
  const { args, env, cwd, tmpDir, stdin } = request;
  const outputPaths = { stdout: join(outputDir, 'stdout'), stderr: join(outputDir, 'stderr') };
  const task = { mainPath, sourceMaps: typescript, args, env, cwd, tmpDir, stdin, outputPaths };
  return { ok: true, task: { ...task, ...(source !== undefined && { source }) } };
}

/** How Node would take a file at `mainPath`. */
function formatOf(mainPath: string, isPrivate: boolean): MainSource['format'] {
  const extension = extname(mainPath);
  if (extension.startsWith('.m')) return 'module';
  if (extension.startsWith('.c')) return 'commonjs';
  return (isPrivate ? undefined : packageType(dirname(mainPath))) ?? 'syntax';
}
