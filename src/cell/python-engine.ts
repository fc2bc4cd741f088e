import { within } from '../within.ts';
import type { Engine, Guest, GuestEvents, StartRequest } from './engine.ts';
import type { GuestGroups } from './guest-groups.ts';
import { PythonGuest } from './python-guest.ts';
import { Zygote } from './python-zygote.ts';

/** How often a zygote may be booted: this many times within {@link BOOT_PERIOD_MS}, then it waits. */
const BOOT_INTENSITY = 5;
const BOOT_PERIOD_MS = 1_000;
/** Guests kept forked ahead at most: each holds memory, and another one is forked sooner than a client asks for it. */
const MOST_WARM = 2;
/** Guests asked of the zygote at one time, when many wait. */
const MOST_ASKED = 8;
/** How long `close` waits for killed guests before it lets go of them. */
const CLOSE_LIMIT_MS = 2_000;

/** Where the Python engine finds what it runs. */
export interface PythonEngineOptions {
  /** The interpreter: a path, or a name looked up in PATH. 3.9 or newer. */
  python: string;
  /** Absolute path of `workers/zygote.py`. */
  zygotePath: string;
  /**
   * Holds limits of memory and processes. Without them memory is only sampled, and the number of processes is not held:
   * RLIMIT_NPROC counts all processes of the user, and does not bind root.
   */
  groups?: GuestGroups | undefined;
}

/**
 * Runs Python guests as processes forked from a warm interpreter, the zygote. It is booted for the first guest, and
 * again when it dies; running guests do not depend on it. All guests of one zygote share its hash seed.
 */
export class PythonEngine implements Engine {
  readonly #options: PythonEngineOptions;
  #zygote: Zygote | undefined;
  /** Guests that wait for a zygote, or for it to have pipes for them. */
  readonly #waiting: PythonGuest[] = [];
  readonly #guests = new Set<PythonGuest>();
  #bootTimes: number[] = [];
  #bootTimer: NodeJS.Timeout | undefined;
  #spares = MOST_WARM;
  #closed = false;

  constructor(options: PythonEngineOptions) {
    this.#options = options;
  }

  start(request: StartRequest, events: GuestEvents): Guest {
    const guest = new PythonGuest(request, events, this.#options.groups, () => this.#guests.delete(guest));
    this.#guests.add(guest);
    if (this.#closed) {
      guest.fail('the Python engine is closed');
    } else if (guest.prepare()) {
      this.#waiting.push(guest);
      this.#serveWaiting();
    }
    return guest;
  }

  /** Boots the zygote when `count` is above 0, and has it keep that many guests forked ahead: 1 or 2. */
  keepWarm(count: number): void {
    this.#spares = Math.min(Math.max(count, 1), MOST_WARM);
    if (count > 0 && !this.#closed) this.#boot()?.request(this.#spares);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#bootTimer);
    for (const guest of this.#guests) guest.kill();
    await within(CLOSE_LIMIT_MS, Promise.all([...this.#guests].map((guest) => guest.ended)));
    for (const guest of this.#guests) guest.abandon();
    await this.#zygote?.close();
  }

  #serveWaiting(): void {
    while (this.#waiting.length > 0) {
      if (this.#waiting[0]?.isOver) {
        this.#waiting.shift();
        continue;
      }
      const zygote = this.#boot();
      if (zygote === undefined) return;
      let pipes: ReturnType<Zygote['takePipes']>;
      try {
        pipes = zygote.takePipes();
      } catch (error) {
        // Either the zygote died a moment ago, and its exit leads here again, or this process is out of descriptors.
        if ((error as NodeJS.ErrnoException).code === 'ENOENT' || zygote.isEnding) {
          zygote.kill();
          return;
        }
        this.#waiting.shift()?.fail(`cannot open the pipes of a Python guest: ${(error as Error).message}`);
        continue;
      }
      if (pipes === undefined) break;
      this.#waiting.shift()?.launch(zygote, pipes);
    }
    this.#zygote?.request(Math.min(this.#spares + this.#waiting.length, MOST_ASKED));
  }

  /** The zygote, booted if need be; undefined while booting has to wait, and when it fails. */
  #boot(): Zygote | undefined {
    if (this.#zygote !== undefined && !this.#zygote.exited) return this.#zygote;
    if (this.#bootTimer !== undefined) return undefined;
    const nowMs = performance.now();
    this.#bootTimes = this.#bootTimes.filter((bootMs) => nowMs - bootMs < BOOT_PERIOD_MS);
    if (this.#bootTimes.length >= BOOT_INTENSITY) {
      const waitMs = BOOT_PERIOD_MS - (nowMs - (this.#bootTimes[0] ?? nowMs));
      this.#bootTimer = setTimeout(() => {
        this.#bootTimer = undefined;
        this.#serveWaiting();
      }, waitMs);
      return undefined;
    }
    this.#bootTimes.push(nowMs);
    let zygote: Zygote;
    try {
      zygote = this.#makeZygote();
    } catch (error) {
      for (const guest of this.#waiting.splice(0)) guest.fail((error as Error).message);
      return undefined;
    }
    this.#zygote = zygote;
    return zygote;
  }

  #makeZygote(): Zygote {
    const zygote: Zygote = new Zygote(this.#options.python, this.#options.zygotePath, {
      ready: () => this.#serveWaiting(),
      spare: () => this.#serveWaiting(),
      failed: (message) => {
        for (const guest of this.#waiting.splice(0)) guest.fail(message);
      },
      gone: (setNumber) => {
        for (const guest of this.#guests) guest.onGone(zygote, setNumber);
        this.#serveWaiting(); // it may have been a spare one
      },
      exited: (failure) => {
        for (const guest of this.#guests) guest.onZygoteExit(zygote);
        if (failure !== undefined) for (const guest of this.#waiting.splice(0)) guest.fail(failure);
        else if (!this.#closed) this.#serveWaiting();
      },
    });
    return zygote;
  }
}
