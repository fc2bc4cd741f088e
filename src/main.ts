#!/usr/bin/env node
import { Command, Option } from 'commander';
import { type DaemonConfig, ON_STOP, readConfigFile } from './config.ts';
import { createDaemon } from './create-daemon.ts';
import type { Daemon } from './daemon.ts';
import { StartupError } from './errors.ts';
import { VERSION } from './version.ts';

interface Flags {
  socket?: string;
  tcp?: string;
  stateDir?: string;
  config?: string;
  onStop?: NonNullable<DaemonConfig['onStop']>;
  logLevel?: NonNullable<DaemonConfig['logLevel']>;
}

/** Everything the daemon makes is its own user's. */
process.umask(0o077);

const program = new Command('elide-daemon')
  .description('Runs code snippets and small services in sessions, for clients of elide.daemon.v1alpha1.ExecutionApi.')
  .version(VERSION)
  .option('--socket <path>', 'unix socket to serve (default: $ELIDE_DAEMON_SOCKET or /tmp/elide-daemon.sock)')
  .option('--tcp <host:port>', 'loopback address to serve beside it (default: none)')
  .option('--state-dir <dir>', 'state directory (default: /var/lib/elide as root, else $XDG_STATE_HOME/elide)')
  .option('--config <file>', 'configuration file: one JSON object; flags win over it')
  .addOption(new Option('--on-stop <what>', 'end everything, or leave it to the next daemon').choices(ON_STOP))
  .addOption(
    new Option('--log-level <level>', 'what to log on stderr').choices([
      'fatal',
      'error',
      'warn',
      'info',
      'debug',
      'trace',
      'silent',
    ]),
  )
  .action(run);

await program.parseAsync();

async function run({ config: file, ...flags }: Flags): Promise<void> {
  let daemon: Daemon;
  try {
    const fromFile = file === undefined ? {} : await readConfigFile(file);
    daemon = createDaemon({ ...fromFile, ...flags });
    stopOnSignals(daemon);
    const { socket, tcp } = await daemon.start();
    const places = [socket && `unix:${socket}`, tcp && `tcp:${tcp}`].filter(Boolean).join(' ');
    process.stdout.write(`elide-daemon ${VERSION} ready on ${places}\n`);
  } catch (error) {
    if (!(error instanceof StartupError)) throw error;
    process.stderr.write(`elide-daemon: ${error.message}\n`);
    process.exit(1);
  }
}

/** The first SIGTERM or SIGINT climbs the ladder on everything, or leaves it to the next daemon; a second one forces. */
function stopOnSignals(daemon: Daemon): void {
  let asked = false;
  const stop = () => {
    const force = asked;
    asked = true;
    daemon.stop({ force, detach: daemon.config.onStop === 'detach' }).then(
      () => process.exit(0),
      (error: Error) => {
        process.stderr.write(`elide-daemon: ${error.stack}\n`);
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}
