import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { extname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL(`../src/main${extname(import.meta.url)}`, import.meta.url));
/** How long processes may take to be gone from the process table once the daemon has exited, in ms. */
const GONE_LIMIT_MS = 3_000;

/** A daemon of the demo's own: a child process with a temporary socket and state directory. */
export class DemoDaemon {
  readonly directory = mkdtempSync(join(tmpdir(), 'elide-demo-'));
  readonly socket = join(this.directory, 'daemon.sock');
  readonly #child: ChildProcess;
  /** Every process seen, by id, with its start time: a reused id has another. */
  readonly #seen = new Map<number, string>();
  #errors = '';

  constructor() {
    const args = ['--socket', this.socket, '--state-dir', join(this.directory, 'state'), '--log-level', 'error'];
    // Detached: Ctrl-C is for the demo, which then stops the daemon in good order.
    this.#child = spawn(process.execPath, [MAIN, ...args], { detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child.stderr?.on('data', (data) => {
      this.#errors += data;
    });
    this.#child.on('error', () => {});
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Resolves with the line that says it is ready. */
  async ready(signal: AbortSignal): Promise<string> {
    const { stdout } = this.#child;
    if (stdout === null) throw new Error('the daemon has no stdout');
    const lines = createInterface({ input: stdout });
    const [line] = await Promise.race([
      once(lines, 'line', { signal }),
      once(this.#child, 'close', { signal }).then(() => Promise.reject(new Error(`no daemon: ${this.#errors}`))),
    ]);
    stdout.resume();
    return line as string;
  }

  /** Takes note of the daemon's processes as they are now: itself, its cells, their guests. */
  observe(): void {
    const processes = listProcesses();
    const family = new Set([this.pid]);
    // A child may have a lower number than its parent: look until nobody is new.
    for (let size = 0; size < family.size; ) {
      size = family.size;
      for (const { pid, parent } of processes) if (family.has(parent)) family.add(pid);
    }
    for (const { pid, started } of processes) if (family.has(pid)) this.#seen.set(pid, started);
  }

  /** Asks the daemon to stop; asked again, it forces. */
  interrupt(): void {
    this.#child.kill('SIGTERM');
  }

  /** Stops the daemon and removes its directory. Resolves with what is still there of it: nothing, if all is well. */
  async stop(): Promise<{ processes: number; left: string[] }> {
    this.observe();
    if (this.#child.pid !== undefined && this.#child.exitCode === null && this.#child.signalCode === null) {
      this.interrupt();
      await once(this.#child, 'exit');
    }
    const processes = await this.#remaining();
    const left = processes.map((pid) => `process ${pid}`);
    if (existsSync(this.socket)) left.push(`socket ${this.socket}`);
    rmSync(this.directory, { recursive: true, force: true });
    if (existsSync(this.directory)) left.push(`directory ${this.directory}`);
    return { processes: this.#seen.size, left };
  }

  async #remaining(): Promise<number[]> {
    for (const end = Date.now() + GONE_LIMIT_MS; ; await pause(20)) {
      const now = new Map(listProcesses().map(({ pid, started }) => [pid, started]));
      const alive = [...this.#seen].filter(([pid, started]) => now.get(pid) === started).map(([pid]) => pid);
      if (alive.length === 0 || Date.now() > end) return alive;
    }
  }
}

interface ProcessEntry {
  pid: number;
  parent: number;
  started: string;
}

/** The processes of this machine but for those that have ended and only wait for their parent to notice. */
function listProcesses(): ProcessEntry[] {
  if (!existsSync('/proc/self/stat')) return [];
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        // proc_pid_stat(5), after the name: state ppid ... starttime
        const fields = readFileSync(`/proc/${name}/stat`, 'utf8')
          .replace(/^.*\) /s, '')
          .split(' ');
        const [state, parent] = fields;
        return state === 'Z' ? [] : [{ pid: Number(name), parent: Number(parent), started: fields[19] ?? '' }];
      } catch {
        return []; // It ended while we looked.
      }
    });
}
