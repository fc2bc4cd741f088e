/**
 * How long a start of so much code may hold up a cell, in ms for each MiB. TypeScript of that takes some 300 ms of a
 * processor, which the cell may have to share.
 */
const HOLD_UP_MS_PER_MIB = 5_000;
const MIB = 2 ** 20;

/** The starts that a cell was sent and has not answered. Until then it may be busy: the larger the code, the longer. */
export class StartsUnderWay {
  readonly #executionKeys = new Set<string>();
  #untilMs = 0;

  sent(executionKey: string, code: string): void {
    this.#executionKeys.add(executionKey);
    this.#untilMs = Math.max(this.#untilMs, performance.now()) + (code.length / MIB) * HOLD_UP_MS_PER_MIB;
  }

  answered(executionKey: string): void {
    this.#executionKeys.delete(executionKey);
    if (this.#executionKeys.size === 0) this.#untilMs = 0;
  }

  /** Whether they may be what keeps the cell from answering anything else. */
  get mayHoldUp(): boolean {
    return performance.now() < this.#untilMs;
  }
}
