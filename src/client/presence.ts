import { setTimeout as sleep } from 'node:timers/promises';
import type { DaemonClient } from './client.ts';

/** How long after an answer, or none, the daemon is looked for again, in ms. */
const PRESENT_PERIOD_MS = 30_000;
const ABSENT_PERIOD_MS = 250;
/** The longest distance of two metrics: a call that stays open, and breaks with its connection. */
const HELD_INTERVAL_MS = 3_600_000;

/**
 * What `look` finds, at once, again as soon as the daemon goes or comes, and each 30 s. `present` says whether a daemon is
 * there whose going is to be noticed: `look` gives the session that a call is held open for.
 */
export async function* presence<T extends { present: string | undefined }>(
  client: () => DaemonClient,
  look: () => Promise<T>,
  signal: AbortSignal,
): AsyncGenerator<T> {
  while (!signal.aborted) {
    const found = await look();
    yield found;
    if (found.present === undefined) await sleep(ABSENT_PERIOD_MS, undefined, { signal }).catch(() => {});
    else await untilGone(client(), found.present, AbortSignal.any([signal, AbortSignal.timeout(PRESENT_PERIOD_MS)]));
  }
}

async function untilGone(client: DaemonClient, sessionId: string, signal: AbortSignal): Promise<void> {
  try {
    const held = { sessionId, intervalMs: HELD_INTERVAL_MS, patienceMs: 0, signal };
    for await (const _ of client.watchExecutionMetrics(held));
  } catch {
    // Why is found by the next look.
  }
}
