import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { FinishedEntry } from '../journal/entries.ts';
import type { Journal } from '../journal/journal.ts';
import { MOST_SEALED_BYTES } from '../output/sealed-output.ts';

/** How long small output stays in its files, in ms: what is asked right after the end needs no look into the journal. */
const SEAL_AFTER_MS = 1_000;
/** How many go into the journal at once: whatever else it is to write waits for them, some ms. */
const BATCH = 32;

/**
 * Takes the small output of finished executions from its files into the journal: a few bytes in three files take three
 * blocks of the disk. What cannot be taken now stays in its files, and is tried again.
 */
export class OutputSealer {
  readonly #journal: Pick<Journal, 'seal'>;
  readonly #outputDirectory: string;
  readonly #onSealed: (entry: FinishedEntry) => void;
  #waiting = new Set<FinishedEntry>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** `outputDirectory`: `daemon/output/` of the state directory. `onSealed` hears of each whose files may be gone. */
  constructor(journal: Pick<Journal, 'seal'>, outputDirectory: string, onSealed: (entry: FinishedEntry) => void) {
    this.#journal = journal;
    this.#outputDirectory = outputDirectory;
    this.#onSealed = onSealed;
  }

  /** An execution has exited, and that is journaled. */
  add(entry: FinishedEntry): void {
    if (this.#closed) return;
    this.#waiting.add(entry);
    this.#timer ??= setTimeout(() => void this.#seal(), SEAL_AFTER_MS).unref();
  }

  /** Of what an older daemon has left, what still has files, which it returns: sealed they may be, and only not removed yet. */
  async addLeft(finished: readonly FinishedEntry[]): Promise<FinishedEntry[]> {
    const executionKeys = new Set<string>();
    for (const session of await readdir(this.#outputDirectory, { withFileTypes: true })) {
      if (!session.isDirectory()) continue;
      // One that is of no use is removed at the same time.
      const names = await readdir(join(this.#outputDirectory, session.name)).catch(() => []);
      for (const name of names) executionKeys.add(name);
    }
    const left = finished.filter(({ executionKey }) => executionKeys.has(executionKey));
    for (const entry of left) this.add(entry);
    return left;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #seal(): Promise<void> {
    const due = [...this.#waiting].filter((entry) => entry.outputBytes <= MOST_SEALED_BYTES);
    this.#waiting.clear();
    while (due.length > 0 && !this.#closed) {
      const batch = due.slice(0, BATCH);
      const places = batch.map(({ number, sessionKey, executionKey }) => ({
        number,
        directory: join(this.#outputDirectory, sessionKey, executionKey),
      }));
      try {
        await this.#journal.seal(places);
      } catch {
        // No room now, or no journal: the daemon says so by itself.
        break;
      }
      due.splice(0, BATCH);
      for (const entry of batch) this.#onSealed(entry);
    }
    this.#timer = undefined;
    for (const entry of [...due, ...this.#waiting]) this.add(entry);
  }
}
