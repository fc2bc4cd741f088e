import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { closedAgain, descendants, isAlive, openDescriptors, TestDaemon } from '../support/daemon.ts';

/** Resident memory of some processes in MiB, shared pages counted once for each. */
function residentMb(pids: number[]): number {
  const kilobytes = pids.map((pid) => {
    try {
      return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
    } catch {
      return 0;
    }
  });
  return Math.round(kilobytes.reduce((sum, kb) => sum + kb, 0) / 1024);
}

test('a thousand executions in one session, queued at once, all complete', { timeout: 360_000 }, async () => {
  // What the runtime opens once and keeps is not counted.
  await using first = await TestDaemon.start();
  await (await first.session()).run('0');
  await first.daemon.stop();
  const before = new Set(descendants());
  const descriptorsBefore = openDescriptors();
  await using node = await TestDaemon.start({ maxRunning: 32 });
  const session = await node.session();
  const begunAtMs = performance.now();

  const executions = await Promise.all(
    Array.from({ length: 1_000 }, (_, index) =>
      session.submit(
        index % 2 === 0
          ? { code: 'console.log(process.argv[2])', args: [`${index}`] }
          : { language: 'python', code: 'import sys\nprint(sys.argv[1])', args: [`${index}`] },
      ),
    ),
  );
  const { counts } = await node.daemon.getSession(session.sessionId);
  let most = 0;
  const ends = await Promise.all(
    executions.map(async (execution, index) => {
      const ended = await execution.end();
      if (index % 100 === 0) most = Math.max(most, residentMb(descendants().filter((pid) => !before.has(pid))));
      return ended;
    }),
  );
  const tookMs = performance.now() - begunAtMs;
  console.info(`1000 executions: ${(tookMs / 1000).toFixed(1)} s, ${most} MiB resident below the daemon`);

  expect(counts.running).toBeLessThanOrEqual(32);
  expect(new Set(ends.map(({ result }) => result.reason))).toEqual(new Set(['completed']));
  for (const [index, { stdout }] of ends.entries()) expect(stdout).toBe(`${index}\n`);
  await session.close();
  expect(descendants().filter((pid) => !before.has(pid))).toEqual([]);
  await node.daemon.stop();
  await closedAgain(descriptorsBefore);
});

test('a storm of cancellations, kills of cells and new work loses no execution', { timeout: 240_000 }, async () => {
  await using node = await TestDaemon.start({ maxRunning: 16, restartIntensity: 100 });
  const session = await node.session();
  const codes = [
    { code: 'console.log(1)' },
    { code: "process.on('SIGTERM', () => {}); for (;;);" },
    { code: 'setInterval(() => {}, 1000)' },
    { code: 'process.exit(7)' },
    { language: 'python', code: 'print(1)' },
    { language: 'python', code: 'import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)' },
  ];

  const executions = await Promise.all(
    Array.from({ length: 90 }, (_, index) => session.submit(codes[index % codes.length] as { code: string })),
  );
  const storm = executions.map(async (execution, index) => {
    await execution.reached(index % 4 === 0 ? 'pending' : 'running').catch(() => {});
    if (index % 15 === 0) for (const pid of await session.cellPids()) if (isAlive(pid)) process.kill(pid, 'SIGKILL');
    await execution.cancel({ graceMs: (index % 3) * 50 });
    return execution.end();
  });
  const ends = await Promise.all(storm);

  const reasons = new Set(ends.map(({ result }) => result.reason));
  for (const reason of reasons) {
    expect(['completed', 'failed', 'cancelled', 'cell_lost', 'start_failed']).toContain(reason);
  }
  for (const { steps } of ends) {
    expect(steps.filter((step) => step.startsWith('exited'))).toHaveLength(1);
    expect(steps.filter((step) => step === 'signaled.graceful').length).toBeLessThanOrEqual(1);
  }
  expect((await node.daemon.getSession(session.sessionId)).counts).toEqual({ pending: 0, running: 0, exited: 90 });
  expect((await session.run('console.log("calm")')).stdout).toBe('calm\n');
});
