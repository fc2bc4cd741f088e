import { within } from '../within.ts';
import type { DaemonClient } from './client.ts';

/** How long the daemon is waited for before it is asked whether it is there, and then for its answer, in ms. */
const SILENCE_MS = 3_000;

/**
 * Waits as long as the daemon answers for its health, and resolves with whether that was long enough. Rejects as `promise`
 * does.
 */
export async function whileAnswering(client: DaemonClient, promise: Promise<unknown>): Promise<boolean> {
  while (!(await within(SILENCE_MS, promise))) {
    const answers = client.health({ deadlineMs: SILENCE_MS }).then(
      () => true,
      () => false,
    );
    if (!(await answers)) return false;
  }
  return true;
}
