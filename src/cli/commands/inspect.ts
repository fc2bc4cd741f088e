import type { Command } from 'commander';
import type { Usage } from '../../../machines/execution.ts';
import { writeJson, writePairs } from '../output.ts';
import { describeResult } from '../result.ts';
import { ANSWER, findExecution, sessionOption, withDaemon } from '../target.ts';
import { formatBytes } from '../values.ts';

interface Flags {
  session?: string;
  json?: boolean;
}

function describeCpu({ userSeconds, systemSeconds }: Usage): string {
  return `${(userSeconds + systemSeconds).toFixed(3)}s (user ${userSeconds.toFixed(3)}s, system ${systemSeconds.toFixed(3)}s)`;
}

const timeOf = (ms: number | undefined) => (ms === undefined ? undefined : new Date(ms).toISOString());

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .description('show all there is to know of one execution')
    .argument('<execution>')
    .addOption(sessionOption())
    .option('--json', 'one JSON document')
    .action((executionId: string, flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        const execution = await client.getExecutionStatus(sessionId, executionId, ANSWER);
        if (flags.json) return writeJson(execution);
        const { language, state, rung, result, times, pid, warnings } = execution;
        const { stdoutBytes, stderrBytes, outputEvicted } = execution;
        const gone = outputEvicted ? ', removed to make room' : '';
        return writePairs([
          ['execution', executionId],
          ['session', sessionId],
          ['language', language],
          ['state', state],
          ['rung', rung],
          ['result', result && describeResult(execution)],
          ['pid', pid || undefined],
          ['accepted', timeOf(times.acceptedAtMs)],
          ['started', timeOf(times.startedAtMs)],
          ['signaled', timeOf(times.signaledAtMs)],
          ['exited', timeOf(times.exitedAtMs)],
          ['stdout', `${stdoutBytes} bytes${gone}`],
          ['stderr', `${stderrBytes} bytes${gone}`],
          ['dropped', result?.usage?.droppedBytes ? `${result.usage.droppedBytes} bytes of output` : undefined],
          ['cpu', result?.usage && describeCpu(result.usage)],
          ['peak memory', result?.usage && formatBytes(result.usage.peakMemoryBytes)],
          ...warnings.map((warning): [string, string] => ['warning', warning]),
        ]);
      }),
    );
}
