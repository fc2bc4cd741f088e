import { expect, test } from 'vitest';
import { eventually, TestDaemon } from '../support/daemon.ts';

const FOREVER = "setInterval(() => {}, 1000); console.log('ready');";

test('a session is deleted once it was idle for its TTL, and what it ran stays queryable', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ idleTtlMs: 300 });
  const running = await session.ready("setTimeout(() => {}, 900); console.log('ready');");
  const { snapshot } = await running.end();

  // It ran for longer than the TTL.
  expect((await node.daemon.getSession(session.sessionId)).state).toBe('running');
  await eventually('the session is gone', async () => (await node.daemon.listSessions()).length === 0);

  expect(Date.now() - (snapshot.times.exitedAtMs as number)).toBeGreaterThanOrEqual(299);
  expect((await running.end()).stdout).toBe('ready\n');
  await expect(node.daemon.getSession(session.sessionId)).rejects.toMatchObject({ code: 'not_found' });
});

test('a session whose whole time is up stops what runs and what waits, with the ladder', async () => {
  await using node = await TestDaemon.start({ graceMs: 2_000 });
  const session = await node.session({ totalTtlMs: 3_000, maxRunning: 1 });
  const asked = await session.ready(
    `process.on('SIGTERM', () => { console.log('asked'); process.exit(0); }); ${FOREVER}`,
  );
  const waiting = await session.submit(FOREVER);

  const { result, stdout } = await asked.end();

  expect(result).toMatchObject({ reason: 'session_closed', rung: 'graceful', exitCode: 0 });
  expect(stdout).toBe('ready\nasked\n');
  expect((await waiting.end()).result).toMatchObject({ reason: 'session_closed', exitCode: -1 });
  await eventually('the session is gone', async () => (await node.daemon.listSessions()).length === 0);
});
