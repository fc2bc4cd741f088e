import { Command, CommanderError, Option } from 'commander';
import { UnreachableError } from '../client/index.ts';
import { ElideError, UnauthenticatedError } from '../errors.ts';
import { VERSION } from '../version.ts';
import { addDoctor } from './commands/doctor.ts';
import { addHealth } from './commands/health.ts';
import { addInspect } from './commands/inspect.ts';
import { addJournal } from './commands/journal.ts';
import { addLanguages } from './commands/languages.ts';
import { addLogs } from './commands/logs.ts';
import { addPs } from './commands/ps.ts';
import { addRelease } from './commands/release.ts';
import { addRun } from './commands/run.ts';
import { addSession } from './commands/session.ts';
import { addSignal } from './commands/signal.ts';
import { addStats } from './commands/stats.ts';
import { addStop } from './commands/stop.ts';
import { addWait } from './commands/wait.ts';
import { complain, OutputClosedError, OutputFailedError, write } from './output.ts';
import { type Finish, REFUSED } from './result.ts';

/** Runs one command line, without the program's name. Resolves with the exit code when everything is written. */
export async function elidectl(args: string[]): Promise<number> {
  let exitCode = 0;
  const finish: Finish = (code) => {
    exitCode = code;
  };
  let help = '';
  const program = programOf(finish, (text) => {
    help += text;
  });
  try {
    await program.parseAsync(args, { from: 'user' }).catch((error) => {
      if (!(error instanceof CommanderError && error.exitCode === 0)) throw error;
    });
    if (help !== '') await write(help);
    return exitCode;
  } catch (error) {
    return await exitCodeOfError(error);
  } finally {
    // What commander complained of has left when this has.
    await write('', 'stderr').catch(() => {});
  }
}

async function exitCodeOfError(error: unknown): Promise<number> {
  if (error instanceof CommanderError) return REFUSED;
  if (error instanceof OutputClosedError) return OutputClosedError.exitCode;
  await complain(messageOf(error));
  return REFUSED;
}

function messageOf(error: unknown): string {
  if (error instanceof OutputFailedError) return error.message;
  if (!(error instanceof ElideError)) return String((error as Error)?.stack ?? error);
  if (error instanceof UnreachableError) {
    return `${error.message}: start elide-daemon, or name another with --socket or --tcp`;
  }
  if (error instanceof UnauthenticatedError) return `${error.message}: name its file with --token-file`;
  return error.message;
}

/** What is asked for of the command itself, as help, goes to `writeOut`. */
function programOf(finish: Finish, writeOut: (text: string) => void): Command {
  const program = new Command('elidectl')
    .description('Runs and looks after executions in an elide daemon.')
    .version(VERSION)
    .addOption(
      new Option(
        '--socket <path>',
        'unix socket of the daemon (default: $ELIDE_DAEMON_SOCKET or /tmp/elide-daemon.sock)',
      ).conflicts('tcp'),
    )
    .addOption(new Option('--tcp <host:port>', 'address of the daemon, instead of a socket'))
    .addOption(
      new Option('--tls-ca <file>', "with --tcp: authorities of the daemon's certificate, PEM").env(
        'ELIDE_DAEMON_TLS_CA',
      ),
    )
    .addOption(
      new Option('--tls-cert <file>', 'with --tcp: certificate to show to the daemon, PEM').env(
        'ELIDE_DAEMON_TLS_CERT',
      ),
    )
    .addOption(
      new Option('--tls-key <file>', 'with --tcp: private key of that certificate, PEM').env('ELIDE_DAEMON_TLS_KEY'),
    )
    .addOption(
      new Option('--token-file <file>', "with --tcp: file with the daemon's bearer token").env(
        'ELIDE_DAEMON_TOKEN_FILE',
      ),
    )
    .exitOverride()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      writeOut,
      outputError: (text, writeError) => writeError(text.replace(/^error: /, 'elidectl: ')),
    })
    .addHelpText(
      'after',
      `\nExit codes: ${REFUSED} when elidectl or the daemon could not do what was asked; run and wait exit as the execution did.`,
    );
  for (const add of [
    addRun,
    addPs,
    addLogs,
    addWait,
    addSignal,
    addStop,
    addInspect,
    addRelease,
    addStats,
    addSession,
    addLanguages,
    addHealth,
    addDoctor,
    addJournal,
  ]) {
    add(program, finish);
  }
  return program;
}
