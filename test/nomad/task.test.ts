import { expect, test } from 'vitest';
import type { ExecutionResult, ExitReason } from '../../machines/execution.ts';
import type { DaemonClient } from '../../src/client/index.ts';
import { TaskConfig } from '../../src/gen/nomad/driver.ts';
import { Task } from '../../src/nomad/task.ts';

const PLACE = { sessionId: 's', language: 'javascript' };

/** How the agent is told of the end of a task whose execution came to this. */
async function endOf(result: Partial<ExecutionResult>) {
  const client = {
    async *watchExecution() {
      yield { sequence: 1, atMs: 1, state: 'exited', result };
    },
  } as unknown as DaemonClient;
  const state = { version: 1, place: PLACE } as unknown as Task['state'];
  return new Task(client, TaskConfig.fromPartial({ id: 't' }), state, Number.POSITIVE_INFINITY, 0).exited.promise;
}

test.each<ExitReason>(['memory_exceeded', 'output_exceeded', 'timed_out'])(
  'a task that ends with 0 by itself after it was %s has failed',
  async (reason) => {
    expect(await endOf({ reason, exitCode: 0 })).toMatchObject({ err: reason, result: { exitCode: 0 } });
  },
);

test('a task that has completed has not', async () => {
  expect(await endOf({ reason: 'completed', exitCode: 0 })).toMatchObject({ err: '', result: { exitCode: 0 } });
});

test('a task that was killed for its memory is said to be that by its exit alone', async () => {
  const result = { exitCode: 137, signal: 9, oomKilled: true };
  expect(await endOf({ reason: 'memory_exceeded', exitCode: 137, signal: 'SIGKILL' })).toMatchObject({
    err: '',
    result,
  });
});
