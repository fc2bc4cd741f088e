import { constants } from 'node:os';
import { join } from 'node:path';
import { announceOutput, dropOutput } from '../../workers/javascript/output-limit.ts';
import { FIGURE, figuresOf, OUTPUT, SHARED_BYTES, signalName } from '../../workers/javascript/shared.ts';
import type { OutputRotation, OutputStream } from '../../workers/output-writer.ts';
import { endsWithHeapExhausted } from '../heap-exhausted.ts';
import { openDestination, outputPathsOf } from '../output/output-destination.ts';
import {
  endSessionOf,
  isChildOf,
  isSameProcess,
  killTrees,
  leaderOf,
  processName,
  sendSignal,
  startTimeOf,
  treeOf,
  untilGone,
} from '../processes.ts';
import { ContextPool, type ContextPoolOptions } from './context-pool.ts';
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
import type { GuestGroup, GuestGroups } from './guest-groups.ts';
import { GuestOutput } from './guest-output.ts';
import { GuestProcess, type ProcessEnd } from './guest-process.ts';
import { catches, GuestSignals } from './guest-signals.ts';
import type { ProcessMessage, ProgramTask } from './messages.ts';
import { ProcessUsage } from './process-usage.ts';
import { heapLimitMbOf, prepare } from './program-task.ts';

/** A process that has not begun after this long is given up. The daemon's limit is shorter. */
const START_LIMIT_MS = 60_000;

/** How many processes may fail to boot before a start is given up. */
const MAX_BOOTS = 3;

/** Node takes 60 ms of a core to boot. */
const REFILL_DELAY_MS = 50;

/** Processes kept booted ahead at most: each holds as much as a guest. */
const MOST_WARM = 2;

/** How long what was killed with a guest may take to be gone before its end is told all the same. */
const CHILD_LIMIT_MS = 10_000;

/** So many children are remembered before those that are gone are left out. */
const CHILDREN_KEPT = 256;

/** What {@link ProcessEngine} needs to know. */
export interface ProcessEngineOptions extends ContextPoolOptions {
  /** The built `workers/process.ts`. */
  programPath: string;
  /** Holds the limit of memory; without them memory is only sampled. */
  groups?: GuestGroups | undefined;
}

/** Runs JavaScript and TypeScript, each execution in a process of its own. */
export class ProcessEngine implements Engine {
  readonly #pool: ContextPool<GuestProcess>;
  readonly #groups: GuestGroups | undefined;
  readonly #guests = new Set<ProcessGuest>();

  constructor({ programPath, groups, ...options }: ProcessEngineOptions) {
    this.#groups = groups;
    this.#pool = new ContextPool(
      { refillDelayMs: REFILL_DELAY_MS, ...options },
      (heapLimitMb, onBooted) => new GuestProcess(programPath, heapLimitMb, onBooted),
    );
  }

  start(request: StartRequest, events: GuestEvents): Guest {
    const guest = new ProcessGuest(request, this.#pool, this.#groups, {
      handed: (pid) => events.handed?.(pid),
      started: (info) => events.started(info),
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
    this.#pool.keepWarm(Math.min(count, MOST_WARM));
  }

  async close(): Promise<void> {
    for (const guest of this.#guests) guest.kill();
    await this.#pool.close();
  }
}

/** One execution. */
class ProcessGuest implements Guest {
  readonly #request: StartRequest;
  readonly #events: GuestEvents;
  readonly #pool: ContextPool<GuestProcess>;
  readonly #signals = new GuestSignals((pid, tree) => this.#members(pid, tree));
  /** What a thread would share with its cell: of it only the part about output is used. */
  readonly #shared = new Int32Array(new SharedArrayBuffer(SHARED_BYTES));
  #output: GuestOutput | undefined;
  #group: GuestGroup | undefined;
  #process: GuestProcess | undefined;
  #usage: ProcessUsage | undefined;
  #startTimer: NodeJS.Timeout | undefined;
  #boots = 0;
  #started = false;
  /** Its process is gone: the id may be another's. */
  #gone = false;
  #finished = false;
  readonly #over = Promise.withResolvers<void>();
  #killed = false;
  #timedOut = false;
  /** Signals and input asked for before guest code began. */
  #early: (() => void)[] = [];
  /** Of its process: see `processName`. */
  #startTime: string | undefined;
  #name: string | undefined;
  /** It has started some, in whatever way. */
  #hasChildren = false;
  /** Child processes that it told of, with their start times. */
  readonly #children = new Map<number, string | undefined>();
  #mostChildren = CHILDREN_KEPT;
  /** Of what it told last, those of which nobody can say any more whether they were its children. */
  readonly #orphans = new Map<number, string | undefined>();
  /** It told of a process that is not its child: what cannot be looked up is not believed. */
  #forges = false;
  #ended: (ProcessMessage & { type: 'end' }) | undefined;
  #droppedBytes = 0;

  constructor(
    request: StartRequest,
    pool: ContextPool<GuestProcess>,
    groups: GuestGroups | undefined,
    events: GuestEvents,
  ) {
    this.#request = request;
    this.#events = events;
    this.#pool = pool;
    try {
      const { outputDir, outputFiles, limits, executionKey } = request;
      this.#output = new GuestOutput(openDestination(outputDir, outputFiles), this.#shared, limits.outputBytes, () =>
        events.outputExceeded(),
      );
      const program = prepare(request, outputPathsOf(outputDir, this.#output.descriptors));
      // How many processes it may have it counts itself: the kernel would count the threads of Node too.
      this.#group = groups?.create(executionKey, { ...limits, processes: undefined }, true);
      this.#boot(program);
    } catch (error) {
      setImmediate(() => this.#finish({ exitCode: 1, cause: 'start_failed', message: (error as Error).message }));
    }
  }

  signal(name: NodeJS.Signals, tree = false): void {
    // It may be the end of it, and this the last look.
    if (!this.#gone) this.#usage?.sample(this.#dropped);
    if (name === 'SIGKILL') this.kill();
    else this.#whenStarted(({ pid }) => this.#signals.deliver(pid as number, name, tree || this.#request.signalTree));
  }

  notify(name: NodeJS.Signals): boolean {
    const pid = this.#process?.pid;
    if (!this.#started || this.#gone || pid === undefined || !catches(pid, name)) return false;
    sendSignal(pid, name);
    return true;
  }

  async usage(): Promise<GuestUsage> {
    if (this.#usage === undefined || this.#gone) return this.#usage?.last ?? NO_USAGE;
    this.#output?.look();
    if (!this.#killed && this.#group?.isMaimed) this.kill();
    return this.#usage.sample(this.#dropped);
  }

  get outputBytes(): Record<OutputStream, number> {
    return this.#output?.bytes ?? NO_OUTPUT;
  }

  kill(): void {
    if (this.#gone || this.#finished || this.#killed) return;
    this.#killed = true;
    // The last look at it that there is.
    this.#usage?.sample(this.#dropped);
    this.#killGroup();
    this.#process?.terminate();
  }

  async write(data: Uint8Array, end: boolean): Promise<void> {
    if (this.#finished || !this.#request.stdin) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const write = ({ input }: GuestProcess) => {
      if (input.destroyed || input.writableEnded) {
        resolve();
        return;
      }
      input.once('close', resolve); // the guest is gone: nobody will take it
      input.write(data, () => {
        input.off('close', resolve);
        resolve();
      });
      if (end) input.end();
    };
    this.#whenStarted(write);
    await Promise.race([promise, this.#over.promise]);
  }

  #whenStarted(act: (process: GuestProcess) => void): void {
    if (this.#gone || this.#finished) return;
    if (this.#started && this.#process !== undefined) act(this.#process);
    else this.#early.push(() => this.#process && act(this.#process));
  }

  #boot(program: ProgramTask): void {
    this.#boots += 1;
    let guest: GuestProcess | undefined;
    try {
      guest = this.#pool.take(heapLimitMbOf(this.#request.limits));
      if (guest.pid !== undefined) this.#events.handed?.(guest.pid);
    } catch (error) {
      guest?.terminate();
      setImmediate(() => void this.#end({ code: null, signal: null, error: error as Error }));
      return;
    }
    this.#process = guest;
    if (guest.pid !== undefined) {
      this.#startTime = startTimeOf(guest.pid);
      this.#name = processName(guest.pid, this.#startTime);
    }
    guest.listener = (message) => this.#hear(message);
    guest.ended.then((end) => {
      clearTimeout(this.#startTimer);
      const mayTryAgain = !guest.isHandedOver && !this.#killed && !this.#timedOut;
      if (mayTryAgain && this.#boots < MAX_BOOTS) this.#boot(program);
      else void this.#end(end);
    });
    this.#startTimer = setTimeout(() => {
      if (this.#started) return;
      this.#timedOut = true;
      guest.terminate();
    }, START_LIMIT_MS);
    const { outputDir } = this.#request;
    const { rotation } = (this.#output as GuestOutput).descriptors;
    guest.run({
      ...program,
      groups: this.#group?.joinPaths ?? [],
      marksPath: rotation === undefined ? join(outputDir, 'marks') : undefined,
      rotation: rotation && unshared(rotation),
    });
    // A spare has its input open; one that is to have none finds it at its end.
    if (!this.#request.stdin) guest.input.end();
    if (this.#killed) guest.terminate();
  }

  #hear(message: ProcessMessage): void {
    if (this.#finished) return;
    switch (message.type) {
      case 'warm':
        break;
      case 'started':
        this.#start(message);
        break;
      case 'output':
        if ((message.bits & OUTPUT.direct) !== 0) announceOutput(this.#shared, OUTPUT.direct);
        this.#drop(message.dropped);
        break;
      case 'child':
        this.#noteChild(message.pid);
        break;
      case 'end':
        this.#ended = message;
        break;
    }
  }

  /** It could name anybody: only its own count. */
  #noteChild(pid: number): void {
    this.#hasChildren = true;
    const guest = this.#process?.pid;
    const isChild = guest !== undefined && isChildOf(pid, guest, this.#startTime);
    if (isChild === false) this.#forges = true;
    if (isChild === 'perhaps') this.#orphans.set(pid, startTimeOf(pid));
    if (isChild !== true) return;
    this.#children.set(pid, startTimeOf(pid));
    if (this.#children.size <= this.#mostChildren) return;
    const living = new Set(this.#living());
    for (const known of this.#children.keys()) if (!living.has(known)) this.#children.delete(known);
    this.#mostChildren = 2 * living.size + CHILDREN_KEPT;
  }

  /** Output bytes that were dropped, by whomever. */
  get #dropped(): number {
    return Number(figuresOf(this.#shared)[FIGURE.dropped]);
  }

  /** `bytes` in all, by the guest's own writer. */
  #drop(bytes: number): void {
    const more = bytes - this.#droppedBytes;
    if (more <= 0) return;
    this.#droppedBytes = bytes;
    dropOutput(this.#shared, more);
  }

  #start(message: ProcessMessage & { type: 'started' }): void {
    const pid = this.#process?.pid;
    if (this.#started || pid === undefined) return;
    this.#started = true;
    clearTimeout(this.#startTimer);
    this.#usage = new ProcessUsage(pid, message, this.#group, this.#request.limits.memoryBytes);
    this.#events.started({ pid });
    for (const act of this.#early.splice(0)) act();
  }

  #members(pid: number, tree: boolean): Set<number> {
    return tree ? treeOf([pid, ...this.#living()]) : new Set([pid]);
  }

  /** Of the children that it told of, those that are still the same. */
  #living(): number[] {
    return [...this.#children, ...(this.#forges ? [] : this.#orphans)]
      .filter(([pid, startTime]) => pid > 1 && isSameProcess(pid, startTime))
      .map(([pid]) => pid);
  }

  async #end({ code, signal, error }: ProcessEnd): Promise<void> {
    this.#gone = true;
    this.#signals.end();
    if (this.#hasChildren || this.#output?.isShared) this.#events.gone?.();
    const left = killTrees(this.#living());
    const mayHaveSession = this.#killGroup() || this.#hasChildren;
    // What else it has started is in its session, or ran away from that: then its control group has it. Looked for at once:
    // once nothing is in it any more, the id may be another's.
    const sessionEnded = mayHaveSession && this.#name !== undefined && endSessionOf(this.#name);
    await Promise.all([untilGone(left, CHILD_LIMIT_MS), sessionEnded]);
    await this.#output?.endWriters();
    this.#finish(this.#isTooDeep(signal) ? this.#endTooDeep() : this.#exitOf(code, signal, error));
  }

  /** Kills what is in its process group; false when nothing is. */
  #killGroup(): boolean {
    const group = this.#name === undefined ? undefined : leaderOf(this.#name);
    return group !== undefined && sendSignal(-group, 'SIGKILL');
  }

  /** What makes JavaScript of TypeScript is native code, which ends the process when its stack is full. */
  #isTooDeep(signal: NodeJS.Signals | null): boolean {
    const { language } = this.#request;
    return signal === 'SIGSEGV' && language === 'typescript' && !this.#started && this.#process?.isHandedOver === true;
  }

  /** Ends as a program that does not parse. */
  #endTooDeep(): GuestExit {
    const message = `${this.#request.mainPath}: SyntaxError: the code is nested too deep\n`;
    try {
      this.#output?.writer.write('stderr', Buffer.from(message));
    } catch {
      // Standard error is full: the exit code tells that it failed.
    }
    this.#events.started({});
    return { exitCode: 1 };
  }

  #exitOf(code: number | null, signal: NodeJS.Signals | null, error: Error | undefined): GuestExit {
    const killed = { exitCode: 128 + constants.signals.SIGKILL, signal: 'SIGKILL' } as const;
    if (this.#group?.isOutOfMemory) {
      return { ...killed, cause: 'memory_limit', message: 'the kernel killed it at its memory limit' };
    }
    if (!this.#started && !this.#killed) {
      const how =
        error?.message ?? (signal === null ? `the process ended with code ${code}` : `it was ended by ${signal}`);
      const message = this.#timedOut ? `the process did not start within ${START_LIMIT_MS} ms` : how;
      return { exitCode: 1, cause: 'start_failed', message };
    }
    if (signal === 'SIGABRT' && endsWithHeapExhausted(this.#output?.lastWords() ?? '')) {
      return {
        ...killed,
        cause: 'heap_limit',
        message: `the heap reached its limit (${this.#process?.heapLimitMb ?? 'as Node sets it'})`,
      };
    }
    if (signal === null) return { exitCode: code ?? 1 };
    const number = constants.signals[signal];
    return { exitCode: 128 + number, signal: signalName(number) ?? signal };
  }

  #finish(exit: GuestExit): void {
    if (this.#finished) return;
    this.#finished = true;
    clearTimeout(this.#startTimer);
    if (this.#ended !== undefined) this.#drop(this.#ended.dropped);
    this.#output?.close();
    const usage = this.#usage?.final(this.#ended, this.#dropped);
    this.#usage?.close();
    void this.#group?.remove();
    this.#process?.input.destroy();
    this.#over.resolve();
    this.#events.exited({ ...exit, ...(usage !== undefined && { usage }) });
  }
}

/** What can be sent of it to another process, which begins with the first file. */
function unshared({ current: _, ...rotation }: OutputRotation): Omit<OutputRotation, 'current'> {
  return rotation;
}
