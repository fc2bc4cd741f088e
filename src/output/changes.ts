import { watch } from 'node:fs';

/** A change that the system did not report (its watches are used up) is found after this long. */
const LOOK_AGAIN_MS = 250;

/** Resolves each `next` after something in the directory has changed since the last, or may have. */
export class Changes {
  readonly #close: () => void;
  #changed = false;
  #wake = () => {};

  constructor(directory: string) {
    try {
      const watcher = watch(directory, { persistent: false }, () => this.wake());
      watcher.on('error', () => {});
      this.#close = () => watcher.close();
    } catch {
      // Not there yet, or no watches left: the clock below finds the changes.
      this.#close = () => {};
    }
  }

  wake(): void {
    this.#changed = true;
    this.#wake();
  }

  async next(): Promise<void> {
    if (!this.#changed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = setTimeout(resolve, LOOK_AGAIN_MS);
      await promise;
      clearTimeout(timer);
    }
    this.#changed = false;
  }

  close(): void {
    this.#close();
    this.wake();
  }
}
