import type { ExecutionRecord } from './execution-record.ts';
import { sizeOf } from './requests.ts';

/**
 * Executions that wait for a place, in the order in which they are to have one: those that asked to go ahead, then the
 * others, each the oldest first; with the size of their requests. Maps, so that one that is cancelled leaves from anywhere
 * at no cost.
 */
export class WaitingExecutions {
  readonly #ahead = new Map<ExecutionRecord, number>();
  readonly #others = new Map<ExecutionRecord, number>();
  #bytes = 0;

  get size(): number {
    return this.#ahead.size + this.#others.size;
  }

  /** How much their requests take. */
  get bytes(): number {
    return this.#bytes;
  }

  add(record: ExecutionRecord): void {
    const { request } = record;
    const bytes = request === undefined ? 0 : sizeOf(request);
    (request?.ahead ? this.#ahead : this.#others).set(record, bytes);
    this.#bytes += bytes;
  }

  delete(record: ExecutionRecord): void {
    this.#bytes -= this.#ahead.get(record) ?? this.#others.get(record) ?? 0;
    this.#ahead.delete(record);
    this.#others.delete(record);
  }

  clear(): void {
    this.#ahead.clear();
    this.#others.clear();
    this.#bytes = 0;
  }

  *[Symbol.iterator](): Generator<ExecutionRecord> {
    yield* this.#ahead.keys();
    yield* this.#others.keys();
  }
}
