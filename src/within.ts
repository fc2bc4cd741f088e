/** Waits at most so long, and resolves with whether that was long enough. Rejects as `promise` does. Keeps no process alive. */
export async function within(limitMs: number, promise: Promise<unknown>): Promise<boolean> {
  const limit = Promise.withResolvers<boolean>();
  const timer = setTimeout(limit.resolve, limitMs, false).unref();
  return Promise.race([promise.then(() => true), limit.promise]).finally(() => clearTimeout(timer));
}
