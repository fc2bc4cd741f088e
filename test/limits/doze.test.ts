import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDaemon, type TestSession } from '../support/daemon.ts';

// A cell whose guests do nothing sleeps, and no limit is less of a limit for it.

let node: TestDaemon;
beforeAll(async () => {
  node = await TestDaemon.start();
});
afterAll(() => node[Symbol.asyncDispose]());

/** Waits for a line of input, then does what is given for its language: indented once. */
const onInput = (javascript: string, python: string) => ({
  javascript: `process.stdin.once('data', () => { ${javascript} }); console.log('ready');`,
  python: `import sys, time\nprint('ready', flush=True)\nsys.stdin.readline()\n${python}`,
});
const GROWS = onInput(
  'const held = []; setInterval(() => held.push(Buffer.alloc(8 << 20, 1)), 10);',
  'held = []\nwhile True:\n  held.append(bytearray(8 << 20))\n  time.sleep(0.01)',
);
const BURNS = onInput('for (;;);', 'while True: pass');
const WORKS = onInput(
  "const until = process.cpuUsage().user + 300_000; while (process.cpuUsage().user < until) for (let count = 0; count < 1e6; count++); console.log('done'); setInterval(() => {}, 1e6);",
  "while time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(1000)",
);

/** How often a process gave up its core by itself: each look at a guest is one time. */
const naps = (pid: number) =>
  Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);

async function asleep(session: TestSession): Promise<void> {
  const pid = await session.cellPid();
  await eventually(
    'the cell sleeps',
    async () => {
      const before = naps(pid);
      await sleep(1_000);
      // Awake, it looks ten times.
      return naps(pid) - before < 5;
    },
    20_000,
  );
}

test.each(['javascript', 'python'] as const)(
  'a sleeping %s guest that grows is ended at its memory limit',
  async (language) => {
    const session = await node.session();
    const guest = await session.ready({ language, code: GROWS[language], memoryLimitMb: 64, stdin: true });
    await asleep(session);

    await guest.write('go\n');

    const { result } = await guest.end();
    expect(result).toMatchObject({ reason: 'memory_exceeded' });
    // It grows by some 800 MiB a second: seen late, not as late as a cell looks that nobody wakes.
    expect(result.usage?.peakMemoryBytes).toBeLessThan(2 ** 30);
  },
);

test.each(['javascript', 'python'] as const)(
  'a sleeping %s guest that computes is ended at its CPU limit',
  async (language) => {
    const session = await node.session();
    const guest = await session.ready({
      language,
      code: BURNS[language],
      cpuTimeLimitMs: 400,
      graceMs: 0,
      stdin: true,
    });
    await asleep(session);

    await guest.write('go\n');

    const { result } = await guest.end();
    expect(result).toMatchObject({ reason: 'timed_out' });
    // Some looks late, not as long as a cell sleeps.
    const { userSeconds = 0, systemSeconds = 0 } = result.usage ?? {};
    expect(userSeconds + systemSeconds).toBeLessThan(2);
  },
);

test.each(['javascript', 'python'] as const)(
  'what a sleeping %s guest uses is known, and what it used meanwhile',
  async (language) => {
    const session = await node.session();
    const guest = await session.ready({ language, code: WORKS[language], memoryLimitMb: 500, stdin: true });
    const used = async () => {
      const metrics = await node.daemon.getExecutionMetrics(session.sessionId, guest.executionId);
      return { ...metrics, seconds: metrics.userSeconds + metrics.systemSeconds };
    };
    await asleep(session);
    const before = await used();
    expect(before.memoryBytes).toBeGreaterThan(0);

    await guest.write('go\n');
    await guest.printed('done');

    await eventually('its work is seen', async () => (await used()).seconds >= before.seconds + 0.27);
    expect((await used()).seconds).toBeLessThan(before.seconds + 0.6);
    await guest.cancel({ signal: 'SIGKILL' });
  },
);
