import type { ExecutionRecord } from './execution-record.ts';

/**
 * Executions that wait for a place, in the order in which they are to have one: those that asked to go ahead, then the
 * others, each the oldest first. Sets, so that one that is cancelled leaves from anywhere at no cost.
 */
export class WaitingExecutions {
  readonly #ahead = new Set<ExecutionRecord>();
  readonly #others = new Set<ExecutionRecord>();

  get size(): number {
    return this.#ahead.size + this.#others.size;
  }

  add(record: ExecutionRecord): void {
    (record.request?.ahead ? this.#ahead : this.#others).add(record);
  }

  delete(record: ExecutionRecord): void {
    this.#ahead.delete(record);
    this.#others.delete(record);
  }

  clear(): void {
    this.#ahead.clear();
    this.#others.clear();
  }

  *[Symbol.iterator](): Generator<ExecutionRecord> {
    yield* this.#ahead;
    yield* this.#others;
  }
}
