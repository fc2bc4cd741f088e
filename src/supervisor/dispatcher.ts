/** When none of a session's starts has come to its end for so long, in ms, they may be held up, and use no processor. */
const STALLED_MS = 500;

/** A queue that wants places: a session. */
export interface Waiting {
  /** Its share of the places when several want them. */
  readonly weight: number;
  /** Starts the next execution of the queue; false when there was none, or none that may start now. */
  dispatchNext(): boolean;
}

/**
 * Gives out the node's places for executions, by weight to every session that has one waiting: next is the one that has
 * had least for its weight, and one that comes new is never behind (start-time fair queueing, Goyal et al. 1996). Two
 * limits: how many run, and how many of them are starting at one time (a start is mostly CPU: a thousand at once would
 * all be late). A session whose starts are held up, by a stopped cell, say, takes no place of others meanwhile, and itself
 * may try one more at a time: should they only wait for a processor, many more would have them all wait longer still.
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

  /** An execution that was dispatched has started, or ended without starting. */
  started(waiting: Waiting): void {
    this.#leave(waiting);
    const starts = this.#starts.get(waiting);
    if (starts !== undefined) Object.assign(starts, { passedBy: 0, most: Number.POSITIVE_INFINITY });
    starts?.watch.refresh();
    this.#pump();
  }

  /** An execution that was dispatched is gone. */
  exited(): void {
    this.#active -= 1;
    this.#pump();
  }

  /** Whether as many are starting as may, those apart that are passed by. */
  get #isFull(): boolean {
    let counted = 0;
    for (const { count, passedBy } of this.#starts.values()) counted += count - passedBy;
    return counted >= this.#maxStarting;
  }

  #pump(): void {
    // dispatchNext may end an execution at once, and so come back here.
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#active < this.#maxActive && !this.#isFull) {
        const next = this.#next();
        if (next === undefined) break;
        const [waiting, served] = next;
        this.#now = served;
        // Out while it is served: a dispatch that throws must not be tried for ever.
        this.#ring.delete(waiting);
        if (!this.#give(waiting)) continue;
        this.#ring.set(waiting, served + 1 / waiting.weight);
      }
    } finally {
      this.#pumping = false;
    }
  }

  #next(): [Waiting, served: number] | undefined {
    let next: [Waiting, number] | undefined;
    for (const entry of this.#ring) {
      const { count = 0, most = 1 } = this.#starts.get(entry[0]) ?? {};
      if (count < most && (next === undefined || entry[1] < next[1])) next = entry;
    }
    return next;
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
    const starts = this.#starts.get(waiting);
    if (starts !== undefined) {
      starts.count += 1;
      return;
    }
    const watch = setTimeout(() => this.#passBy(waiting), STALLED_MS).unref();
    this.#starts.set(waiting, { count: 1, passedBy: 0, most: Number.POSITIVE_INFINITY, watch });
  }

  #leave(waiting: Waiting): void {
    const starts = this.#starts.get(waiting);
    if (starts === undefined) return;
    starts.count -= 1;
    starts.passedBy = Math.min(starts.passedBy, starts.count);
    if (starts.count > 0) return;
    clearTimeout(starts.watch);
    this.#starts.delete(waiting);
  }

  /** None of these starts has come to its end for a while: where somebody may want their places, they lose them. */
  #passBy(waiting: Waiting): void {
    const starts = this.#starts.get(waiting);
    if (starts === undefined) return;
    starts.watch.refresh();
    if (!this.#isFull && starts.passedBy === 0) return;
    starts.passedBy = starts.count;
    starts.most = starts.count + 1;
    this.#pump();
  }
}

/** What is starting of one session. */
interface Starts {
  count: number;
  /** So many of them take no place of others. */
  passedBy: number;
  /** So many there may be. */
  most: number;
  /** Runs when none of them has come to its end for long. */
  watch: NodeJS.Timeout;
}
