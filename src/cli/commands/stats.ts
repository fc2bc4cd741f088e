import { type Command, InvalidArgumentError, Option } from 'commander';
import type { ExecutionMetrics } from '../../supervisor/execution-metrics.ts';
import { write, writeJson, writeTable } from '../output.ts';
import { ANSWER, findExecution, withDaemon } from '../target.ts';
import { formatBytes, formatDuration, parseDuration } from '../values.ts';

interface Flags {
  session?: string;
  interval?: number;
  once?: boolean;
  json?: boolean;
}

const HEAD = ['SESSION', 'EXECUTION', 'CPU %', 'CPU TIME', 'MEMORY', 'PEAK', 'OUTPUT', 'PROCESSES', 'THREADS'];
/** To the upper left corner, and everything below it away. */
const REDRAW = '\u001b[H\u001b[2J';

export function addStats(program: Command): void {
  program
    .command('stats')
    .description('show what executions use, live; of one until its end, or of all that run')
    .argument('[execution]')
    .option('-s, --session <session>', 'of this session only')
    .addOption(
      new Option('--interval <duration>', 'between two rounds, 100ms to 1h (default: 1s)').argParser(parseInterval),
    )
    .option('--once', 'one round')
    .option('--json', 'one JSON object a line for each execution and round')
    .action((executionId: string | undefined, flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { session, interval: intervalMs } = flags;
        const found = executionId === undefined ? undefined : await findExecution(client, executionId, session);
        const sessionId = found?.sessionId ?? session;
        const limit = flags.once ? ANSWER : {};
        for await (const round of client.watchExecutionMetrics({ sessionId, executionId, intervalMs, ...limit })) {
          await show(round, flags);
          if (flags.once) return;
        }
      }),
    );
}

/** Whether it is short or long, the daemon says; 0 would ask it for its default. */
function parseInterval(text: string): number {
  const ms = parseDuration(text);
  if (ms === 0) throw new InvalidArgumentError('It must be 100ms to 1h.');
  return ms;
}

async function show(round: ExecutionMetrics[], flags: Flags): Promise<void> {
  if (flags.json) {
    for (const metrics of round) await writeJson(metrics);
    return;
  }
  if (process.stdout.isTTY && !flags.once) await write(REDRAW);
  await writeTable(HEAD, round.map(rowOf));
}

function rowOf(metrics: ExecutionMetrics): string[] {
  const { sessionId, executionId, userSeconds, systemSeconds, cpuPercent, memoryBytes, peakMemoryBytes } = metrics;
  const { stdoutBytes, stderrBytes, processes, threads } = metrics;
  return [
    sessionId,
    executionId,
    cpuPercent.toFixed(1),
    formatDuration((userSeconds + systemSeconds) * 1000),
    formatBytes(memoryBytes),
    formatBytes(peakMemoryBytes),
    formatBytes(stdoutBytes + stderrBytes),
    String(processes),
    String(threads),
  ];
}
