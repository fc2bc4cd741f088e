import type { Command } from 'commander';
import { write, writeJson, writeTable } from '../output.ts';
import { type Finish, REFUSED } from '../result.ts';
import { ANSWER, withDaemon } from '../target.ts';

export function addDoctor(program: Command, finish: Finish): void {
  program
    .command('doctor')
    .description('say what this node can run, and by which mechanism it holds each limit')
    .option('--json', 'one JSON document')
    .action((flags: { json?: boolean }, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const { healthy, version, maxRunning, maxQueued } = await client.health(ANSWER);
        const [languages, limits] = await Promise.all([client.languages(ANSWER), client.enforcement(ANSWER)]);
        finish(healthy ? 0 : REFUSED);
        if (flags.json)
          return writeJson({
            healthy,
            version,
            capacity: { running: maxRunning, queued: maxQueued },
            languages,
            limits,
          });
        await write(`${healthy ? 'healthy' : 'not healthy'}: elide-daemon ${version} on ${client.address}\n`);
        await write(`runs ${maxRunning} executions at a time; ${maxQueued} more may wait\n\n`);
        await writeTable(
          ['LANGUAGE', 'AVAILABLE'],
          languages.map(({ name, available, version: found, message }) => [
            name,
            available ? `yes, ${found}` : `no: ${message}`,
          ]),
        );
        await write('\n');
        return writeTable(
          ['LIMIT', 'ENGINE', 'HELD BY', 'NOTE'],
          limits.map(({ limit, engine, mechanism, note }) => [limit, engine, mechanism, note]),
        );
      }),
    );
}
