import type { Command } from 'commander';
import { FailedPreconditionError } from '../../errors.ts';
import { findExecution, sessionOption, withDaemon } from '../target.ts';

export function addSignal(program: Command): void {
  program
    .command('signal')
    .description('deliver one signal to an execution; no stop comes after it, except with SIGKILL')
    .argument('<execution>')
    .argument('<signal>', 'by name, for example SIGHUP or hup')
    .addOption(sessionOption())
    .option('--tree', 'its child processes get it too')
    .action((executionId: string, signal: string, flags: { session?: string; tree?: boolean }, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        if (await client.signalExecution(sessionId, executionId, signal, { signalTree: flags.tree })) return;
        throw new FailedPreconditionError(`execution "${executionId}" has exited (elidectl inspect ${executionId})`);
      }),
    );
}
