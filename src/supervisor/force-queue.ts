import { availableParallelism } from 'node:os';

/**
 * How many may be forced at a time for each processor: enough to keep it busy, and few enough that each is gone long before
 * its cell would be killed for it, threads sooner than processes. An end takes some 8 ms of a processor in all. And how long
 * one that does not end keeps its place, in ms.
 */
const KINDS = { thread: { perProcessor: 3, placeMs: 50 }, process: { perProcessor: 16, placeMs: 500 } };

/**
 * Lets guests be forced some at a time, those of each owner in order and the owners by turns. A thousand at once would all
 * end late, and their cells, which compete with them for the processors, would look as if they did not answer.
 */
export class ForceQueue {
  readonly #places: number;
  readonly #placeMs: number;
  readonly #waiting = new Map<object, Set<() => void>>();
  #taken = 0;

  /** For guests that are threads of their cell, or for those that are processes. */
  constructor(kind: keyof typeof KINDS, places = KINDS[kind].perProcessor * availableParallelism()) {
    this.#places = places;
    this.#placeMs = KINDS[kind].placeMs;
  }

  /** Calls `force` once there is a place, now if there is one. Returns what is to be called when the guest is gone. */
  enter(owner: object, force: () => void): () => void {
    let timer: NodeJS.Timeout | undefined;
    const place = () => {
      this.#taken += 1;
      timer = setTimeout(leave, this.#placeMs).unref();
      force();
    };
    const leave = () => {
      this.#waiting.get(owner)?.delete(place);
      if (timer === undefined) return;
      clearTimeout(timer);
      timer = undefined;
      this.#taken -= 1;
      this.#giveNext();
    };
    if (this.#taken < this.#places) place();
    else this.#waitingOf(owner).add(place);
    return leave;
  }

  #waitingOf(owner: object): Set<() => void> {
    const known = this.#waiting.get(owner) ?? new Set();
    this.#waiting.set(owner, known);
    return known;
  }

  #giveNext(): void {
    for (const [owner, places] of this.#waiting) {
      // To the end of the turns, if it has more.
      this.#waiting.delete(owner);
      const [place] = places;
      if (place === undefined) continue;
      places.delete(place);
      if (places.size > 0) this.#waiting.set(owner, places);
      place();
      return;
    }
  }
}
