import { setTimeout as sleep } from 'node:timers/promises';
import { UnavailableError } from '../errors.ts';
import type { StatusEvent } from '../supervisor/execution-record.ts';
import type { DaemonClient } from './client.ts';
import { ClientError } from './client-error.ts';

/** Between two attempts to reach a daemon that does not answer, in ms. */
const RETRY_MS = 250;

/** How long a daemon may be away. */
export interface Patience {
  /** In ms, from the first call that it did not answer. Default: for ever. */
  limitMs?: number | (() => number) | undefined;
  /** Ends the waiting, with the error there was last. */
  signal?: AbortSignal | undefined;
}

/** The connection is gone, or the daemon is; what was asked for may have happened all the same. */
export function isLost(error: unknown): boolean {
  return error instanceof UnavailableError || (error instanceof ClientError && error.code === 'cancelled');
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
  { limitMs = Number.POSITIVE_INFINITY, signal }: Patience = {},
): AsyncGenerator<T> {
  let lostAtMs: number | undefined;
  for (;;) {
    try {
      for await (const item of open()) {
        lostAtMs = undefined;
        yield item;
      }
      return;
    } catch (error) {
      lostAtMs ??= performance.now();
      const limit = typeof limitMs === 'function' ? limitMs() : limitMs;
      if (!isLost(error) || signal?.aborted || performance.now() - lostAtMs >= limit) throw error;
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
}

/** Every status event of an execution until its last, each once, across lost connections and restarts of the daemon. */
export async function* followExecution(
  client: DaemonClient,
  sessionId: string,
  executionId: string,
  patience: Patience = {},
): AsyncGenerator<StatusEvent> {
  let last: StatusEvent | undefined;
  const open = async function* () {
    // The newest event known is read again: that it comes says that there is a connection.
    const options = { fromSequence: last?.sequence ?? 1, signal: patience.signal };
    yield* client.watchExecution(sessionId, executionId, options);
    if (last?.state !== 'exited') throw new UnavailableError('the daemon ended the watch');
  };
  for await (const event of reconnecting(open, patience)) {
    if (last !== undefined && event.sequence <= last.sequence) continue;
    last = event;
    yield event;
  }
}
