import { logVerbosity, setLogVerbosity } from '@grpc/grpc-js';
import { Command, Option } from 'commander';
import { monotonicMs } from './clock.ts';
import { type DaemonConfig, ON_STOP, readConfigFile } from './config.ts';
import { createDaemon } from './create-daemon.ts';
import type { Daemon } from './daemon.ts';
import { StartupError } from './errors.ts';
import { makePrivately } from './guest-umask.ts';
import { HungJournalError } from './journal/journal.ts';
import { LogOutput } from './log-output.ts';
import { ONE_ACT_MS } from './one-act.ts';
import { VERSION } from './version.ts';

interface Flags {
  socket?: string;
  tcp?: string;
  tlsCert?: string;
  tlsKey?: string;
  tlsClientCa?: string;
  tokenFile?: string;
  stateDir?: string;
  controlGroups?: string;
  config?: string;
  onStop?: NonNullable<DaemonConfig['onStop']>;
  logLevel?: NonNullable<DaemonConfig['logLevel']>;
}

makePrivately();
// What goes wrong is told in the daemon's own words.
setLogVerbosity(logVerbosity.NONE);
leaveRemovedDirectory();

const program = new Command('elide-daemon')
  .description('Runs code snippets and small services in sessions, for clients of elide.daemon.v1alpha1.ExecutionApi.')
  .version(VERSION)
  // Whose line it is in a log of many.
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'elide-daemon: ')) })
  .option('--socket <path>', 'unix socket to serve (default: $ELIDE_DAEMON_SOCKET or /tmp/elide-daemon.sock)')
  .option('--tcp <host:port>', 'address to serve beside it; beyond loopback only with a token or client certificates')
  .option('--tls-cert <file>', 'certificate of the daemon on TCP, PEM; with --tls-key')
  .option('--tls-key <file>', 'private key of that certificate, PEM')
  .option('--tls-client-ca <file>', 'clients on TCP must show a certificate of these authorities, PEM')
  .option('--token-file <file>', 'calls over TCP must carry the bearer token in this file')
  .option('--state-dir <dir>', 'state directory (default: /var/lib/elide as root, else $XDG_STATE_HOME/elide)')
  .option('--control-groups <path>', "cgroup that those of cells lie in, such as /elide.slice (default: the daemon's)")
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

async function run({ config: file, tlsCert, tlsKey, tlsClientCa, ...flags }: Flags): Promise<void> {
  let daemon: Daemon;
  try {
    const fromFile = file === undefined ? {} : await readConfigFile(file);
    const tls = mergedTls(fromFile.tls, { certFile: tlsCert, keyFile: tlsKey, clientCaFile: tlsClientCa });
    daemon = createDaemon({ ...fromFile, ...flags, tls });
    stopOnSignals(daemon);
    const { socket, tcp } = await daemon.start();
    const places = [socket && `unix:${socket}`, tcp && `tcp:${tcp}`].filter(Boolean).join(' ');
    new LogOutput(process.stdout).write(`elide-daemon ${VERSION} ready on ${places}\n`);
  } catch (error) {
    if (!(error instanceof StartupError)) throw error;
    process.stderr.write(`elide-daemon: ${error.message}\n`);
    process.exit(1);
  }
}

/** No thread can be made in a directory that is gone. */
function leaveRemovedDirectory(): void {
  try {
    process.cwd();
  } catch {
    process.chdir('/');
  }
}

/** Each flag wins over the file for itself; what is missing is found by the check of the whole. */
function mergedTls(
  fromFile: DaemonConfig['tls'],
  flags: { [K in keyof NonNullable<DaemonConfig['tls']>]: string | undefined },
): DaemonConfig['tls'] {
  const given = Object.entries(flags).filter(([, path]) => path !== undefined);
  return given.length === 0 ? fromFile : ({ ...fromFile, ...Object.fromEntries(given) } as DaemonConfig['tls']);
}

/** The first SIGTERM, SIGINT or SIGHUP climbs the ladder on everything, or leaves it to the next daemon; one of another act forces. */
function stopOnSignals(daemon: Daemon): void {
  let askedMs = Number.POSITIVE_INFINITY;
  const stop = () => {
    const force = monotonicMs() - askedMs > ONE_ACT_MS;
    daemon.stop({ force }).then(
      () => process.exit(0),
      (error: Error) => {
        process.stderr.write(`elide-daemon: ${error.stack}\n`);
        // An exit would wait for its thread.
        if (error instanceof HungJournalError) process.kill(process.pid, 'SIGKILL');
        process.exit(1);
      },
    );
    askedMs = Math.min(askedMs, monotonicMs());
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, stop);
  // Node would open a debugger to whoever is on this machine.
  process.on('SIGUSR1', () => {});
}
