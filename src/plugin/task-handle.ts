import { type StartTaskResponse, type TaskConfig, type TaskHandle, TaskState } from '../gen/nomad/driver.ts';

/** What a driver has of a task beside its configuration; the agent keeps it, as bytes. */
interface Versioned {
  version: number;
}

/** The answer to a start, with what the agent is to keep. */
export function startedWith(config: TaskConfig, state: Versioned): StartTaskResponse {
  const driverState = Buffer.from(JSON.stringify(state));
  const handle = { version: 1, config, state: TaskState.RUNNING, driverState };
  return { result: 0, driverErrorMsg: '', handle, networkOverride: undefined };
}

/** What the agent kept. Throws when it is of another version of the driver, or is no handle. */
export function keptIn<T extends Versioned>(
  handle: TaskHandle | undefined,
  version: T['version'],
): { config: TaskConfig; state: T } {
  if (handle?.config === undefined) throw new Error('handle cannot be nil');
  const state = JSON.parse(Buffer.from(handle.driverState).toString()) as T;
  if (state.version !== version) throw new Error('the handle was written by another version of the driver');
  return { config: handle.config, state };
}
