import type { ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import { setImmediate as nextTurn, setTimeout as wait } from 'node:timers/promises';
import { signalName } from '../../workers/javascript/shared.ts';
import { NO_FFI } from '../cell-flags.ts';
import { startTimeOf, untilGone, waitStatusOf } from '../processes.ts';
import { spawnChild } from '../spawn-child.ts';
import type { PooledContext } from './context-pool.ts';
import { LARGEST_FIGURE } from './engine.ts';
import type { ProcessMessage, ProcessTask } from './messages.ts';

/** V8 divides what new objects may have in three; they get an eighth of the heap limit in all, as in a thread. */
const SEMI_SPACE_SHARE = 1 / 24;
const LARGEST_SEMI_SPACE_MB = 16;

/** Somebody may have got hold of the channel, and keep its end from being seen. */
const LAST_WORDS_MS = 50;

/** More than the channel holds: what comes after that, once the process has ended, is not its own. */
const LAST_WORDS_BYTES = 256 * 1024;

/** So many different messages are heard once it has ended. No program has more left to say, and others wait for its end. */
const LAST_WORDS = 1_024;

/** No message is longer. */
const LONGEST_LINE_CHARS = 400;

/** So many messages are heard at once: what a child is, is looked up. The next ones have to wait, in ms. */
const MESSAGES_AT_ONCE = 32;
const PAUSE_MS = 1;

/** How long one that was killed may take to have ended, and how long its end, which can be seen then, may be told later. */
const END_LIMIT_MS = 10_000;
const TOLD_LIMIT_MS = 10;

/** How a process ended. */
export interface ProcessEnd {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Why there never was one. */
  error?: Error;
}

/** One process for one JavaScript execution, leader of a session and a process group of its own. */
export class GuestProcess implements PooledContext {
  readonly ended: Promise<ProcessEnd>;
  readonly heapLimitMb: number | undefined;
  /** Undefined when it could not be made. */
  readonly pid: number | undefined;
  /** Its standard input. */
  readonly input: Socket;
  /** Hears what it says once it runs. */
  listener: (message: ProcessMessage) => void = () => {};
  readonly #child: ChildProcess;
  readonly #control: Socket;
  readonly #onBooted: () => void;
  #received = '';
  /** What it says again before it is heard is heard once. */
  readonly #unheard = new Set<string>();
  #task: ProcessTask | undefined;
  #handedOver = false;
  #state: 'booting' | 'booted' | 'ended' = 'booting';
  #exited = false;
  readonly #onEnded: (how: ProcessEnd) => void;

  /** `programPath`: the built `workers/process.ts`. Throws where no descriptors are left for it. */
  constructor(programPath: string, heapLimitMb: number | undefined, onBooted: () => void) {
    this.heapLimitMb = heapLimitMb;
    this.#onBooted = onBooted;
    this.#child = spawnChild(process.execPath, [...NO_FFI, ...heapFlags(heapLimitMb), programPath], {
      cwd: '/',
      env: {},
      detached: true,
      // Output goes to the execution's files, once there is one; until then what Node has to say is the cell's.
      stdio: ['pipe', 'ignore', 'inherit', 'pipe'],
    });
    this.pid = this.#child.pid;
    this.input = this.#child.stdin as Socket;
    this.#control = this.#child.stdio[3] as Socket;
    for (const socket of [this.input, this.#control]) socket.on('error', () => {}); // its end tells
    this.#control.setEncoding('latin1');
    this.#control.on('data', (text: unknown) => {
      const lines = `${this.#received}${text}`.split('\n');
      // Whoever writes no lines at all is not heard.
      this.#received = (lines.pop() as string).slice(-LONGEST_LINE_CHARS);
      for (const line of lines) this.#unheard.add(line);
      if (lines.length <= MESSAGES_AT_ONCE) this.#hear();
      else this.#hearLater();
    });
    const { promise, resolve } = Promise.withResolvers<ProcessEnd>();
    this.ended = promise;
    this.#onEnded = (how) => {
      this.#state = 'ended';
      resolve(how);
    };
    this.#child.once('error', (error) => this.#onEnded({ code: null, signal: null, error }));
    this.#child.once('exit', (code, signal) => this.#onExit({ code, signal }));
  }

  get state(): 'booting' | 'booted' | 'ended' {
    return this.#state;
  }

  /** True once it may have begun with its task. */
  get isHandedOver(): boolean {
    return this.#handedOver;
  }

  /** Hands it its one task, as soon as it has booted. */
  run(task: ProcessTask): void {
    this.#task = task;
    if (this.#state === 'booted') this.#handOver();
  }

  /** The program can find the channel, and say anything for ever: others are to be heard in between. */
  #hear(): void {
    for (const line of this.#unheard.values().take(MESSAGES_AT_ONCE)) {
      this.#unheard.delete(line);
      const message = parse(line);
      if (message?.type === 'warm' && this.#state === 'booting') {
        this.#state = 'booted';
        this.#handOver();
        this.#onBooted();
      } else if (message !== undefined) this.listener(message);
    }
    if (this.#unheard.size > 0) this.#hearLater();
    else this.#control.resume();
  }

  #hearLater(): void {
    // All that it has left is heard together.
    if (this.#exited) return;
    this.#control.pause();
    setTimeout(() => this.#hear(), PAUSE_MS);
  }

  async #hearRest(): Promise<void> {
    for (let heard = 0; heard < LAST_WORDS && this.#unheard.size > 0; heard += MESSAGES_AT_ONCE) {
      this.#hear();
      await nextTurn();
    }
  }

  #handOver(): void {
    if (this.#task === undefined) return;
    this.#handedOver = true;
    this.#control.write(`${JSON.stringify(this.#task)}\n`);
    this.#task = undefined;
  }

  terminate(): void {
    this.#child.kill('SIGKILL');
    void this.#seeEnd();
  }

  /** For as long as somebody traces it and does not wait for it, nobody else is told of its end. */
  async #seeEnd(): Promise<void> {
    if (this.pid === undefined || this.#exited) return;
    await untilGone(new Map([[this.pid, startTimeOf(this.pid)]]), END_LIMIT_MS);
    await wait(TOLD_LIMIT_MS);
    const status = this.#exited ? undefined : waitStatusOf(this.pid);
    if (status !== undefined) this.#onExit(decoded(status));
  }

  /** It has not ended before all that it said was heard. */
  #onExit(how: ProcessEnd): void {
    if (this.#exited) return;
    this.#exited = true;
    const hearRest = () => void this.#hearRest().then(() => this.#onEnded(how));
    if (this.#control.destroyed) hearRest();
    else this.#control.once('close', hearRest).resume();
    const { bytesRead } = this.#control;
    this.#control.on('data', () => {
      if (this.#control.bytesRead - bytesRead > LAST_WORDS_BYTES) this.#control.destroy();
    });
    // A timer of a busy process may fire before it looked at the socket even once.
    setTimeout(() => setImmediate(() => this.#control.destroy()), LAST_WORDS_MS).unref();
  }
}

/** Of wait(2). */
function decoded(status: number): ProcessEnd {
  const number = status & 0x7f;
  if (number === 0) return { code: (status >> 8) & 0xff, signal: null };
  return { code: null, signal: signalName(number) ?? null };
}

function heapFlags(heapLimitMb: number | undefined): string[] {
  if (heapLimitMb === undefined) return [];
  const semiSpaceMb = Math.min(LARGEST_SEMI_SPACE_MB, Math.max(1, Math.ceil(heapLimitMb * SEMI_SPACE_SHARE)));
  return [`--max-old-space-size=${heapLimitMb}`, `--max-semi-space-size=${semiSpaceMb}`];
}

/** Undefined for what is no message: the program can find the channel. */
function parse(line: string): ProcessMessage | undefined {
  try {
    const message: unknown = JSON.parse(line);
    if (typeof message !== 'object' || message === null) return undefined;
    const { type, ...figures } = message as Record<string, unknown>;
    const known = FIGURES[String(type)];
    return known?.every((name) => isFigure(name, figures[name])) ? (message as ProcessMessage) : undefined;
  } catch {
    return undefined;
  }
}

/** Seconds, or a count of something. */
function isFigure(name: string, value: unknown): boolean {
  const isOne = name.endsWith('Seconds') ? typeof value === 'number' : Number.isInteger(value);
  return isOne && (value as number) >= 0 && (value as number) <= LARGEST_FIGURE;
}

const FIGURES: Record<string, string[]> = {
  warm: [],
  started: ['userSeconds', 'systemSeconds', 'residentBytes'],
  output: ['bits', 'dropped'],
  child: ['pid'],
  end: ['userSeconds', 'systemSeconds', 'residentBytes', 'dropped'],
} satisfies Record<ProcessMessage['type'], string[]>;
