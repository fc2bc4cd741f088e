import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createDaemon } from '../src/index.ts';
import { show, spreadOf, table } from './statistics.ts';

const BATCHES = 5;
const BATCH = 2_000;
const ROUNDS = 5;
const WARM_UP = 500;

/** What an execution costs that waits in a session's queue, and how fast all of them are cancelled. */
export async function queue(): Promise<string> {
  const us: number[][] = [];
  const kb: number[][] = [];
  const cancelMs: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const figures = await fillAndCancel();
    us.push(figures.us);
    kb.push(figures.kb);
    cancelMs.push(figures.cancelMs);
  }
  const rows = Array.from({ length: BATCHES }, (_, batch) => [
    String((batch + 1) * BATCH),
    show(spreadOf(us.map((round) => round[batch] as number)), 0),
    show(spreadOf(kb.map((round) => round[batch] as number)), 1),
  ]);
  return [
    '## Executions that wait',
    '',
    `Added one by one to one session through the library, ${BATCH} a row; median (min-max) of ${ROUNDS} daemons.`,
    'Aim: about 50 us and 8 KiB each, not growing.',
    '',
    table(['waiting', 'us each', 'KiB each'], rows),
    '',
    `Cancelling all ${BATCHES * BATCH + WARM_UP} of them, each to its own final event: ${show(spreadOf(cancelMs), 0)} ms (aim: within 2 s).`,
  ].join('\n');
}

async function fillAndCancel(): Promise<{ us: number[]; kb: number[]; cancelMs: number }> {
  const directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
  const daemon = createDaemon({
    stateDir: join(directory, 'state'),
    socket: join(directory, 'd.sock'),
    logLevel: 'warn',
    maxRunning: 1,
    retainedExecutions: 100_000,
    maxQueued: 100_000,
  });
  await daemon.start();
  try {
    await daemon.createSession('s');
    await execute(daemon, 'holder', 'setTimeout(() => {}, 600_000)');
    for (let warmUp = 0; warmUp < WARM_UP; warmUp += 1) await execute(daemon, `w${warmUp}`, 'warm');
    const us: number[] = [];
    const kb: number[] = [];
    for (let batch = 0; batch < BATCHES; batch += 1) {
      const before = heapBytes();
      const startedMs = performance.now();
      for (let index = 0; index < BATCH; index += 1) await execute(daemon, `e${batch}-${index}`, 'console.log(1)');
      us.push(((performance.now() - startedMs) * 1000) / BATCH);
      kb.push((heapBytes() - before) / 1024 / BATCH);
    }
    const startedMs = performance.now();
    await daemon.deleteSession('s', { graceMs: 0 });
    return { us, kb, cancelMs: performance.now() - startedMs };
  } finally {
    await daemon.stop({ force: true });
    rmSync(directory, { recursive: true, force: true });
  }
}

function execute(daemon: ReturnType<typeof createDaemon>, executionId: string, code: string) {
  return daemon.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code });
}

/** What is left after a collection; run with `--expose-gc`. */
function heapBytes(): number {
  globalThis.gc?.();
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
}
