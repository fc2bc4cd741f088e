/** A queue that wants places: a session. */
export interface Waiting {
  /** Starts the next execution of the queue, and says whether there was one. */
  dispatchNext(): boolean;
}

/**
 * Gives out the node's places for executions, in turn to every session that has one waiting. Two limits: how many run,
 * and how many of them are starting at one time (a start is mostly CPU: a thousand at once would all be late).
 */
export class Dispatcher {
  readonly #maxActive: number;
  readonly #maxStarting: number;
  readonly #ring = new Set<Waiting>();
  #active = 0;
  #starting = 0;
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
    this.#ring.add(waiting);
    this.#pump();
  }

  /** An execution that was dispatched has started, or ended without starting. */
  started(): void {
    this.#starting -= 1;
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
      for (const waiting of this.#ring) {
        if (this.#active >= this.#maxActive || this.#starting >= this.#maxStarting) break;
        this.#ring.delete(waiting);
        if (this.#give(waiting)) this.#ring.add(waiting);
      }
    } finally {
      this.#pumping = false;
    }
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
