import type { HeapInfo } from 'node:v8';
import type { ResourceLimits, Worker } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { SHARED } from '../../workers/javascript/shared.ts';
import { ContextPool, type ContextPoolOptions, type PooledContext } from './context-pool.ts';
import type { ThreadTask } from './messages.ts';

/** New objects get up to this much beside the heap limit; V8 itself would give them so much with any limit, before 14 twice that. */
const YOUNG_GENERATION_MB = 96;
/** They get this part of the heap limit instead where that is less, and this much at least. */
const YOUNG_SHARE = 1 / 8;
const SMALLEST_YOUNG_GENERATION_MB = 2;

/** What a {@link ThreadPool} needs to know. */
export interface ThreadPoolOptions extends ContextPoolOptions {
  /** The built worker, as a path or a file URL. */
  workerUrl: string;
}

export type ThreadPool = ContextPool<ThreadContext>;

export function createThreadPool({ workerUrl, ...options }: ThreadPoolOptions): ThreadPool {
  return new ContextPool(options, (heapLimitMb, onBooted) => new ThreadContext(workerUrl, heapLimitMb, onBooted));
}

/** How a thread ended. */
export interface ContextEnd {
  /** The exit code of its Worker. */
  code: number;
  /** What it did not catch, or why it could not begin, copied out of the thread. */
  error?: Error & { code?: string };
}

/**
 * One thread for one execution. A Piscina of its own holds it: Piscina's `minThreads` counts busy threads too, so a
 * shared one could not be told how many spares to keep beside the threads at work.
 */
export class ThreadContext implements PooledContext {
  /** Resolves when the thread is gone. */
  readonly ended: Promise<ContextEnd>;
  readonly threadId: number;
  /** Undefined: Node's own. */
  readonly heapLimitMb: number | undefined;
  #state: 'booting' | 'booted' | 'ended' = 'booting';
  #error: ContextEnd['error'];
  readonly #pool: Piscina;
  readonly #worker: Worker;

  constructor(workerUrl: string, heapLimitMb: number | undefined, onBooted: () => void) {
    this.heapLimitMb = heapLimitMb;
    this.#pool = new Piscina({
      filename: workerUrl,
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
    // The Worker's own events are the truth about the thread; what Piscina makes of them is of no interest.
    this.#pool.on('error', () => {});
    this.#worker.on('error', (thrown: unknown) => {
      // A thread that V8 ended for want of memory has no id any more; one that only throws what looks like that has.
      if (this.#worker.threadId !== -1) delete (thrown as ContextEnd['error'] | null)?.code;
      this.#error ??= thrown as Error;
    });
    this.#worker.once('exit', (code) => {
      this.#state = 'ended';
      resolve({ code, ...(this.#error !== undefined && { error: this.#error }) });
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

  /** Hands the thread its one task; it begins as soon as it has booted. A thread that cannot begin it ends. */
  run(task: ThreadTask): void {
    // A list, whatever Piscina's types make of Node's.
    this.#pool.run(task, { transferList: [task.control] as never }).catch((thrown: Error) => {
      // Rejected as well when the thread ends; of a program that has begun its Worker tells all.
      if (this.#state === 'ended' || Atomics.load(new Int32Array(task.shared), SHARED.begun) === 1) return;
      this.#error ??= thrown;
      this.terminate();
    });
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
  return { maxOldGenerationSizeMb: heapLimitMb, maxYoungGenerationSizeMb: Math.min(young, YOUNG_GENERATION_MB) };
}
