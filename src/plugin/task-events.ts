import { EventEmitter, on } from 'node:events';
import { DriverTaskEvent, type TaskConfig } from '../gen/nomad/driver.ts';

const events = new EventEmitter().setMaxListeners(0);

/** Tells every agent that listens, for the list of the task's events, of what was so at that time. */
export function tell(
  task: TaskConfig,
  message: string,
  annotations: Record<string, string> = {},
  timestamp = new Date(),
): void {
  const { id: taskId, allocId, name: taskName } = task;
  const event = { taskId, allocId, taskName, timestamp, message, annotations };
  events.emit('event', DriverTaskEvent.fromPartial(event));
}

/** What is told of all tasks from now on. */
export async function* told(signal: AbortSignal): AsyncGenerator<DriverTaskEvent> {
  for await (const [event] of on(events, 'event', { signal })) yield event;
}
