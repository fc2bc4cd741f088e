/** Nothing takes so long but what is broken, in ms. */
const ENOUGH_MS = 6_000;

/**
 * Where a limit may pass before a guest is there to hear of it: tries with four times as long each time until it was. Resolves
 * with what came of the last try.
 */
export async function inTime<T>(
  firstMs: number,
  attempt: (ms: number) => Promise<T>,
  was: (found: T) => boolean,
): Promise<T> {
  for (let ms = firstMs; ; ms *= 4) {
    const found = await attempt(ms);
    if (was(found) || ms > ENOUGH_MS) return found;
  }
}

/**
 * Where something is to be soon, and a machine may stand still meanwhile: the least that it took in some tries, up to the
 * first that took less than `limit`. What is never soon takes longer each time.
 */
export async function soonest(limit: number, tries: number, attempt: () => Promise<number>): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let count = 0; count < tries && !(least < limit); count += 1) least = Math.min(least, await attempt());
  return least;
}
