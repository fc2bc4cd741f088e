import { checkConfig, type DaemonConfig } from './config.ts';
import { Daemon } from './daemon.ts';
import { serve } from './grpc/server.ts';

/** Makes a daemon that is not started yet. Throws a `StartupError` that names what is wrong with the configuration. */
export function createDaemon(config: DaemonConfig = {}): Daemon {
  return new Daemon(checkConfig(config), serve);
}
