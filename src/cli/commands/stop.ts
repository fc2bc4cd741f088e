import { type Command, Option } from 'commander';
import { write, writeJson } from '../output.ts';
import { describeResult } from '../result.ts';
import { findExecution, sessionOption, withDaemon } from '../target.ts';
import { parseDuration } from '../values.ts';

interface Flags {
  session?: string;
  signal?: string;
  grace?: number;
  json?: boolean;
}

export function addStop(program: Command): void {
  program
    .command('stop')
    .description('stop an execution, by force after the grace period, and wait until it is gone')
    .argument('<execution>')
    .addOption(sessionOption())
    .option('--signal <signal>', 'the signal to begin with; SIGKILL forces at once (default: SIGTERM)')
    .addOption(
      new Option('--grace <duration>', "time between signal and force (default: the execution's own)").argParser(
        parseDuration,
      ),
    )
    .option('--json', 'one JSON document')
    .action((executionId: string, flags: Flags, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        await client.cancelExecution(sessionId, executionId, { signal: flags.signal, graceMs: flags.grace });
        const execution = await client.wait(sessionId, executionId);
        if (flags.json) await writeJson(execution);
        else await write(`${describeResult(execution)}\n`);
      }),
    );
}
