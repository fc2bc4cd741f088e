import type { ChildProcess } from 'node:child_process';
import { accessSync, closeSync, constants, fstatSync, openSync, readlinkSync } from 'node:fs';
import { Socket } from 'node:net';
import { delimiter, isAbsolute, join } from 'node:path';
import { readPlainFile } from '../plain-file.ts';
import { hasNoMemory } from '../processes.ts';
import { spawnChild } from '../spawn-child.ts';

/** How long an interpreter may take from its spawn to its first word. */
const BOOT_LIMIT_MS = 30_000;
/** How long a zygote may take from one guest it makes to the next: it forks in about a millisecond. */
const MAKE_LIMIT_MS = 10_000;
/** How long a zygote may take to leave once asked: it waits for its shepherds. */
const CLOSE_LIMIT_MS = 1_000;
/** Where an interpreter is looked for by name when this process has no PATH: a cell's environment is empty. */
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** How much of what an interpreter says as it fails is looked at, in bytes, and told, in characters. */
const WORDS_BYTES = 4096;
const LINE_CHARS = 300;

/** One guest's pipes, as the cell holds them. Each is a file descriptor that does not block. */
export interface GuestPipes {
  /** Names the set between cell and zygote. */
  setNumber: number;
  /** Write end of the guest's standard input. */
  input: number;
  /** Read end of its standard output. */
  output: number;
  /** Read end of its standard error. */
  error: number;
  /** Read end: what the guest and its shepherd report. Its end of file is the shepherd's death. */
  report: number;
  /** Write end: header and code. */
  request: number;
}

/** What a zygote tells the engine. */
export interface ZygoteEvents {
  /** It can be asked for guests. */
  ready(): void;
  /** A guest was made: its pipes are there to be taken. */
  spare(): void;
  /** A guest could not be made. One line for people. */
  failed(message: string): void;
  /** The shepherd of this set died without a report, or before it was taken, and everything below it is gone. */
  gone(setNumber: number): void;
  /** The process is gone. `failure` says why when it never got ready: one line for people. Called once. */
  exited(failure: string | undefined): void;
}

interface Announcement {
  set: number;
  fds: [number, number, number, number, number];
}

/** One zygote process (`workers/zygote.py`), from spawn to exit. */
export class Zygote {
  readonly #python: string;
  readonly #events: ZygoteEvents;
  readonly #child: ChildProcess;
  readonly #control: Socket | undefined;
  readonly #bootTimer: NodeJS.Timeout;
  readonly #exit = Promise.withResolvers<void>();
  #spares: Announcement[] = [];
  /** Guests asked for and not announced yet. */
  #making = 0;
  #makeTimer: NodeJS.Timeout | undefined;
  #received = '';
  #ready = false;
  #exited = false;
  #failure = '';
  /** How much this process had written to standard error before, in bytes. */
  readonly #logged = fstatSync(2).size;

  /** Spawns the process; that there is none such arrives as `exited`. Throws where no descriptors are left for it. */
  constructor(python: string, zygotePath: string, events: ZygoteEvents) {
    this.#python = python;
    this.#events = events;
    // No -I, -S or -E: a guest finds its modules as under `python3 FILE`. The empty environment is the isolation.
    this.#child = spawnChild(findInterpreter(python), [zygotePath], {
      cwd: '/',
      env: {},
      detached: true, // a terminal's Ctrl-C is for the daemon
      stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    });
    this.#child.once('error', (error) => this.#onExit(error.message));
    this.#child.once('exit', (code, signal) => this.#onExit(`it ended with ${signal ?? `exit code ${code}`} at start`));
    this.#bootTimer = setTimeout(() => {
      this.#failure = `it was not ready within ${BOOT_LIMIT_MS / 1000} s`;
      this.#child.kill('SIGKILL');
    }, BOOT_LIMIT_MS);
    const control = this.#child.stdio[3];
    if (control instanceof Socket) {
      this.#control = control;
      control.setEncoding('utf8');
      control.on('data', (text: unknown) => this.#onControl(String(text)));
      control.on('error', () => {}); // the process is gone or going; its exit tells
    }
  }

  get exited(): boolean {
    return this.#exited;
  }

  /** Asks for guests until `count` are spare or on their way. */
  request(count: number): void {
    const make = count - this.#spares.length - this.#making;
    if (!this.#ready || this.#exited || make <= 0) return;
    this.#making += make;
    this.#control?.write(`${JSON.stringify({ make })}\n`);
    this.#watch();
  }

  /** Opens the cell's ends of a spare guest's pipes; undefined when there is none. Throws when that fails. */
  takePipes(): GuestPipes | undefined {
    const spare = this.#exited ? undefined : this.#spares.shift();
    if (spare === undefined) return undefined;
    const [input, output, error, report, request] = spare.fds;
    const opened: number[] = [];
    const open = (fd: number, mode: number) => {
      const own = openSync(`/proc/${this.#child.pid}/fd/${fd}`, mode | constants.O_NONBLOCK);
      opened.push(own);
      return own;
    };
    try {
      const pipes = {
        setNumber: spare.set,
        input: open(input, constants.O_WRONLY),
        output: open(output, constants.O_RDONLY),
        error: open(error, constants.O_RDONLY),
        report: open(report, constants.O_RDONLY),
        request: open(request, constants.O_WRONLY),
      };
      this.#control?.write(`${JSON.stringify({ taken: spare.set })}\n`);
      return pipes;
    } catch (cause) {
      for (const fd of opened) closeSync(fd);
      this.#spares.unshift(spare);
      throw cause;
    }
  }

  /** True from the moment on that it is of no more use; {@link exited} tells of it later. */
  get isEnding(): boolean {
    return this.#child.pid === undefined || hasNoMemory(this.#child.pid);
  }

  /** Ends the process by force. Guests that run go on. */
  kill(): void {
    if (!this.#exited) this.#child.kill('SIGKILL');
  }

  /** Ends the process once its shepherds are gone, by force after a limit; resolves when it is gone. */
  async close(): Promise<void> {
    if (!this.#ready) this.kill();
    // A guest may have stopped it; it would not hear that it is to leave.
    if (!this.#exited) this.#child.kill('SIGCONT');
    this.#control?.destroy();
    const timer = setTimeout(() => this.kill(), CLOSE_LIMIT_MS);
    await this.#exit.promise;
    clearTimeout(timer);
  }

  #onControl(text: string): void {
    const lines = (this.#received + text).split('\n');
    this.#received = lines.pop() ?? '';
    for (const line of lines) {
      const message = JSON.parse(line);
      if ('set' in message) {
        this.#making--;
        this.#watch();
        this.#spares.push(message);
        this.#events.spare();
      } else if ('failed' in message) {
        this.#making--;
        this.#watch();
        this.#events.failed(message.failed);
      } else if ('gone' in message) {
        this.#spares = this.#spares.filter((spare) => spare.set !== message.gone);
        this.#events.gone(message.gone);
      } else if ('error' in message) {
        this.#failure = message.error;
      } else if ('ready' in message) {
        this.#ready = true;
        clearTimeout(this.#bootTimer);
        this.#events.ready();
      }
    }
  }

  /** A zygote that owes guests and makes none is stuck, or a guest stopped it. */
  #watch(): void {
    clearTimeout(this.#makeTimer);
    if (this.#making > 0) this.#makeTimer = setTimeout(() => this.kill(), MAKE_LIMIT_MS);
  }

  #onExit(reason: string): void {
    if (this.#exited) return;
    this.#exited = true;
    clearTimeout(this.#bootTimer);
    clearTimeout(this.#makeTimer);
    this.#control?.destroy();
    this.#exit.resolve();
    const failure = this.#ready
      ? undefined
      : `python interpreter "${this.#python}" cannot run guests: ${this.#failure || reason}` +
        `${lastWordsSince(this.#logged)} (install Python 3.9 or newer, or configure another interpreter)`;
    this.#events.exited(failure);
  }
}

/** What was written last to standard error, after so many bytes, where that is a file, as it is of a cell; else empty. */
function lastWordsSince(bytes: number): string {
  const written = Math.min(WORDS_BYTES, fstatSync(2).size - bytes);
  if (written <= 0) return '';
  const words = readPlainFile(readlinkSync('/proc/self/fd/2'), written)?.toString().trimEnd() ?? '';
  const line = words.slice(words.lastIndexOf('\n') + 1).slice(0, LINE_CHARS);
  return line && `: ${line}`;
}

function findInterpreter(python: string): string {
  if (isAbsolute(python) || python.includes('/')) return python;
  for (const directory of (process.env.PATH || DEFAULT_PATH).split(delimiter)) {
    const candidate = join(directory, python);
    try {
      accessSync(candidate, constants.X_OK);
      return candidate;
    } catch {
      // the next directory
    }
  }
  return python; // spawn says that there is none
}
