import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createDaemon } from '../src/index.ts';
import { table } from './statistics.ts';

const BATCHES = 5;
const BATCH = 2_000;

/** What an execution costs that waits in a session's queue, and how fast all of them are cancelled. */
export async function queue(): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
  const daemon = createDaemon({
    stateDir: join(directory, 'state'),
    socket: join(directory, 'd.sock'),
    logLevel: 'warn',
    maxRunning: 1,
    retainedExecutions: 100_000,
  });
  await daemon.start();
  try {
    await daemon.createSession('s');
    await execute(daemon, 'holder', 'setTimeout(() => {}, 600_000)');
    for (let warmUp = 0; warmUp < 500; warmUp += 1) await execute(daemon, `w${warmUp}`, 'warm');
    const rows: string[][] = [];
    for (let batch = 0; batch < BATCHES; batch += 1) {
      const before = heapBytes();
      const startedMs = performance.now();
      for (let index = 0; index < BATCH; index += 1) await execute(daemon, `e${batch}-${index}`, 'console.log(1)');
      const us = ((performance.now() - startedMs) * 1000) / BATCH;
      const kb = (heapBytes() - before) / 1024 / BATCH;
      rows.push([String((batch + 1) * BATCH), us.toFixed(0), kb.toFixed(1)]);
    }
    const startedMs = performance.now();
    await daemon.deleteSession('s', { graceMs: 0 });
    const cancelMs = performance.now() - startedMs;
    return [
      '## Executions that wait',
      '',
      `Added one by one to one session through the library, ${BATCH} a row. Aim: about 50 us and 8 KiB each, not growing.`,
      '',
      table(['waiting', 'us each', 'KiB each'], rows),
      '',
      `Cancelling all ${BATCHES * BATCH + 500} of them, each to its own final event: ${cancelMs.toFixed(0)} ms (aim: within 2 s).`,
    ].join('\n');
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
