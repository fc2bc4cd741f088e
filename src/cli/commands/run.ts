import { type Command, Option } from 'commander';
import { customAlphabet } from 'nanoid';
import { InvalidArgumentError } from '../../errors.ts';
import type { Snippet } from '../../supervisor/requests.ts';
import { type LimitFlags, limitOptions, limitsOf } from '../limits.ts';
import { write, writeJson } from '../output.ts';
import type { Finish } from '../result.ts';
import { admit, attend } from '../running.ts';
import { type ProgramFlags, programOf } from '../snippet.ts';
import { hasInput } from '../stdin.ts';
import { ANSWER, DEFAULT_SESSION, withDaemon } from '../target.ts';
import { collectEnv, parseDuration } from '../values.ts';

interface Flags extends ProgramFlags, LimitFlags {
  session: string;
  env?: Record<string, string>;
  grace?: number;
  detach?: boolean;
  json?: boolean;
}

/** Names that no shell and no option parser takes for something else. */
const executionIdOf = customAlphabet('0123456789abcdefghijklmnopqrstuvwxyz', 12);

export function addRun(program: Command, finish: Finish): void {
  const run = program
    .command('run')
    .description(
      "run a program as if it were started here: its output, input, signals and exit code are this command's",
    )
    .argument('[file]', 'the program; - reads it from stdin')
    .argument('[args...]', "the program's arguments; put -- before those that begin with a dash")
    .option('-l, --language <language>', 'javascript, typescript, python (default: by the ending of the file)')
    .option('-e, --eval <code>', 'the program itself, instead of a file')
    .option('-s, --session <session>', 'session to run in, created if missing', DEFAULT_SESSION)
    .addOption(
      new Option(
        '--env <name[=value]>',
        "part of the program's environment, which is else empty; repeat it for more",
      ).argParser(collectEnv),
    )
    .option('--cwd <dir>', "the program's working directory (default: this one; over --tcp a fresh private one)")
    .addOption(
      new Option('--grace <duration>', "time between signal and force in a stop (default: the daemon's)").argParser(
        parseDuration,
      ),
    )
    .option('-d, --detach', 'write the name of the execution and leave it running')
    .option('--json', 'with --detach: one JSON document')
    .addHelpText('after', HELP)
    .action((file: string | undefined, args: string[], flags: Flags, command: Command) =>
      withDaemon(command, async ({ client, sameMachine }) => {
        if (flags.json && !flags.detach)
          throw new InvalidArgumentError("--json needs --detach: the output is the program's own");
        const source = await programOf(file, args, flags, sameMachine);
        const snippet: Snippet = {
          ...source,
          sessionId: flags.session,
          executionId: executionIdOf(),
          env: flags.env,
          ...limitsOf(flags),
          graceMs: flags.grace,
          stdin: !flags.detach && file !== '-' && hasInput(),
        };
        if (!flags.detach) return finish(await attend(client, snippet));
        await admit(client, snippet, ANSWER);
        const { sessionId, executionId } = snippet;
        return flags.json ? writeJson({ sessionId, executionId }) : write(`${executionId}\n`);
      }),
    );
  for (const option of limitOptions()) run.addOption(option);
}

const HELP = `
Exits with the program's exit code: 128+N when signal N ended it, 124 when the run limit passed, 137 when it used too
much memory or wrote more than it may, 125 when the daemon refused it or is not there. SIGINT, SIGTERM and SIGHUP are
passed on to the program; a second SIGINT within the grace period stops it with force after that, a third forces at
once. One within 200 ms of another is no second one. Where no daemon answers a signal, this command ends by it: after
2 s for the third SIGINT, else after 10 s.`;
