import type { Command } from 'commander';
import { findExecution, sessionOption, withDaemon } from '../target.ts';

export function addRelease(program: Command): void {
  program
    .command('release')
    .description('give up a finished execution: its result, its output, its name')
    .argument('<execution>')
    .addOption(sessionOption())
    .action((executionId: string, flags: { session?: string }, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { sessionId } = await findExecution(client, executionId, flags.session);
        await client.releaseExecution(sessionId, executionId);
      }),
    );
}
