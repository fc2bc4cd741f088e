import { type Command, Option } from 'commander';
import { complain, write, writeJson } from '../output.ts';
import { describeResult, exitCodeOf, type Finish, REFUSED } from '../result.ts';
import { findExecution, sessionOption, withDaemon } from '../target.ts';
import { formatDuration, parseDuration } from '../values.ts';

interface Flags {
  session?: string;
  timeout?: number;
  json?: boolean;
}

export function addWait(program: Command, finish: Finish): void {
  program
    .command('wait')
    .description('wait until an execution has exited, and exit as run would have')
    .argument('<execution>')
    .addOption(sessionOption())
    .addOption(
      new Option('--timeout <duration>', `how long to wait; exits with ${REFUSED} when it passes`).argParser(
        parseDuration,
      ),
    )
    .option('--json', 'one JSON document')
    .action((executionId: string, flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        const execution = await client.wait(sessionId, executionId, { timeoutMs: flags.timeout });
        if (flags.json) await writeJson(execution);
        else if (execution.state === 'exited') await write(`${describeResult(execution)}\n`);
        if (execution.state !== 'exited') {
          await complain(
            `execution "${executionId}" is ${execution.state} after ${formatDuration(flags.timeout ?? 0)}`,
          );
        }
        finish(exitCodeOf(execution));
      }),
    );
}
