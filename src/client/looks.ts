import { NotFoundError } from '../errors.ts';
import type { DaemonClient } from './client.ts';
import { retry } from './reconnect.ts';

/** Looks at what a daemon has, one after the other: where it does not answer, only the first of them waits for it. */
export class Looks {
  #isSilent = false;

  /**
   * What a look finds; undefined where the daemon does not say. From then on it is undefined at once, without a look, until
   * the daemon has answered again. Rejects with a `NotFoundError` only.
   */
  async at<T>(client: DaemonClient, look: () => Promise<T>): Promise<T | undefined> {
    if (this.#isSilent) return undefined;
    try {
      return await look();
    } catch (error) {
      if (error instanceof NotFoundError) throw error;
      this.#isSilent = true;
      const heard = () => {
        this.#isSilent = false;
      };
      retry(() => client.health()).then(heard, heard);
      return undefined;
    }
  }
}
