import type { ExecutionResult } from '../../machines/execution.ts';
import { type InspectTaskResponse, type TaskConfig, TaskState } from '../gen/nomad/driver.ts';
import { exitOf } from './exit.ts';

/** Go's zero time, for what has not happened. */
const NEVER = new Date(-62_135_596_800_000);
const NO_EXIT = { exitCode: 0, signal: 0, oomKilled: false };

/** What a driver knows of a task. */
export interface Inspected {
  readonly config: TaskConfig;
  /** When it began, and when it was gone. */
  readonly startedAt: Date | undefined;
  readonly completedAt: Date | undefined;
  readonly result: ExecutionResult | undefined;
}

/** A task's state as the agent reads it; `attributes` are the driver's own. */
export function inspectionOf(
  { config: { id, name }, startedAt = NEVER, completedAt = NEVER, result }: Inspected,
  attributes: Record<string, string>,
): InspectTaskResponse {
  const state = completedAt === NEVER ? TaskState.RUNNING : TaskState.EXITED;
  const exit = result === undefined ? NO_EXIT : exitOf(result);
  const task = { id, name, state, startedAt, completedAt, result: exit };
  return { task, driver: { attributes }, networkOverride: undefined };
}
