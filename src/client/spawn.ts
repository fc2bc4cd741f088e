import { spawn } from 'node:child_process';
import { closeSync, constants, openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** How long a daemon that was started has to answer before another is started. */
const SPAWN_LIMIT_MS = 5_000;

/** Others may put a link into a directory that is everybody's. */
const LOG_FLAGS = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW;

const STARTING = 'the daemon is starting';

/** Starts a daemon where none answers. */
export class DaemonSpawner {
  #spawnedAtMs = Number.NEGATIVE_INFINITY;
  #state = STARTING;

  /**
   * Starts one that outlives this process and holds nothing of it: neither its streams, its directory nor its terminal;
   * unless one was started in the last 5 s. It logs to `elide-daemon-UID.log` in the directory for temporary files. Answers
   * for people: one is starting; or why the last one could not be started, or how it ended.
   */
  spawn(path: string, args: string[], env: NodeJS.ProcessEnv): string {
    const sinceMs = performance.now() - this.#spawnedAtMs;
    if (sinceMs < SPAWN_LIMIT_MS) return this.#state;
    // What became of one says nothing of the next, unless they follow each other: then it is the same again.
    if (sinceMs > 2 * SPAWN_LIMIT_MS) this.#state = STARTING;
    this.#spawnedAtMs = performance.now();
    this.#start(path, args, env);
    return this.#state;
  }

  #start(path: string, args: string[], env: NodeJS.ProcessEnv): void {
    const log = join(tmpdir(), `elide-daemon-${process.getuid?.()}.log`);
    const onError = ({ message }: Error) => {
      this.#state = `the daemon cannot be started: ${message}`;
    };
    let fd: number | undefined;
    try {
      fd = openSync(log, LOG_FLAGS, 0o600);
      const child = spawn(path, args, { env, cwd: '/', detached: true, stdio: ['ignore', fd, fd] });
      child.on('error', onError);
      child.on('exit', (code, signal) => {
        this.#state = `the daemon ended with ${signal ?? code}, see ${log}`;
      });
      child.unref();
    } catch (error) {
      // Only some of what can be wrong with a path comes as an event.
      onError(error as Error);
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }
}
