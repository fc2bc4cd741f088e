import { spawnSync } from 'node:child_process';
import { chownSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { FaultNode } from './node.ts';

const MAIN = fileURLToPath(new URL('../../dist/src/main.js', import.meta.url));
const NOBODY = 65_534;
const LIMIT_MS = 10_000;
const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may: a daemon of another user');

/** Starts a daemon that must refuse, with a socket of its own; what it says. */
function refusal(node: FaultNode, stateDir: string, uid?: number): string {
  const args = [MAIN, '--socket', join(node.root, 'other.sock'), '--state-dir', stateDir, '--log-level', 'error'];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: LIMIT_MS, uid });
  expect(status).toBe(1);
  return stderr.trim();
}

test('a second daemon on a state directory is refused, also while the first one stands still, which goes on', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });
  const cells = node.cellPids();
  const inUse = `elide-daemon: state directory ${node.stateDir} is in use by another daemon`;

  expect(refusal(node, node.stateDir)).toBe(inUse);
  process.kill(node.pid, 'SIGSTOP');
  const second = refusal(node, node.stateDir);
  process.kill(node.pid, 'SIGCONT');

  expect(second).toBe(inUse);
  expect(node.cellPids()).toEqual(cells);
  expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
  // The kernel has let the lock go with the first.
  await node.restart();
  expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
});

test.each(['ENOLCK', 'ENOSYS'] as const)(
  'a state directory on a file system without locks (%s) is refused as that, and nothing in it is touched',
  async (locks) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: IDLE });
    const cells = node.cellPids();
    await node.end();
    const before = readdirSync(join(node.stateDir, 'daemon'));

    const refused = await node.start(undefined, { locks }).catch((error: Error) => error.message);

    expect(refused).toMatch(
      /^elide-daemon: state directory \S+ cannot be used: no file in it can be locked \(.+\); name/m,
    );
    expect(readdirSync(join(node.stateDir, 'daemon'))).toEqual(before);
    expect(node.cellPids()).toEqual(cells);
    await node.start();
    expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
  },
);

test.skipIf(!isRoot)('a daemon of another user is refused by name of what it may not, and makes nothing', async () => {
  await using node = await FaultNode.start();
  const shared = join(node.root, 'shared');
  mkdirSync(shared);
  chownSync(node.root, NOBODY, NOBODY);

  const ofRoot = refusal(node, node.stateDir, NOBODY);
  const belowRoots = refusal(node, join(shared, 'new'), NOBODY);

  expect(ofRoot).toMatch(/^elide-daemon: state directory \S+\/s cannot be used: EACCES: permission denied/);
  expect(belowRoots).toMatch(/^elide-daemon: state directory \S+\/new cannot be used: EACCES: permission denied/);
  expect(readdirSync(shared)).toEqual([]);
});
