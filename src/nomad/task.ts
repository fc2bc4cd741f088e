import type { ExecutionResult } from '../../machines/execution.ts';
import { abandon, type CommandPlace, type DaemonClient } from '../client/index.ts';
import { NotFoundError } from '../errors.ts';
import type { ExitResult, TaskConfig, WaitTaskResponse } from '../gen/nomad/driver.ts';
import { exitOf, troubleOf } from '../plugin/exit.ts';
import { tell } from '../plugin/task-events.ts';
import type { StatusEvent } from '../supervisor/execution-record.ts';

/** What is needed of a task beside what the agent keeps of it; the agent keeps it too, as bytes. */
export interface DriverState {
  version: 1;
  /** Where commands beside the task run. */
  place: Omit<CommandPlace, 'executionId'>;
}

/** One task: an execution of the daemon under the task's id, followed to its end across lost connections. */
export class Task {
  readonly config: TaskConfig;
  readonly state: DriverState;
  /** When guest code began, and when the guest was gone. */
  startedAt: Date | undefined;
  completedAt: Date | undefined;
  result: ExecutionResult | undefined;
  /** Aborts when the driver forgets the task. */
  readonly forgotten = new AbortController();
  /** Resolved when guest code has begun, or never will. */
  readonly settled = Promise.withResolvers<void>();
  /** Resolved when the guest is gone. */
  readonly exited = Promise.withResolvers<WaitTaskResponse>();

  /** `tellFromMs`: earlier events were told by an instance of the driver before. `limitMs`: how long the daemon may be away. */
  constructor(client: DaemonClient, config: TaskConfig, state: DriverState, tellFromMs: number, limitMs: number) {
    this.config = config;
    this.state = state;
    void this.#follow(client, tellFromMs, limitMs);
  }

  async #follow(client: DaemonClient, tellFromMs: number, patienceMs: number): Promise<void> {
    const { config, state, forgotten } = this;
    const { signal } = forgotten;
    try {
      for await (const event of client.watchExecution(state.place.sessionId, config.id, { signal, patienceMs })) {
        this.#observe(event, event.atMs >= tellFromMs || event.state === 'exited');
      }
    } catch (error) {
      // Nobody knows of it, or the daemon was away too long. The agent starts it anew, under another id.
      if (!(error instanceof NotFoundError || signal.aborted)) void abandon(client, state.place.sessionId, config.id);
      this.#end(exitOf(undefined), (error as Error).message);
    }
  }

  #observe({ state, rung, atMs, result, warning }: StatusEvent, tells: boolean): void {
    const at = new Date(atMs);
    if (state === 'running') this.startedAt ??= at;
    if (state !== 'pending') this.settled.resolve();
    if (result === undefined) {
      if (tells) tell(this.config, warning ?? `Execution ${state}${rung === undefined ? '' : ` (${rung})`}`, {}, at);
      return;
    }
    const { reason, message, exitCode } = result;
    const why = message === undefined ? reason : `${reason}: ${message}`;
    this.result = result;
    this.completedAt = at;
    tell(this.config, `Execution exited: ${why}`, { reason, exit_code: String(exitCode), rung: result.rung ?? '' }, at);
    this.#end(exitOf(result), troubleOf(result));
  }

  #end(result: ExitResult, err: string): void {
    this.completedAt ??= new Date();
    this.settled.resolve();
    this.exited.resolve({ result, err });
  }
}
