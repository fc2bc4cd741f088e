import { join } from 'node:path';
import { type Command, Option } from 'commander';
import { defaultStateDir } from '../../config.ts';
import type { JournalReader } from '../../journal/reader.ts';
import { complain, write, writeJson } from '../output.ts';
import type { Finish } from '../result.ts';

interface Flags {
  stateDir?: string;
}

export function addJournal(program: Command, finish: Finish): void {
  const journal = program
    .command('journal')
    .description("read a daemon's journal, on the machine and as the user of the daemon; beside it or without it");
  const stateDir = () =>
    new Option('--state-dir <dir>', "state directory of the daemon (default: the daemon's default)");
  journal
    .command('export')
    .description('write every session and execution with its events, one JSON object a line')
    .addOption(stateDir())
    .action(async (flags: Flags) => {
      using reader = await open(flags);
      for (const row of reader.export()) await writeJson(row);
    });
  journal
    .command('verify')
    .description('say what is wrong with it; exits with 1 when anything is')
    .addOption(stateDir())
    .action(async (flags: Flags) => {
      using reader = await open(flags);
      const problems = reader.verify();
      for (const problem of problems) await complain(problem);
      if (problems.length > 0) return finish(1);
      return write('sound\n');
    });
  journal
    .command('vacuum')
    .description('make the file as small as what it holds; while no daemon uses it')
    .addOption(stateDir())
    .action(async (flags: Flags) => {
      (await open(flags))[Symbol.dispose]();
      const { vacuumJournal } = await import('../../journal/vacuum.ts');
      const { StateDirectory } = await import('../../state-directory.ts');
      const directory = await StateDirectory.open(stateDirOf(flags));
      try {
        const { before, after } = vacuumJournal(directory.paths.journal);
        await write(`${before} bytes before, ${after} now\n`);
      } finally {
        await directory.close();
      }
    });
}

/** What loads SQLite is imported with its use: older Nodes warn of it, and no other command needs it. */
async function open(flags: Flags): Promise<JournalReader> {
  const { JournalReader } = await import('../../journal/reader.ts');
  return new JournalReader(pathOf(flags));
}

function pathOf(flags: Flags): string {
  return join(stateDirOf(flags), 'daemon', 'journal.db');
}

function stateDirOf({ stateDir = defaultStateDir() }: Flags): string {
  return stateDir;
}
