import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { FaultNode } from '../faults/node.ts';
import { TestDaemon } from '../support/daemon.ts';

const MIB = 2 ** 20;
const COUNT = 6;
const FILLER = `//${'x'.repeat(8 * MIB)}`;
/** Less than half of what {@link COUNT} programs take. */
const MOST_MIB = 20;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const RUNS = "setInterval(() => {}, 1000); console.log('ready');";

/** A program of 8 MiB. */
const large = (code: string) => `${code}\n${FILLER}`;

function heapMib(): number {
  collectGarbage();
  return process.memoryUsage().heapUsed / MIB;
}

test('a daemon keeps no code that a cell has: neither of what runs nor of what has finished', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  await session.run(large('0'));
  const before = heapMib();

  const running = [];
  for (let count = 0; count < COUNT; count += 1) running.push(await session.ready(large(RUNS)));
  await expect.poll(heapMib).toBeLessThan(before + MOST_MIB);

  for (const execution of running) await execution.cancel({ graceMs: 0 });
  for (const execution of running) await execution.end();
  await expect.poll(heapMib).toBeLessThan(before + MOST_MIB);
});

test('a daemon keeps no code of what it found waiting and nobody waits for any more', async () => {
  await using node = await FaultNode.start({ maxRunning: 1 });
  const { stateDir } = node;
  await node.client.createSession('s');
  await node.ready({ executionId: 'runs', code: RUNS });
  const waiting = Array.from({ length: COUNT }, (_, index) => `waits-${index}`);
  for (const executionId of waiting) {
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code: large('0') });
  }
  await node.end();
  const before = heapMib();

  await using next = await TestDaemon.start({ stateDir, maxRunning: 1 });
  expect((await next.daemon.getSession('s')).counts).toMatchObject({ pending: COUNT });
  for (const executionId of waiting) await next.daemon.cancelExecution('s', executionId);

  await expect.poll(heapMib).toBeLessThan(before + MOST_MIB);
});
