import { UnavailableError } from '../errors.ts';

/**
 * Waits at most so long for the daemon to take something, and resolves with that. Where it has not answered by then, as one
 * that is stopped, rejects with an `UnavailableError` and aborts the signal of `take`: nothing new is to be tried, the next
 * daemon would take it. What is under way may be taken all the same; then `late` is called.
 */
export async function takenWithin<T>(
  limitMs: number,
  take: (signal: AbortSignal) => Promise<T>,
  late: () => void,
): Promise<T> {
  const over = new AbortController();
  const limit = Promise.withResolvers<never>();
  const taken = take(over.signal);
  const timer = setTimeout(() => {
    limit.reject(new UnavailableError('the daemon does not answer'));
    over.abort();
    taken.then(late, () => {});
  }, limitMs);
  return Promise.race([taken, limit.promise]).finally(() => clearTimeout(timer));
}
