import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chown, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { killTrees } from '../../src/processes.ts';
import { leftovers } from './leftovers.ts';
import { cellsBelow } from './processes.ts';

const MAIN = fileURLToPath(new URL('../../dist/src/main.js', import.meta.url));

const NOBODY = 65_534;

/** A real daemon: the built program as a child process, with a directory of its own that goes with it. */
export class DaemonProcess implements AsyncDisposable {
  readonly child: ChildProcess;
  /** For the test's own files too. */
  readonly directory: string;
  readonly socket: string;
  /** `HOST:PORT`. */
  readonly tcp: string;

  private constructor(child: ChildProcess, directory: string, socket: string, tcp: string) {
    this.child = child;
    this.directory = directory;
    this.socket = socket;
    this.tcp = tcp;
  }

  /** Resolves when the daemon says that it is ready. `flags` are added to its command line. */
  static start(...flags: string[]): Promise<DaemonProcess> {
    return DaemonProcess.#start({}, flags);
  }

  /** One that may not do everything: as nobody, where this process is root. Its directory is its own. */
  static startWithoutRights(...flags: string[]): Promise<DaemonProcess> {
    return DaemonProcess.#start(process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {}, flags);
  }

  static async #start(user: { uid?: number; gid?: number }, flags: string[]): Promise<DaemonProcess> {
    const directory = await mkdtemp(join(tmpdir(), 'elide-test-'));
    await chown(directory, user.uid ?? -1, user.gid ?? -1);
    const socket = join(directory, 'd.sock');
    const places = ['--socket', socket, '--tcp', '127.0.0.1:0', '--state-dir', join(directory, 'state')];
    const args = [MAIN, ...places, '--log-level', 'error', ...flags];
    const child = spawn(process.execPath, args, { ...user, stdio: ['ignore', 'pipe', 'inherit'] });
    const lines = createInterface({ input: child.stdout });
    const line = await Promise.race([
      once(lines, 'line').then(([text]) => text as string),
      once(child, 'exit').then(([code]) => Promise.reject(new Error(`the daemon exited with ${code}`))),
    ]);
    const tcp = /tcp:(\S+)/.exec(line)?.[1] ?? '';
    const daemon = new DaemonProcess(child, directory, socket, tcp);
    leftovers.add(daemon);
    return daemon;
  }

  /** Stops the daemon in good order, or kills it, and removes its directory. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    leftovers.delete(this);
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const exited = once(this.child, 'exit');
      this.child.kill(signal);
      await exited;
    }
    // A daemon that was killed leaves its cells, and what runs in them, to the next one, and there is none.
    killTrees(cellsBelow(this.directory));
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
