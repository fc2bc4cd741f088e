import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDaemon, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';
import { soonest } from '../support/in-time.ts';

// A cell whose guests do nothing sleeps, and no limit is less of a limit for it.

let node: TestDaemon;
beforeAll(async () => {
  node = await TestDaemon.start();
});
afterAll(() => node[Symbol.asyncDispose]());

/** Waits for a line in a pipe, its only argument, of which the daemon knows nothing, then does what is given: indented once. */
const onLine = (javascript: string, python: string) => ({
  javascript: `require('node:fs').createReadStream(process.argv[2]).once('data', () => { ${javascript} }); console.log('ready');`,
  python: `import sys, time\nprint('ready', flush=True)\nopen(sys.argv[1]).readline()\n${python}`,
});
const GROWS = onLine(
  'const held = []; setInterval(() => held.push(Buffer.alloc(8 << 20, 1)), 10);',
  'held = []\nwhile True:\n  held.append(bytearray(8 << 20))\n  time.sleep(0.01)',
);
const BURNS = onLine('for (;;);', 'while True: pass');
const WORKS = onLine(
  "const until = process.cpuUsage().user + 300_000; while (process.cpuUsage().user < until) for (let count = 0; count < 1e6; count++); console.log('done'); setInterval(() => {}, 1e6);",
  "start = time.process_time()\nwhile time.process_time() - start < 0.3: pass\nprint('done', flush=True)\ntime.sleep(1000)",
);

/** What wakes a guest, with nobody told. */
class Bell {
  readonly path = join(mkdtempSync(join(tmpdir(), 'elide-test-')), 'bell');

  constructor() {
    execFileSync('mkfifo', [this.path]);
  }

  ring(): Promise<void> {
    return writeFile(this.path, 'go\n');
  }

  [Symbol.dispose](): void {
    rmSync(dirname(this.path), { recursive: true });
  }
}

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
    40_000,
  );
}

/** So that it has been looked at once more, and is not for another 10 s. */
async function asleepForLong(session: TestSession): Promise<void> {
  await asleep(session);
  await sleep(6_000);
}

const LIMIT_MS = 180_000;

/** Some looks late, not as long as a cell sleeps. */
const MOST_SECONDS = 2;

/** How much a guest that was asleep has computed when it is ended at its limit, in s of CPU time. */
function burntUntilSeen(asked: { language: string; isolation?: 'process'; code: string }): Promise<number> {
  return soonest(MOST_SECONDS, 2, async () => {
    using bell = new Bell();
    const session = await node.session();
    const guest = await session.ready({ ...asked, cpuTimeLimitMs: 400, graceMs: 0, args: [bell.path] });
    await asleepForLong(session);

    await bell.ring();

    const { result } = await guest.end();
    expect(result).toMatchObject({ reason: 'timed_out' });
    const { userSeconds = Number.NaN, systemSeconds = Number.NaN } = result.usage ?? {};
    return userSeconds + systemSeconds;
  });
}

test.each(ENGINES)(
  'a sleeping %s guest that grows is ended at its memory limit',
  { timeout: LIMIT_MS },
  async (engine) => {
    const asked = languageOf(engine);
    // It grows by some 800 MiB a second: seen late, not as late as a cell looks that nobody wakes.
    const mostBytes = 2 ** 30;

    const bytes = await soonest(mostBytes, 2, async () => {
      using bell = new Bell();
      const session = await node.session();
      const guest = await session.ready({
        ...asked,
        code: GROWS[asked.language],
        memoryLimitMb: 64,
        args: [bell.path],
      });
      await asleepForLong(session);

      await bell.ring();

      const { result } = await guest.end();
      expect(result).toMatchObject({ reason: 'memory_exceeded' });
      return result.usage?.peakMemoryBytes ?? Number.NaN;
    });

    expect(bytes).toBeLessThan(mostBytes);
  },
);

test.each(ENGINES)(
  'a sleeping %s guest that computes is ended at its CPU limit',
  { timeout: LIMIT_MS },
  async (engine) => {
    const asked = languageOf(engine);

    expect(await burntUntilSeen({ ...asked, code: BURNS[asked.language] })).toBeLessThan(MOST_SECONDS);
  },
);

test(
  'what a sleeping Python guest leaves to itself is ended at the CPU limit, though its start was next to no work',
  async () => {
    const { python: code } = onLine(
      '',
      'import os\nif os.fork() == 0:\n  if os.fork() == 0:\n    while True: pass\n  os._exit(0)\nos.wait()\ntime.sleep(1000)',
    );

    expect(await burntUntilSeen({ language: 'python', code })).toBeLessThan(MOST_SECONDS);
  },
  LIMIT_MS,
);

test.each(ENGINES)('what a sleeping %s guest uses is known, and what it used meanwhile', async (engine) => {
  const asked = languageOf(engine);
  using bell = new Bell();
  const session = await node.session();
  const guest = await session.ready({ ...asked, code: WORKS[asked.language], memoryLimitMb: 500, args: [bell.path] });
  const used = async () => {
    const metrics = await node.daemon.getExecutionMetrics(session.sessionId, guest.executionId);
    return { ...metrics, seconds: metrics.userSeconds + metrics.systemSeconds };
  };
  await asleep(session);
  const before = await used();
  expect(before.memoryBytes).toBeGreaterThan(0);

  await bell.ring();
  await guest.printed('done');

  await eventually('its work is seen', async () => (await used()).seconds >= before.seconds + 0.27);
  expect((await used()).seconds).toBeLessThan(before.seconds + 0.6);
  await guest.cancel({ signal: 'SIGKILL' });
});
