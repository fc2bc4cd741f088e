import type { Command } from 'commander';
import { write, writeJson } from '../output.ts';
import { type Finish, REFUSED } from '../result.ts';
import { ANSWER, withDaemon } from '../target.ts';

export function addHealth(program: Command, finish: Finish): void {
  program
    .command('health')
    .description('ask whether the daemon is well; exits with 0 if it is')
    .option('--json', 'one JSON document')
    .action((flags: { json?: boolean }, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { healthy, version } = await client.health(ANSWER);
        if (flags.json) await writeJson({ healthy, version, address: client.address });
        else await write(`${healthy ? 'healthy' : 'not healthy'}: elide-daemon ${version} on ${client.address}\n`);
        finish(healthy ? 0 : REFUSED);
      }),
    );
}
