import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** How long a daemon that was started has to answer before another is started. */
const SPAWN_LIMIT_MS = 5_000;

/** Starts a daemon where none answers. */
export class DaemonSpawner {
  #spawnedAtMs = Number.NEGATIVE_INFINITY;

  /**
   * Starts one that outlives this process and holds nothing of it: neither its streams, its directory nor its terminal;
   * unless one was started in the last 5 s. It logs to `elide-daemon-UID.log` in the directory for temporary files.
   * `onError` hears when there is no such program.
   */
  spawn(path: string, args: string[], env: NodeJS.ProcessEnv, onError: (error: Error) => void): void {
    if (performance.now() - this.#spawnedAtMs < SPAWN_LIMIT_MS) return;
    this.#spawnedAtMs = performance.now();
    const fd = openSync(join(tmpdir(), `elide-daemon-${process.getuid?.()}.log`), 'a', 0o600);
    const child = spawn(path, args, { env, cwd: '/', detached: true, stdio: ['ignore', fd, fd] });
    closeSync(fd);
    child.on('error', onError);
    child.unref();
  }
}
