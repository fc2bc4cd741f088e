import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually, TestDaemon } from '../support/daemon.ts';

test('only so many finished executions stay queryable, the newest, and the output of the others is gone', async () => {
  await using node = await TestDaemon.start({ retainedExecutions: 3 });
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");

  for (let index = 0; index < 5; index += 1)
    await session.run({ executionId: `done-${index}`, code: 'console.log(1)' });

  const known = (await node.daemon.listExecutions(session.sessionId)).map(({ executionId }) => executionId);
  expect(known).toEqual([running.executionId, 'done-2', 'done-3', 'done-4']);
  await expect(node.daemon.getExecutionStatus(session.sessionId, 'done-1')).rejects.toMatchObject({
    code: 'not_found',
  });
  expect(await node.daemon.cancelExecution(session.sessionId, 'done-1')).toBe(false);
  const output = join(node.root, 's', 'daemon', 'output');
  const [sessionKey = ''] = readdirSync(output);
  await eventually('the outputs of two are removed', () => readdirSync(join(output, sessionKey)).length === 4);
  // The id is free again.
  expect((await session.run({ executionId: 'done-0', code: "console.log('again')" })).stdout).toBe('again\n');
});

test('what guests leave in their private directories is removed with them', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { stdout } = await session.run(`
    const fs = require('node:fs');
    fs.mkdirSync('deep/er', { recursive: true });
    fs.writeFileSync('deep/er/file', 'x');
    fs.symlinkSync('/etc', 'link');
    fs.chmodSync('deep', 0o000);
    console.log(process.cwd());`);
  const cwd = stdout.trim();

  await eventually('the private directory is gone', () => !existsSync(cwd));
  expect(existsSync('/etc/passwd')).toBe(true);
});

test('sessions share the places of a node in turn', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1 });
  const [busy, other] = [await node.session(), await node.session()];
  const holder = await busy.ready("setInterval(() => {}, 1000); console.log('ready');");
  const waiting = await Promise.all(Array.from({ length: 10 }, () => busy.submit('0')));
  const guest = await other.submit('0');

  await holder.cancel({ graceMs: 0 });
  const { snapshot } = await guest.end();
  const ends = await Promise.all(waiting.map((execution) => execution.end()));

  const before = ends.filter((end) => (end.snapshot.times.startedAtMs ?? 0) < (snapshot.times.startedAtMs ?? 0));
  expect(before.length).toBeLessThanOrEqual(2);
});
