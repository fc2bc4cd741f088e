import { availableParallelism } from 'node:os';
import type { HeapInfo } from 'node:v8';
import type { ResourceLimits, Worker } from 'node:worker_threads';
import { Piscina } from 'piscina';
import type { ThreadTask } from './messages.ts';

/** How long a pool keeps what nobody asks for. */
const DEFAULT_IDLE_MS = 30_000;

/** After so many spares in a row that failed to boot, none is booted until one is asked for. */
const MAX_FAILED_BOOTS = 3;

/** Spares boot only so many at a time: each takes a core, and programs are running. */
const MAX_BOOTING = Math.max(1, availableParallelism() - 1);

/** How long after a start its replacement boots: making a thread holds up this one, and a short program ends sooner. */
const REFILL_DELAY_MS = 5;

/** So many of the newest starts say which heap limits spares boot with: each that was asked for more than once. */
const REMEMBERED_STARTS = 16;

/** V8 gives new objects up to this much beside the heap limit, however small that is. */
const YOUNG_GENERATION_MB = 96;
/** They get this part of the heap limit instead where that is less, and this much at least. */
const YOUNG_SHARE = 1 / 8;
const SMALLEST_YOUNG_GENERATION_MB = 2;

/** What {@link ContextPool} needs to know. */
export interface ContextPoolOptions {
  /** The built worker, as a path or a file URL. */
  workerUrl: string;
  /** Heap limit of each thread, unless others are asked for. Default: Node's. */
  resourceLimits?: { maxOldGenerationSizeMb?: number };
  /** After this long without a start, spares are let go. Default 30 s. */
  idleMs?: number;
}

/** How a thread ended. */
export interface ContextEnd {
  /** The exit code of its Worker. */
  code: number;
  /** What it did not catch, copied out of the thread. */
  error?: Error & { code?: string };
}

/**
 * One thread for one execution. A Piscina of its own holds it: Piscina's `minThreads` counts busy threads too, so a
 * shared one could not be told how many spares to keep beside the threads at work.
 */
export class Context {
  /** Resolves when the thread is gone. */
  readonly ended: Promise<ContextEnd>;
  readonly threadId: number;
  /** Undefined: Node's own. */
  readonly heapLimitMb: number | undefined;
  #state: 'booting' | 'booted' | 'ended' = 'booting';
  readonly #pool: Piscina;
  readonly #worker: Worker;

  constructor(options: ContextPoolOptions, onBooted: () => void) {
    const heapLimitMb = options.resourceLimits?.maxOldGenerationSizeMb;
    this.heapLimitMb = heapLimitMb;
    this.#pool = new Piscina({
      filename: options.workerUrl,
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Number.POSITIVE_INFINITY,
      atomics: 'disabled',
      recordTiming: false,
      env: {},
      resourceLimits: limitsOf(heapLimitMb),
    });
    // Piscina would replace the thread when it ends, and reads this then.
    (this.#pool.options as { minThreads: number }).minThreads = 0;
    this.#worker = this.#pool.threads[0] as Worker;
    this.threadId = this.#worker.threadId;
    const { promise, resolve } = Promise.withResolvers<ContextEnd>();
    this.ended = promise;
    let error: ContextEnd['error'];
    // The Worker's own events are the truth about the thread; what Piscina makes of them is of no interest.
    this.#pool.on('error', () => {});
    this.#worker.on('error', (thrown) => {
      // A thread that V8 ended for want of memory has no id any more; one that only throws such an error has.
      if (thrown instanceof Error && this.#worker.threadId !== -1) delete (thrown as ContextEnd['error'] & object).code;
      error ??= thrown as Error;
    });
    this.#worker.once('exit', (code) => {
      this.#state = 'ended';
      resolve({ code, ...(error !== undefined && { error }) });
    });
    this.#worker.on('message', (message: unknown) => {
      if (message !== 'warm' || this.#state !== 'booting') return;
      this.#state = 'booted';
      onBooted();
    });
  }

  get state(): 'booting' | 'booted' | 'ended' {
    return this.#state;
  }

  /** Hands the thread its one task; it begins as soon as it has booted. */
  run(task: ThreadTask): void {
    // A list, whatever Piscina's types make of Node's.
    this.#pool.run(task, { transferList: [task.control] as never }).catch(() => {});
  }

  /** The thread's heap and what it holds beside it, asked of the thread: answered when it next runs JavaScript. */
  heapStatistics(): Promise<HeapInfo> {
    return this.#worker.getHeapStatistics();
  }

  /** Ends the thread by force. `ended` tells when it is gone, which takes as long as a call into native code does. */
  terminate(): void {
    this.#worker.terminate();
  }
}

function limitsOf(heapLimitMb: number | undefined): ResourceLimits {
  if (heapLimitMb === undefined) return {};
  const young = Math.max(SMALLEST_YOUNG_GENERATION_MB, Math.ceil(heapLimitMb * YOUNG_SHARE));
  return {
    maxOldGenerationSizeMb: heapLimitMb,
    ...(young < YOUNG_GENERATION_MB && { maxYoungGenerationSizeMb: young }),
  };
}

/** Threads booted ahead, each for one execution. */
export class ContextPool {
  readonly #options: ContextPoolOptions;
  readonly #spares = new Set<Context>();
  readonly #live = new Set<Context>();
  /** Heap limits of the newest starts, the newest first. */
  readonly #asked: (number | undefined)[] = [];
  #ceiling = 0;
  #wanted = 0;
  #taken = 0;
  #failedBoots = 0;
  #closed = false;
  #idleTimer: NodeJS.Timeout | undefined;

  constructor(options: ContextPoolOptions) {
    this.#options = options;
  }

  /** Threads booted or booting that no execution has. */
  get spareCount(): number {
    return this.#spares.size;
  }

  /** Spares that have booted. */
  get bootedCount(): number {
    return [...this.#spares].filter(({ state }) => state === 'booted').length;
  }

  /** Threads that have booted, spares included. */
  get readyCount(): number {
    return [...this.#live].filter(({ state }) => state === 'booted').length;
  }

  /** Threads alive, spares included. */
  get liveCount(): number {
    return this.#live.size;
  }

  /** How many spares to keep at most; 0 means none ever. Raised from 0, the first is booted at once. */
  keepWarm(ceiling: number): void {
    this.#ceiling = Math.max(0, ceiling);
    if (this.#ceiling > 0 && this.#wanted === 0) this.#wanted = 1;
    this.#adjust();
    this.#restartIdleTimer();
  }

  /** A thread for one execution: a booted spare with its heap limit, in MB, else one that boots already, else a new one. */
  take(heapLimitMb = this.#heapLimitMb): Context {
    const spares = [...this.#spares].filter((spare) => spare.heapLimitMb === heapLimitMb);
    const booted = spares.find(({ state }) => state === 'booted');
    const context = booted ?? spares[0] ?? this.#boot(heapLimitMb);
    this.#asked.unshift(heapLimitMb);
    this.#asked.splice(REMEMBERED_STARTS);
    this.#spares.delete(context);
    this.#taken += 1;
    // One that came too soon for the spares there were shows that there were too few.
    const missed = booted === undefined ? 1 : 0;
    this.#wanted = Math.min(this.#ceiling, Math.max(this.#wanted + missed, this.#taken));
    this.#failedBoots = 0;
    context.ended.then(() => {
      this.#taken -= 1;
    });
    this.#restartIdleTimer();
    setTimeout(() => this.#adjust(), REFILL_DELAY_MS).unref();
    return context;
  }

  /** Ends all threads by force; resolves when they are gone. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    for (const context of this.#live) context.terminate();
    await Promise.all([...this.#live].map(({ ended }) => ended));
  }

  get #heapLimitMb(): number | undefined {
    return this.#options.resourceLimits?.maxOldGenerationSizeMb;
  }

  #boot(heapLimitMb = this.#heapLimitMb): Context {
    const resourceLimits = heapLimitMb === undefined ? {} : { maxOldGenerationSizeMb: heapLimitMb };
    const context = new Context({ ...this.#options, resourceLimits }, () => {
      this.#failedBoots = 0;
      this.#adjust();
    });
    this.#live.add(context);
    context.ended.then(() => {
      this.#live.delete(context);
      // Still a spare: it failed by itself, for one that is let go is no spare any more.
      if (this.#spares.delete(context)) this.#failedBoots += 1;
      // One that was ended while it booted may have had others wait for its turn.
      this.#adjust();
    });
    return context;
  }

  #adjust(): void {
    if (this.#closed) return;
    const missing = this.#nextLimits(Math.min(this.#wanted, this.#ceiling));
    for (const spare of this.#spares) {
      const at = missing.indexOf(spare.heapLimitMb);
      if (at !== -1) {
        missing.splice(at, 1);
        continue;
      }
      this.#spares.delete(spare);
      spare.terminate();
    }
    let booting = [...this.#live].filter(({ state }) => state === 'booting').length;
    for (const heapLimitMb of missing) {
      if (booting >= MAX_BOOTING || this.#failedBoots >= MAX_FAILED_BOOTS) break;
      this.#spares.add(this.#boot(heapLimitMb));
      booting += 1;
    }
  }

  /** The heap limits that the next starts are likely to ask for: those of the newest ones, where they come again. */
  #nextLimits(count: number): (number | undefined)[] {
    const usual = this.#asked.filter(
      (limit, at) => this.#asked.indexOf(limit) !== at || this.#asked.indexOf(limit, at + 1) !== -1,
    );
    const limits = usual.slice(0, count);
    while (limits.length < count) limits.push(usual.length > 0 ? usual[0] : this.#heapLimitMb);
    return limits;
  }

  #restartIdleTimer(): void {
    if (this.#closed) return;
    clearTimeout(this.#idleTimer);
    this.#idleTimer = setTimeout(() => {
      // One stays while anything runs here: where one program runs, the next is likely.
      this.#wanted = this.#taken > 0 ? 1 : 0;
      this.#adjust();
      if (this.#taken > 0) this.#restartIdleTimer();
    }, this.#options.idleMs ?? DEFAULT_IDLE_MS).unref();
  }
}
