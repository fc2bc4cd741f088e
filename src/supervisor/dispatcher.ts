/** When all that may start at one time do, and none has for so long, in ms, they are held up, and use no processor. */
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
 * all be late). Those that are held up lose their places for starting to a new round of others.
 */
export class Dispatcher {
  readonly #maxActive: number;
  readonly #maxStarting: number;
  /** What each session that may have one waiting has had, over its weight. */
  readonly #ring = new Map<Waiting, number>();
  /** The figure of the session that was served last: never less than that of any before it. */
  #now = 0;
  #active = 0;
  /** Of this round. */
  #starting = 0;
  #round = 0;
  #stalled: NodeJS.Timeout | undefined;
  #pumping = false;

  constructor(options: { maxActive: number; maxStarting: number }) {
    this.#maxActive = options.maxActive;
    this.#maxStarting = options.maxStarting;
  }

  get active(): number {
    return this.#active;
  }

  /** Of those that are dispatched now. */
  get round(): number {
    return this.#round;
  }

  /** This session has an execution waiting. */
  offer(waiting: Waiting): void {
    if (!this.#ring.has(waiting)) this.#ring.set(waiting, this.#now);
    this.#pump();
  }

  /** An execution has its place since an older daemon's time. */
  resumed(): void {
    this.#active += 1;
    this.#starting += 1;
  }

  /** An execution that was dispatched in this round has started, or ended without starting. */
  started(round: number): void {
    if (round !== this.#round) return;
    this.#starting -= 1;
    clearTimeout(this.#stalled);
    this.#stalled = undefined;
    this.#pump();
  }

  /** An execution that was dispatched is gone. */
  exited(): void {
    this.#active -= 1;
    this.#pump();
  }

  #pump(): void {
    // dispatchNext may end an execution at once, and so come back here.
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#active < this.#maxActive && this.#starting < this.#maxStarting) {
        const next = this.#next();
        if (next === undefined) break;
        const [waiting, served] = next;
        this.#now = served;
        // Out while it is served: a dispatch that throws must not be tried for ever.
        this.#ring.delete(waiting);
        if (!this.#give(waiting)) continue;
        this.#ring.set(waiting, served + 1 / waiting.weight);
      }
      if (this.#starting >= this.#maxStarting)
        this.#stalled ??= setTimeout(() => this.#nextRound(), STALLED_MS).unref();
    } finally {
      this.#pumping = false;
    }
  }

  #nextRound(): void {
    this.#stalled = undefined;
    this.#round += 1;
    this.#starting = 0;
    this.#pump();
  }

  #next(): [Waiting, served: number] | undefined {
    let next: [Waiting, number] | undefined;
    for (const entry of this.#ring) if (next === undefined || entry[1] < next[1]) next = entry;
    return next;
  }

  /** Gives a place to one execution; false, and no place given, when none waited or the dispatch failed. */
  #give(waiting: Waiting): boolean {
    this.#active += 1;
    this.#starting += 1;
    let given = false;
    try {
      given = waiting.dispatchNext();
    } finally {
      if (!given) {
        this.#active -= 1;
        this.#starting -= 1;
      }
    }
    return given;
  }
}
