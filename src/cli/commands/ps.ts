import type { Command } from 'commander';
import type { ExecutionSummary } from '../../client/index.ts';
import { writeJson, writeTable } from '../output.ts';
import { ANSWER, withDaemon } from '../target.ts';
import { formatDuration } from '../values.ts';

interface Flags {
  all?: boolean;
  session?: string;
  json?: boolean;
}

const HEAD = ['SESSION', 'EXECUTION', 'LANGUAGE', 'STATE', 'REASON', 'RUNG', 'EXIT', 'AGE', 'RAN'];

export function addPs(program: Command): void {
  program
    .command('ps')
    .description('list the executions that have not exited')
    .option('-a, --all', 'those that have exited too')
    .option('-s, --session <session>', 'of this session only')
    .option('--json', 'one JSON document')
    .action((flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const executions: ExecutionSummary[] = [];
        for await (const execution of client.listExecutions(flags.session, ANSWER)) {
          if (flags.all || execution.state !== 'exited') executions.push(execution);
        }
        if (flags.json) await writeJson(executions);
        else
          await writeTable(
            HEAD,
            executions.map((execution) => rowOf(execution, Date.now())),
          );
      }),
    );
}

function rowOf(execution: ExecutionSummary, nowMs: number): string[] {
  const { sessionId, executionId, language, state, rung, result, times } = execution;
  const { acceptedAtMs, startedAtMs, exitedAtMs } = times;
  return [
    sessionId,
    executionId,
    language,
    state,
    result?.reason ?? '-',
    rung ?? '-',
    result === undefined || result.exitCode < 0 ? '-' : String(result.exitCode),
    formatDuration(Math.max(0, nowMs - acceptedAtMs)),
    startedAtMs === undefined ? '-' : formatDuration(Math.max(0, (exitedAtMs ?? nowMs) - startedAtMs)),
  ];
}
