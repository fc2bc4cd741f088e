import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * Starts a daemon that outlives this process and holds nothing of it: neither its streams, its directory nor its
 * terminal. It logs to `elide-daemon-UID.log` in the directory for temporary files. `onError` hears when there is no such program.
 */
export function spawnDaemon(
  path: string,
  args: string[],
  env: NodeJS.ProcessEnv,
  onError: (error: Error) => void,
): void {
  const fd = openSync(join(tmpdir(), `elide-daemon-${process.getuid?.()}.log`), 'a', 0o600);
  const child = spawn(path, args, { env, cwd: '/', detached: true, stdio: ['ignore', fd, fd] });
  closeSync(fd);
  child.on('error', onError);
  child.unref();
}
