import { EventEmitter, on } from 'node:events';
import { DriverTaskEvent, type TaskConfig } from '../gen/nomad/driver.ts';

const events = new EventEmitter().setMaxListeners(0);

/** Tells every agent that listens, for the list of the task's events. */
export function tell(task: TaskConfig, message: string, annotations: Record<string, string> = {}): void {
  const { id: taskId, allocId, name: taskName } = task;
  const event = { taskId, allocId, taskName, timestamp: new Date(), message, annotations };
  events.emit('event', DriverTaskEvent.fromPartial(event));
}

/** What is told of all tasks from now on. */
export async function* told(signal: AbortSignal): AsyncGenerator<DriverTaskEvent> {
  for await (const [event] of on(events, 'event', { signal })) yield event;
}
