import { setTimeout as wait } from 'node:timers/promises';
import { NotFoundError } from '../errors.ts';
import { AWAY_MS, abandon, forget } from './abandon.ts';
import type { DaemonClient } from './client.ts';
import { retry } from './reconnect.ts';

/** How long after a daemon could not say what is left it is asked again, in ms. */
const PAUSE_MS = 1_000;

interface Left {
  id: string;
  isRunning: boolean;
}

/** What a process before this one has left in the daemon. */
export class LeftExecutions {
  /** By session; asked once, however many executions are recovered and started in it. */
  readonly #left = new Map<string, Promise<Left[]>>();

  /**
   * Ends by force those that nobody can follow any more, as soon as the daemon answers; resolves when they are gone. Where
   * the daemon cannot say what is left, nothing is ended.
   */
  async end(client: DaemonClient, sessionId: string, isNobodys: (id: string) => boolean): Promise<void> {
    const end = async ({ id }: Left) => {
      await abandon(client, sessionId, id);
      await client.wait(sessionId, id);
    };
    const left = (await this.#leftIn(client, sessionId)) ?? [];
    await Promise.allSettled(left.filter(({ id, isRunning }) => isRunning && isNobodys(id)).map(end));
  }

  /**
   * The same, and the daemon keeps nothing of them; nor of those that have ended. Where it cannot say what is left it is
   * asked again, for a day.
   */
  async forget(client: DaemonClient, sessionId: string, isNobodys: (id: string) => boolean): Promise<void> {
    const end = async ({ id, isRunning }: Left) => {
      if (isRunning) await abandon(client, sessionId, id);
      await forget(client, sessionId, id);
    };
    const endMs = performance.now() + AWAY_MS;
    let left = await this.#leftIn(client, sessionId);
    while (left === undefined && performance.now() < endMs) {
      await wait(PAUSE_MS, undefined, { ref: false });
      left = await this.#leftIn(client, sessionId);
    }
    await Promise.allSettled((left ?? []).filter(({ id }) => isNobodys(id)).map(end));
  }

  /** Undefined where the daemon could not say. */
  #leftIn(client: DaemonClient, sessionId: string): Promise<Left[] | undefined> {
    const left = this.#left.get(sessionId) ?? leftIn(client, sessionId);
    this.#left.set(sessionId, left);
    return left.catch(() => {
      this.#left.delete(sessionId);
      return undefined;
    });
  }
}

async function leftIn(client: DaemonClient, sessionId: string): Promise<Left[]> {
  const list = () => Array.fromAsync(client.listExecutions(sessionId));
  const all = await retry(list, { limitMs: AWAY_MS }).catch((error) => {
    if (error instanceof NotFoundError) return [];
    throw error;
  });
  return all.map(({ executionId, state }) => ({ id: executionId, isRunning: state !== 'exited' }));
}
