import { spawn } from 'node:child_process';
import { closeSync, constants, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** How long a daemon that was started has to answer before another is started. */
const SPAWN_LIMIT_MS = 5_000;

/** Others may put a link into a directory that is everybody's. */
const LOG_FLAGS = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW;

/** Starts a daemon where none answers. */
export class DaemonSpawner {
  #spawnedAtMs = Number.NEGATIVE_INFINITY;

  /**
   * Starts one that outlives this process and holds nothing of it: neither its streams, its directory nor its terminal;
   * unless one was started in the last 5 s. It logs to `elide-daemon-UID.log` in the directory for temporary files.
   * `onError` hears when there is no such program, or the log cannot be opened.
   */
  spawn(path: string, args: string[], env: NodeJS.ProcessEnv, onError: (error: Error) => void): void {
    if (performance.now() - this.#spawnedAtMs < SPAWN_LIMIT_MS) return;
    this.#spawnedAtMs = performance.now();
    let fd: number;
    try {
      fd = openSync(join(tmpdir(), `elide-daemon-${process.getuid?.()}.log`), LOG_FLAGS, 0o600);
    } catch (error) {
      onError(error as Error);
      return;
    }
    try {
      const child = spawn(path, args, { env, cwd: '/', detached: true, stdio: ['ignore', fd, fd] });
      child.on('error', onError);
      child.unref();
    } catch (error) {
      // Only some of what can be wrong with a path comes as an event.
      onError(error as Error);
    } finally {
      closeSync(fd);
    }
  }
}
