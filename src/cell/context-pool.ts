import { availableParallelism } from 'node:os';

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

/** What {@link ContextPool} needs to know. */
export interface ContextPoolOptions {
  /** Heap limit of each context in MB, unless others are asked for. Default: Node's. */
  heapLimitMb?: number | undefined;
  /** After this long without a start, spares are let go. Default 30 s. */
  idleMs?: number;
  /** How long after a start its replacement boots, in ms: what boots takes a core, and a short program ends sooner. Default 5. */
  refillDelayMs?: number;
}

/** Where one execution can run: a thread or a process that was booted ahead for it. */
export interface PooledContext {
  readonly state: 'booting' | 'booted' | 'ended';
  /** Of its heap, in MB; undefined: Node's own. */
  readonly heapLimitMb: number | undefined;
  /** Resolves when it is gone. */
  readonly ended: Promise<unknown>;
  /** Ends it by force. */
  terminate(): void;
}

/** Makes a context, and calls `onBooted` when it has booted. May throw. */
export type Boot<C extends PooledContext> = (heapLimitMb: number | undefined, onBooted: () => void) => C;

/** Contexts booted ahead, each for one execution. */
export class ContextPool<C extends PooledContext> {
  readonly #options: ContextPoolOptions;
  readonly #makeContext: Boot<C>;
  readonly #spares = new Set<C>();
  readonly #live = new Set<C>();
  /** Heap limits of the newest starts, the newest first. */
  readonly #asked: (number | undefined)[] = [];
  #ceiling = 0;
  #wanted = 0;
  #taken = 0;
  #failedBoots = 0;
  #closed = false;
  #idleTimer: NodeJS.Timeout | undefined;

  constructor(options: ContextPoolOptions, boot: Boot<C>) {
    this.#options = options;
    this.#makeContext = boot;
  }

  /** Contexts booted or booting that no execution has. */
  get spareCount(): number {
    return this.#spares.size;
  }

  /** Spares that have booted. */
  get bootedCount(): number {
    return [...this.#spares].filter(({ state }) => state === 'booted').length;
  }

  /** Contexts that have booted, spares included. */
  get readyCount(): number {
    return [...this.#live].filter(({ state }) => state === 'booted').length;
  }

  /** Contexts alive, spares included. */
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

  /**
   * A context for one execution: a booted spare with its heap limit, in MB, else one that boots already, else a new one.
   * Throws when that cannot be made.
   */
  take(heapLimitMb = this.#options.heapLimitMb): C {
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
    setTimeout(() => this.#adjust(), this.#options.refillDelayMs ?? REFILL_DELAY_MS).unref();
    return context;
  }

  /** Ends all contexts by force; resolves when they are gone. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    for (const context of this.#live) context.terminate();
    await Promise.all([...this.#live].map(({ ended }) => ended));
  }

  #boot(heapLimitMb: number | undefined): C {
    let booted = false;
    const context = this.#makeContext(heapLimitMb, () => {
      booted = true;
      this.#failedBoots = 0;
      this.#adjust();
    });
    this.#live.add(context);
    context.ended.then(() => {
      this.#live.delete(context);
      // Still a spare: it failed by itself, for one that is let go is no spare any more.
      const failed = this.#spares.delete(context);
      if (failed) this.#failedBoots += 1;
      // Others may have waited for the turn of one that was ended while it booted. The end of an execution changes nothing, and
      // whoever hears of it need not wait until a spare is made.
      if (failed || !booted) this.#adjust();
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
      try {
        this.#spares.add(this.#boot(heapLimitMb));
        booting += 1;
      } catch {
        // Whoever asks for one is told.
        this.#failedBoots += 1;
      }
    }
  }

  /** The heap limits that the next starts are likely to ask for: those of the newest ones, where they come again. */
  #nextLimits(count: number): (number | undefined)[] {
    const usual = this.#asked.filter(
      (limit, at) => this.#asked.indexOf(limit) !== at || this.#asked.indexOf(limit, at + 1) !== -1,
    );
    const limits = usual.slice(0, count);
    while (limits.length < count) limits.push(usual.length > 0 ? usual[0] : this.#options.heapLimitMb);
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
