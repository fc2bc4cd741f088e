import { InvalidArgumentError } from '../errors.ts';
import type { DaemonClient } from './client.ts';
import { type Patience, retry } from './reconnect.ts';

/**
 * Begins the ladder, with SIGTERM where the signal cannot be sent: then it resolves with a text that says so. A grace period
 * of 0 forces. Rejects when the daemon is away for longer than patience lasts.
 */
export async function stopGuest(
  client: DaemonClient,
  { sessionId, executionId }: { sessionId: string; executionId: string },
  { signal, graceMs }: { signal: string; graceMs: number },
  patience: Patience,
): Promise<string | undefined> {
  const stop = (name: string) =>
    retry(() => client.cancelExecution(sessionId, executionId, { signal: name, graceMs }), patience);
  try {
    await stop(graceMs === 0 ? 'SIGKILL' : signal);
    return undefined;
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    await stop('SIGTERM');
    return `${error.message}; SIGTERM is sent instead`;
  }
}
