import { expect, test } from 'vitest';
import { FaultNode } from './node.ts';

const CODE_BYTES = 2 ** 20;
/** More than the daemon's heap has room for. */
const COUNT = 400;

test('what waits may take a part of the memory at most, and is there for the next daemon', async () => {
  await using node = await FaultNode.start({}, { heapMb: 256 });
  await node.client.createSession('s', { maxRunning: 1 });
  await node.ready({ executionId: 'first', code: "setInterval(() => {}, 1000); console.log('ready')" });
  const code = `console.log('ran') /*${'x'.repeat(CODE_BYTES)}*/`;
  const accepted: string[] = [];
  let refusal: unknown;

  for (let count = 0; count < COUNT && refusal === undefined; count += 1) {
    const snippet = { sessionId: 's', executionId: `e${count}`, language: 'javascript', code };
    await node.client.executeSnippet(snippet).then(
      () => accepted.push(snippet.executionId),
      (error) => {
        refusal = error;
      },
    );
  }
  await node.restart();
  await node.client.cancelExecution('s', 'first', { graceMs: 0 });

  const message = /^executions that wait have \d+ bytes, and this one \d+: \d+ may wait in all; try again in/;
  expect(refusal).toMatchObject({ code: 'resource_exhausted', message: expect.stringMatching(message) });
  expect(accepted.length).toBeGreaterThan(8);
  for (const executionId of accepted) {
    expect((await node.client.wait('s', executionId)).result?.reason).toBe('completed');
  }
});
