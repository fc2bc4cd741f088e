import { constants } from 'node:os';
import { inspect } from 'node:util';
import { MessageChannel, type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import {
  HARMLESS_SIGNALS,
  SHARED,
  SHARED_BYTES,
  signalName,
  signalNumber,
  THREAD_SLOTS,
} from '../../workers/javascript/shared.ts';
import { sourceOf } from '../../workers/javascript/source.ts';
import type { OutputDescriptors, OutputStream } from '../../workers/output-writer.ts';
import { openDestination, outputPathsOf } from '../output/output-destination.ts';
import { killTrees, type Processes, sendSignal, startTimeOf, treeOf, untilGone } from '../processes.ts';
import {
  type Engine,
  type Guest,
  type GuestEvents,
  type GuestExit,
  type GuestUsage,
  NO_OUTPUT,
  NO_USAGE,
  type StartRequest,
} from './engine.ts';
import { GuestOutput } from './guest-output.ts';
import type { CellMessage, ProgramTask, ThreadMessage, ThreadStart } from './messages.ts';
import { heapLimitMbOf, prepare } from './program-task.ts';
import {
  type ContextEnd,
  createThreadPool,
  type ThreadContext,
  type ThreadPool,
  type ThreadPoolOptions,
} from './thread-context.ts';
import { GuestMeter, ThreadMeter } from './thread-usage.ts';

/** A thread that has not begun after this long is given up: its file hangs while it loads. The daemon's limit is shorter. */
const START_TIMEOUT_MS = 60_000;

/** How long killed child processes may take to be gone before the end of the execution is told all the same. */
const CHILD_LIMIT_MS = 10_000;

/** How many threads may fail to boot before a start is given up. */
const MAX_BOOTS = 3;

/** How long threads that are about to be ended may take to note the child processes they are just making. */
const SPAWN_WAIT_MS = 50;

/** How often a thread that is to end is looked at for a child it waits for. */
const RELEASE_MS = 20;

/** How deep the error that ends a program is shown, as by Node. */
const ERROR_DEPTH = 5;

/** What {@link JavaScriptEngine} needs to know. */
export type JavaScriptEngineOptions = ThreadPoolOptions;

/** Runs JavaScript and TypeScript, each execution in a worker thread of its own that is never used again. */
export class JavaScriptEngine implements Engine {
  readonly #pool: ThreadPool;
  readonly #meter: ThreadMeter;
  readonly #guests = new Set<Guest>();

  constructor(options: JavaScriptEngineOptions) {
    this.#pool = createThreadPool(options);
    this.#meter = new ThreadMeter(() => this.#pool.readyCount);
  }

  /** Threads alive, and those of them that wait for an execution. */
  get threads(): { live: number; spare: number } {
    return { live: this.#pool.liveCount, spare: this.#pool.spareCount };
  }

  start(request: StartRequest, events: GuestEvents): Guest {
    const guest = new JavaScriptGuest(request, this.#pool, this.#meter, {
      started: (info) => events.started(info),
      killed: (processes) => events.killed?.(processes),
      gone: () => events.gone?.(),
      outputExceeded: () => events.outputExceeded(),
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
  readonly #pool: ThreadPool;
  readonly #meter: ThreadMeter;
  #shared = new Int32Array(new SharedArrayBuffer(SHARED_BYTES));
  #output: GuestOutput | undefined;
  #context: ThreadContext | undefined;
  /** From the moment guest code began. */
  #measured: GuestMeter | undefined;
  #finalUsage: GuestUsage | undefined;
  #control: MessagePort | undefined;
  #startTimer: NodeJS.Timeout | undefined;
  #boots = 0;
  #started = false;
  /** The thread is gone: what comes later changes nothing of how it ended. */
  #ended = false;
  #finished = false;
  #endedBy: number | undefined;
  /** Child processes that were killed with it, and those below them. */
  #killed: Processes = new Map();
  #timedOut = false;
  /** What was written, to be posted again should the thread fail to boot; given up once guest code has begun. */
  #sent: CellMessage[] | undefined = [];
  readonly #writes: (() => void)[] = [];

  constructor(request: StartRequest, pool: ThreadPool, meter: ThreadMeter, events: GuestEvents) {
    this.#request = request;
    this.#events = events;
    this.#pool = pool;
    this.#meter = meter;
    try {
      const { outputDir, outputFiles, limits } = request;
      this.#output = new GuestOutput(openDestination(outputDir, outputFiles), this.#shared, limits.outputBytes, () => {
        this.#hearOfStart();
        events.outputExceeded();
      });
      const task = prepare(request, outputPathsOf(outputDir, this.#output.descriptors));
      const made = sourceOf(task);
      if (made.ok) this.#boot({ ...task, ...(made.source !== undefined && { source: made.source }) });
      else {
        this.#output.writer.write('stderr', Buffer.from(`${made.message}\n`));
        setImmediate(() => {
          events.started({});
          this.#finish({ exitCode: 1 });
        });
      }
    } catch (error) {
      setImmediate(() => this.#finish({ exitCode: 1, cause: 'start_failed', message: (error as Error).message }));
    }
  }

  signal(name: NodeJS.Signals, tree = false): void {
    const number = signalNumber(name);
    if (this.#ended || this.#finished || number === undefined) return;
    // Before the guest itself: with its end they are killed.
    if (tree || this.#request.signalTree) {
      for (const pid of treeOf(this.#measured?.children() ?? [])) sendSignal(pid, name);
    }
    if (!this.notify(name) && !HARMLESS_SIGNALS.has(name)) this.#terminate(number);
  }

  notify(name: NodeJS.Signals): boolean {
    const number = signalNumber(name);
    if (this.#ended || this.#finished || number === undefined || name === 'SIGKILL' || number > 31) return false;
    if ((Atomics.load(this.#shared, SHARED.listened) & (1 << number)) === 0) return false;
    this.#post({ type: 'signal', name, number });
    return true;
  }

  async usage(): Promise<GuestUsage> {
    this.#output?.look();
    const now = await this.#measured?.usage();
    // It may have ended meanwhile.
    return this.#finalUsage ?? now ?? NO_USAGE;
  }

  get outputBytes(): Record<OutputStream, number> {
    return this.#output?.bytes ?? NO_OUTPUT;
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

  #boot(task: ProgramTask): void {
    const { port1, port2 } = new MessageChannel();
    this.#boots += 1;
    this.#control = port1;
    port1.on('message', (message: ThreadMessage) => this.#receive(message));
    port1.unref();
    for (const message of this.#sent ?? []) port1.postMessage(message);
    const context = this.#pool.take(this.#heapLimitMb);
    this.#context = context;
    this.#meter.programs.add(this.#shared);
    context.ended.then((end) => {
      this.#hearOfStart();
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
    const descriptors = this.#output?.descriptors as OutputDescriptors;
    const shared = this.#shared.buffer as SharedArrayBuffer;
    context.run({ ...task, control: port2, shared, reaped: this.#meter.reaped, descriptors });
  }

  get #heapLimitMb(): number | undefined {
    return heapLimitMbOf(this.#request.limits);
  }

  #post(message: CellMessage): void {
    this.#control?.postMessage(message);
    Atomics.add(this.#shared, SHARED.wake, 1);
    Atomics.notify(this.#shared, SHARED.wake);
  }

  /** A program can find the port, and post what it likes. */
  #receive(message: ThreadMessage | undefined | null): void {
    if (message?.type === 'started') this.#start(message);
    else if (message?.type === 'taken' && typeof message.count === 'number') {
      for (const resolve of this.#writes.splice(0, message.count)) resolve();
    }
  }

  /** The thread's first message, which may be waiting here: it comes before anything else that a program is to be seen by. */
  #hearOfStart(): void {
    if (this.#started || this.#control === undefined) return;
    const waiting = receiveMessageOnPort(this.#control);
    if (waiting !== undefined) this.#receive(waiting.message);
  }

  #start(start: ThreadStart): void {
    if (this.#started || this.#finished || this.#context === undefined) return;
    this.#started = true;
    this.#sent = undefined;
    clearTimeout(this.#startTimer);
    const { memoryBytes } = this.#request.limits;
    this.#measured = new GuestMeter(this.#meter, this.#context, this.#shared, start, memoryBytes);
    this.#events.started({ thread: this.#context.threadId });
    this.#meter.add(this.#measured);
    void this.#watchSignal();
  }

  /** Ends it by a signal that a thread has sent which it has started: such a thread cannot do that itself. */
  async #watchSignal(): Promise<void> {
    const sent = Atomics.waitAsync(this.#shared, SHARED.endedBy, 0);
    if (sent.async) await sent.value;
    this.#terminate(Atomics.load(this.#shared, SHARED.endedBy));
  }

  #terminate(number: number): void {
    if (this.#ended || this.#finished) return;
    this.#endedBy ??= number;
    void this.#endThread();
  }

  async #endThread(): Promise<void> {
    Atomics.store(this.#shared, SHARED.closing, 1);
    // Making a process is one call into native code: the thread could not end before it returns anyway.
    const endMs = performance.now() + SPAWN_WAIT_MS;
    for (let slot = SHARED.spawning; slot < SHARED.spawning + THREAD_SLOTS; slot += 1) {
      const spawning = Atomics.waitAsync(this.#shared, slot, 1, Math.max(0, endMs - performance.now()));
      if (spawning.async) await spawning.value;
    }
    this.#measured?.look();
    // The memory of large ones would take longer to add up than their end may.
    this.#measured?.lookAtChildren(false);
    this.#context?.terminate();
    this.#release();
  }

  /** Ends the children that its threads wait for synchronously: until then no thread can end, nor one that started it. */
  #release(): void {
    if (this.#ended || this.#finished) return;
    this.#hearOfStart();
    this.#kill((this.#measured?.childrenOfThreads() ?? []).filter((pid) => this.#killed.get(pid) !== startTimeOf(pid)));
    // One below the program's own thread hears last that it has to end, and may make another child before.
    setTimeout(() => this.#release(), RELEASE_MS).unref();
  }

  #kill(processes: Iterable<number>): void {
    const roots = [...processes];
    if (roots.length === 0) return;
    // Told before as well: until all of a tree have stopped the cell does nothing else.
    this.#events.killed?.(new Map([...this.#killed, ...roots.map((pid) => [pid, startTimeOf(pid)] as const)]));
    this.#killed = new Map([...this.#killed, ...killTrees(roots)]);
    this.#events.killed?.(this.#killed);
  }

  async #end(end: ContextEnd): Promise<void> {
    this.#ended = true;
    const begun = this.#started;
    if (this.#output?.isShared) this.#events.gone?.();
    this.#kill(this.#measured?.end() ?? []);
    await untilGone(this.#killed, CHILD_LIMIT_MS);
    await this.#output?.endWriters();
    if (end.error !== undefined && begun && !isHeapLimit(end)) this.#reportError(end.error);
    this.#finish(this.#exitOf(end, begun), isHeapLimit(end));
  }

  /** Writes an uncaught error the thread could not write itself. */
  #reportError(error: Error): void {
    if (Atomics.load(this.#shared, SHARED.reported) === 1) return;
    try {
      this.#output?.writer.write('stderr', Buffer.from(`${inspect(error, { depth: ERROR_DEPTH })}\n`));
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
      // Of a thread that could not be made Node says only why: EAGAIN.
      const why = end.error?.message ?? `it ended with code ${end.code}`;
      const how = this.#timedOut ? ` within ${START_TIMEOUT_MS} ms` : `: ${why}`;
      return { exitCode: 1, cause: 'start_failed', message: `the thread did not start${how}` };
    }
    return { exitCode: end.code & 255 };
  }

  #finish(exit: GuestExit, atHeapLimit = false): void {
    if (this.#finished) return;
    this.#finished = true;
    Atomics.notify(this.#shared, SHARED.endedBy);
    this.#output?.close();
    if (this.#measured !== undefined) {
      this.#finalUsage = this.#measured.final(atHeapLimit ? this.#context?.heapLimitMb : undefined);
      this.#meter.remove(this.#measured);
    }
    this.#meter.programs.delete(this.#shared);
    for (const resolve of this.#writes.splice(0)) resolve();
    this.#events.exited({ ...exit, ...(this.#finalUsage !== undefined && { usage: this.#finalUsage }) });
  }
}

function isHeapLimit(end: ContextEnd): boolean {
  return end.error?.code === 'ERR_WORKER_OUT_OF_MEMORY';
}
