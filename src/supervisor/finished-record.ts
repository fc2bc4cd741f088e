import type { FinishedExecution } from '../journal/entries.ts';
import { type ExecutionSnapshot, requireSameRequest, type StatusEvent, snapshotOf } from './execution-record.ts';

/** A finished execution as the journal has it: answers like an `ExecutionRecord` that has exited. */
export class FinishedRecord {
  readonly state = 'exited';
  readonly measure = undefined;
  readonly write = undefined;
  readonly #execution: FinishedExecution;

  constructor(execution: FinishedExecution) {
    this.#execution = execution;
  }

  get sessionId(): string {
    return this.#execution.sessionId;
  }

  get executionId(): string {
    return this.#execution.executionId;
  }

  get stdin(): boolean {
    return this.#execution.stdin;
  }

  get snapshot(): ExecutionSnapshot {
    const { events } = this.#execution;
    return snapshotOf(this.#execution, events, events.at(-1)?.startedAtMs, 0);
  }

  requireSame(fingerprint: string): void {
    requireSameRequest(this.#execution, fingerprint);
  }

  async *watch(fromSequence: number, signal: AbortSignal): AsyncGenerator<StatusEvent> {
    for (const { sequence, atMs, state, rung, result, warning } of this.#execution.events) {
      if (signal.aborted) return;
      if (sequence >= fromSequence) yield { sequence, atMs, state, rung, result, warning };
    }
  }

  async exited(_signal: AbortSignal): Promise<boolean> {
    return true;
  }
}
