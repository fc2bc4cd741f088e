import type { DaemonClient } from './client.ts';
import { retry } from './reconnect.ts';

/** How long a daemon may be away that is to end or to forget what nobody waits for any more, in ms. */
export const AWAY_MS = 24 * 3_600_000;

/** One after the other: a daemon that is away is looked for once, however much it is to end. */
const before = new WeakMap<DaemonClient, Promise<void>>();

/**
 * Ends an execution by force that is nobody's any more, as soon as the daemon lets this client in. Resolves then, or when it
 * has been away for a day.
 */
export function abandon(client: DaemonClient, sessionId: string, executionId: string): Promise<void> {
  const end = () => client.cancelExecution(sessionId, executionId, { signal: 'SIGKILL', graceMs: 0 });
  const ended = (before.get(client) ?? Promise.resolve())
    .then(() => retry(end, { limitMs: AWAY_MS }))
    .then(
      () => {},
      () => {},
    );
  before.set(client, ended);
  return ended;
}

/**
 * Has the daemon keep nothing of an execution once that has exited. Rejects where it is not there, or when the daemon has
 * been away for a day.
 */
export async function forget(client: DaemonClient, sessionId: string, executionId: string): Promise<void> {
  await client.wait(sessionId, executionId, { patienceMs: AWAY_MS });
  await retry(() => client.releaseExecution(sessionId, executionId), { limitMs: AWAY_MS });
}

/** Ends it by force where it runs, and has the daemon keep nothing of it. Resolves then, or when that is not to be had. */
export async function relinquish(client: DaemonClient, sessionId: string, executionId: string): Promise<void> {
  await abandon(client, sessionId, executionId);
  await forget(client, sessionId, executionId).catch(() => {});
}
