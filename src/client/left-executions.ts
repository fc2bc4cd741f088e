import { AWAY_MS, abandon } from './abandon.ts';
import type { DaemonClient } from './client.ts';
import { retry } from './reconnect.ts';

/** What a process before this one has left running. */
export class LeftExecutions {
  /** By session; asked once, however many executions are recovered and started in it. */
  readonly #running = new Map<string, Promise<string[]>>();

  /** Ends by force those that nobody can follow any more, as soon as the daemon answers; resolves when they are gone. */
  async end(client: DaemonClient, sessionId: string, isNobodys: (id: string) => boolean): Promise<void> {
    const running = this.#running.get(sessionId) ?? runningIn(client, sessionId);
    this.#running.set(sessionId, running);
    const end = async (id: string) => {
      await abandon(client, sessionId, id);
      await client.wait(sessionId, id);
    };
    await Promise.allSettled((await running).filter(isNobodys).map(end));
  }
}

async function runningIn(client: DaemonClient, sessionId: string): Promise<string[]> {
  const list = () => Array.fromAsync(client.listExecutions(sessionId));
  const all = await retry(list, { limitMs: AWAY_MS }).catch(() => []);
  return all.filter(({ state }) => state !== 'exited').map(({ executionId }) => executionId);
}
