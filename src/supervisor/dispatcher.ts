/** A session none of whose starts has begun to run for so long, in ms, is stalled: they may be held up, and use no processor. */
const STALLED_MS = 500;

/** A queue that wants places: a session. */
export interface Waiting {
  /** Its share of the places when several want them. */
  readonly weight: number;
  /** Starts the next execution of the queue; false when there was none, or none that may start now. */
  dispatchNext(): boolean;
}

/** What is starting of one session. */
interface Starts {
  count: number;
  stalled: boolean;
  watch: NodeJS.Timeout;
}

/**
 * Gives out the node's places for executions, by weight to every session that has one waiting: next is the one that has
 * had least for its weight, and one that comes new is never behind (start-time fair queueing, Goyal et al. 1996). Two
 * limits: how many run, and how many of them are starting at one time (a start is mostly CPU: a thousand at once would
 * all be late).
 *
 * Starts that are held up, in a stopped cell, say, would take these places from all other sessions; others only wait for a
 * processor, and the more there were beside them, the longer all would wait. The two look alike. So while a session is
 * stalled there is one place more every {@link STALLED_MS}, up to twice as many, and no more than stalled ones take. It gets
 * half of them at most, and after everybody else.
 */
export class Dispatcher {
  readonly #maxActive: number;
  readonly #maxStarting: number;
  /** What each session that may have one waiting has had, over its weight. */
  readonly #ring = new Map<Waiting, number>();
  /** The figure of the session that was served last: never less than that of any before it. */
  #now = 0;
  #active = 0;
  /** Of sessions that have any. */
  readonly #starts = new Map<Waiting, Starts>();
  #starting = 0;
  /** Places for starting beyond the usual ones. */
  #more = 0;
  #growth: NodeJS.Timeout | undefined;
  #pumping = false;

  constructor(options: { maxActive: number; maxStarting: number }) {
    this.#maxActive = options.maxActive;
    this.#maxStarting = options.maxStarting;
  }

  get active(): number {
    return this.#active;
  }

  /** This session has an execution waiting. */
  offer(waiting: Waiting): void {
    if (!this.#ring.has(waiting)) this.#ring.set(waiting, this.#now);
    this.#pump();
  }

  /** An execution of this session has its place since an older daemon's time. */
  resumed(waiting: Waiting): void {
    this.#take(waiting);
  }

  /** An execution that was dispatched has started, or ended without: then `begun` is false. */
  started(waiting: Waiting, begun: boolean): void {
    this.#leave(waiting);
    const starts = this.#starts.get(waiting);
    if (begun && starts !== undefined) {
      starts.stalled = false;
      starts.watch.refresh();
    }
    this.#more = Math.min(this.#more, this.#stalled);
    this.#pump();
  }

  /** An execution that was dispatched is gone. */
  exited(): void {
    this.#active -= 1;
    this.#pump();
  }

  /** How many are starting of sessions that are stalled. */
  get #stalled(): number {
    let count = 0;
    for (const starts of this.#starts.values()) if (starts.stalled) count += starts.count;
    return count;
  }

  #pump(): void {
    // dispatchNext may end an execution at once, and so come back here.
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#active < this.#maxActive) {
        const waiting = this.#next();
        if (waiting === undefined) break;
        // One that could not be served for long has no claim to what it did not get.
        this.#now = Math.max(this.#now, this.#ring.get(waiting) as number);
        // Out while it is served: a dispatch that throws must not be tried for ever.
        this.#ring.delete(waiting);
        if (this.#give(waiting)) this.#ring.set(waiting, this.#now + 1 / waiting.weight);
      }
    } finally {
      this.#pumping = false;
    }
  }

  #next(): Waiting | undefined {
    const free = this.#maxStarting + this.#more - this.#starting;
    return (free > 0 ? this.#least(false) : undefined) ?? (free > this.#more / 2 ? this.#least(true) : undefined);
  }

  /** The session, of those that are stalled or of the others, that has had least. */
  #least(stalled: boolean): Waiting | undefined {
    let least: [Waiting | undefined, number] = [undefined, Number.POSITIVE_INFINITY];
    for (const entry of this.#ring) {
      if ((this.#starts.get(entry[0])?.stalled ?? false) === stalled && entry[1] < least[1]) least = entry;
    }
    return least[0];
  }

  /** Gives a place to one execution; false, and no place given, when none waited or the dispatch failed. */
  #give(waiting: Waiting): boolean {
    this.#take(waiting);
    let given = false;
    try {
      given = waiting.dispatchNext();
    } finally {
      if (!given) {
        this.#active -= 1;
        this.#leave(waiting);
      }
    }
    return given;
  }

  #take(waiting: Waiting): void {
    this.#active += 1;
    this.#starting += 1;
    const starts = this.#starts.get(waiting);
    if (starts !== undefined) {
      starts.count += 1;
      return;
    }
    const watch = setTimeout(() => this.#stall(waiting), STALLED_MS).unref();
    this.#starts.set(waiting, { count: 1, stalled: false, watch });
  }

  #leave(waiting: Waiting): void {
    const starts = this.#starts.get(waiting);
    if (starts === undefined) return;
    this.#starting -= 1;
    starts.count -= 1;
    if (starts.count > 0) return;
    clearTimeout(starts.watch);
    this.#starts.delete(waiting);
  }

  #stall(waiting: Waiting): void {
    const starts = this.#starts.get(waiting);
    if (starts === undefined) return;
    starts.stalled = true;
    if (this.#growth === undefined) this.#grow();
  }

  /** As long as a session is stalled. */
  #grow(): void {
    const stalled = this.#stalled;
    const isFull = this.#starting >= this.#maxStarting + this.#more;
    if (isFull && this.#more < Math.min(stalled, this.#maxStarting)) this.#more += 1;
    this.#growth = stalled > 0 ? setTimeout(() => this.#grow(), STALLED_MS).unref() : undefined;
    this.#pump();
  }
}
