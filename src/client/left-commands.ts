import { AWAY_MS, abandon } from './abandon.ts';
import type { DaemonClient } from './client.ts';
import { isCommandOfAnother } from './command.ts';
import { retry } from './reconnect.ts';

/** What a process before this one has left beside executions: nobody can follow these commands any more. */
export class LeftCommands {
  /** By session; asked once, however many executions are recovered in it. */
  readonly #running = new Map<string, Promise<string[]>>();

  /** Ends those beside one execution, as soon as the daemon answers. */
  async end(client: DaemonClient, sessionId: string, executionId: string): Promise<void> {
    const running = this.#running.get(sessionId) ?? runningIn(client, sessionId);
    this.#running.set(sessionId, running);
    const left = (await running).filter((id) => isCommandOfAnother(id, executionId));
    for (const id of left) void abandon(client, sessionId, id);
  }
}

async function runningIn(client: DaemonClient, sessionId: string): Promise<string[]> {
  const list = () => Array.fromAsync(client.listExecutions(sessionId));
  const all = await retry(list, { limitMs: AWAY_MS }).catch(() => []);
  return all.filter(({ state }) => state !== 'exited').map(({ executionId }) => executionId);
}
