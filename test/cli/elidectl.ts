import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

export const CTL = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url));

/** A command that has ended. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: Buffer;
}

export interface CtlOptions {
  /** What it reads on stdin; absent: /dev/null. */
  input?: string | Buffer;
  /** A descriptor to have as stdin, instead. */
  stdin?: number;
  cwd?: string;
  env?: NodeJS.ProcessEnv;
}

/** elidectl as people run it, for the daemon on this socket. */
export class Elidectl {
  readonly #socket: string;

  constructor(socket: string) {
    this.#socket = socket;
  }

  /** Starts it and lets it run. */
  start(args: string[], options: CtlOptions = {}): RunningCtl {
    const stdin = options.input === undefined ? (options.stdin ?? 'ignore') : 'pipe';
    const stdio: SpawnOptions['stdio'] = [stdin, 'pipe', 'pipe'];
    const env = { ...process.env, ELIDE_DAEMON_SOCKET: this.#socket, ...options.env };
    const child = spawn(process.execPath, [CTL, ...args], { stdio, env, cwd: options.cwd });
    child.stdin?.on('error', () => {});
    child.stdin?.end(options.input);
    return new RunningCtl(child);
  }

  /** Runs it to its end. */
  run(args: string[], options: CtlOptions = {}): Promise<Ended> {
    return this.start(args, options).ended;
  }

  /** Runs a command that must succeed; resolves with what it wrote. */
  async text(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(args);
    if (code !== 0) throw new Error(`elidectl ${args.join(' ')}: ${code}: ${stderr}`);
    return stdout.toString();
  }

  /** Runs a reading command with --json; resolves with the document. */
  async json(...args: string[]): Promise<unknown> {
    return JSON.parse(await this.text(...args, '--json'));
  }
}

/** One elidectl that runs. */
export class RunningCtl {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  readonly #stdout: Buffer[] = [];
  readonly #stderr: Buffer[] = [];

  constructor(child: ChildProcess) {
    this.child = child;
    child.stdout?.on('data', (data) => this.#stdout.push(data));
    child.stderr?.on('data', (data) => this.#stderr.push(data));
    this.ended = once(child, 'close').then(([code, signal]) => ({
      code,
      signal,
      stdout: Buffer.concat(this.#stdout),
      stderr: Buffer.concat(this.#stderr),
    }));
  }

  /** Resolves when stdout holds this text; rejects when it ends without. */
  async wrote(text: string): Promise<void> {
    const there = () => Buffer.concat(this.#stdout).includes(text);
    const early = this.ended.then(({ stderr }) => {
      if (!there()) throw new Error(`ended without writing ${JSON.stringify(text)}: ${stderr}`);
    });
    while (!there()) await Promise.race([once(this.child.stdout as NodeJS.EventEmitter, 'data'), early]);
  }
}
