import type { Command } from 'commander';
import { writeJson, writeTable } from '../output.ts';
import { ANSWER, withDaemon } from '../target.ts';

export function addLanguages(program: Command): void {
  program
    .command('languages')
    .description('list the languages the daemon can run')
    .option('--json', 'one JSON document')
    .action((flags: { json?: boolean }, command: Command) =>
      withDaemon(command, async ({ client }) => {
        const languages = await client.languages(ANSWER);
        if (flags.json) return writeJson(languages);
        const rows = languages.map(({ name, aliases, version, available, message }) => [
          name,
          aliases.join(', '),
          version || '-',
          available ? 'yes' : `no: ${message}`,
        ]);
        return writeTable(['LANGUAGE', 'ALIASES', 'VERSION', 'AVAILABLE'], rows);
      }),
    );
}
