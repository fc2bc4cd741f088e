import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually } from '../support/daemon.ts';
import { fill } from './faults.ts';
import { FaultNode } from './node.ts';

/** Real file systems of their own, which only root may mount. */
const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may mount a file system: full and read-only disks');
const DISK_MB = 32;
const DEADLINE_MS = 1_000;
const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

/**
 * The error that a snippet is refused with; undefined when it is accepted. One that was taken up as the disk got full waits
 * for room, as what it has begun cannot be taken back: its deadline is its answer.
 */
async function refusalOf(node: FaultNode, executionId: string): Promise<{ code: string; message: string } | undefined> {
  const snippet = { sessionId: 's', executionId, language: 'javascript', code: '0' };
  return node.client.executeSnippet(snippet, { deadlineMs: DEADLINE_MS }).then(
    () => undefined,
    (error) => error,
  );
}

test.skipIf(!isRoot)('on a full disk new work is refused, and all goes on by itself when there is room', async () => {
  await using node = await FaultNode.start({}, { diskMb: DISK_MB });
  const ballast = join(node.root, 'ballast');
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });

  fill(ballast);
  // The first that finds no room is still accepted, with the room that is kept for the ends of what runs.
  let refusal: Awaited<ReturnType<typeof refusalOf>>;
  let count = 0;
  await eventually('new work is refused', async () => {
    fill(`${ballast}-2`);
    count += 1;
    refusal = await refusalOf(node, `full-${count}`);
    return refusal?.code === 'resource_exhausted';
  });
  expect(refusal?.message).toMatch(/^the journal cannot be written \(.*(full|ENOSPC)/);
  const cancelled = node.client.cancelExecution('s', 'e', { graceMs: 0 });
  rmSync(`${ballast}-2`);
  rmSync(ballast);
  await cancelled;
  const { result } = await node.client.wait('s', 'e', { timeoutMs: 5_000 });

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  await eventually('new work is accepted', async () => (await refusalOf(node, 'after')) === undefined);
  expect((await node.client.wait('s', 'after')).result?.reason).toBe('completed');
  await node.restart();
  expect((await node.client.wait('s', 'e')).result).toEqual(result);
});

test.skipIf(!isRoot)('on a read-only disk a daemon says so and ends, and the next one finds all', async () => {
  await using node = await FaultNode.start({}, { diskMb: DISK_MB });
  await node.client.createSession('s');
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code: '0' });
  const before = await node.client.wait('s', 'e');
  await node.end('SIGTERM');

  execFileSync('mount', ['-o', 'remount,ro', node.root]);
  const refused = await node.start().catch((error: Error) => error.message);
  execFileSync('mount', ['-o', 'remount,rw', node.root]);
  await node.start();

  expect(refused).toMatch(/^elide-daemon: journal: EROFS: read-only file system/m);
  expect(await node.client.wait('s', 'e')).toEqual(before);
});
