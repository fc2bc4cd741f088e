import { setTimeout as sleep } from 'node:timers/promises';
import { ResourceExhaustedError, UnauthenticatedError, UnavailableError } from '../errors.ts';
import { UnreachableError } from './client-error.ts';

/** Between two attempts to reach a daemon that does not answer, in ms. */
const RETRY_MS = 250;
/** The same where it has not for so long: many may wait, for hours. */
const LATE_RETRY_MS = 1_000;
const LATE_MS = 10_000;

/** How long a daemon may be away. */
export interface Patience {
  /** In ms, from the first call that it did not answer, or the break of the last connection. Default: for ever. */
  limitMs?: number | (() => number) | undefined;
  /** Ends the waiting, with the error there was last. */
  signal?: AbortSignal | undefined;
  /** Waits as well while the daemon is there and lacks what the call needs: for one that asks for nothing to be begun. */
  ofShortage?: boolean | undefined;
}

/**
 * The connection is gone, or the daemon is, or it does not let this client in as things stand; what was asked for may have
 * happened all the same.
 */
export function isLost(error: unknown): boolean {
  return error instanceof UnavailableError || error instanceof UnauthenticatedError;
}

/** Calls again until the daemon has answered; rejects with what it answered, or when patience ends. */
export async function retry<T>(call: () => Promise<T>, patience: Patience = {}): Promise<T> {
  for await (const answer of reconnecting(async function* () {
    yield await call();
  }, patience)) {
    return answer;
  }
  throw new UnavailableError('the daemon gave no answer');
}

/** What a stream brings, opened again whenever the connection is lost; ends where the stream ends by itself. */
export async function* reconnecting<T>(
  open: () => AsyncIterable<T>,
  { limitMs = Number.POSITIVE_INFINITY, signal, ofShortage = false }: Patience = {},
): AsyncGenerator<T> {
  let lostAtMs: number | undefined;
  for (;;) {
    const openedAtMs = performance.now();
    try {
      for await (const item of open()) {
        lostAtMs = undefined;
        yield item;
      }
      return;
    } catch (error) {
      const nowMs = performance.now();
      // A call that nothing came of, and that broke after a while, had a daemon till then.
      const wasHeld = error instanceof UnreachableError && !error.isUnsent && nowMs - openedAtMs > RETRY_MS;
      lostAtMs = wasHeld ? nowMs : (lostAtMs ?? nowMs);
      const limit = typeof limitMs === 'function' ? limitMs() : limitMs;
      const isShort = ofShortage && error instanceof ResourceExhaustedError;
      if (!(isShort || isLost(error)) || signal?.aborted || nowMs - lostAtMs >= limit) throw error;
      const retryMs = nowMs - lostAtMs < LATE_MS ? RETRY_MS : LATE_RETRY_MS;
      const pauseMs = isShort ? error.retryAfterMs : retryMs;
      await sleep(pauseMs, undefined, { signal }).catch(() => {});
    }
  }
}
