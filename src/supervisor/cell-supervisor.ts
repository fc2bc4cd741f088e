import { nanoid } from 'nanoid';
import { type Actor, createActor, fromCallback } from 'xstate';
import { cellMachine, type ProcessCommand } from '../../machines/cell.ts';
import type { StopReason, Usage } from '../../machines/execution.ts';
import type { CellProgram } from '../cell-program.ts';
import type { Start } from '../gen/elide/cell/v1/cell.ts';
import { guestUmask } from '../guest-umask.ts';
import { CellProcess, type FoundCell, type GuestObserver, type HelloOptions } from './cell-process.ts';
import type { ControlGroups } from './control-groups.ts';
import { RestartIntensity } from './restart-intensity.ts';

/**
 * What kind of guests a cell runs: JavaScript in threads, JavaScript in processes, Python. A cell runs one kind, so that a
 * JavaScript heap cannot take other guests along.
 */
export type EngineKind = 'javascript' | 'process' | 'python';

/** How a session's cells are made. Durations in ms. */
export interface CellOptions {
  /** The session they are of. */
  sessionKey: string;
  /** Where sockets, tokens and logs of cells lie. */
  directory: string;
  /** How many guests share one cell of each kind: the blast radius of a crash. */
  guestsPerCell: Record<EngineKind, number>;
  /** How many contexts each session keeps booted ahead at most. */
  contextPoolSize: number;
  /** Heap limit of the contexts that are booted ahead until others are asked for; 0 for the engine's default. */
  heapLimitMb: number;
  /** What a cell of threads may hold before the guest that grew is ended, in bytes. */
  memoryBudgetBytes: number;
  controlGroups: ControlGroups;
  /** What they run. */
  program: CellProgram;
  /** The interpreter, which may be found later than the daemon starts. */
  python(): string;
  startLimitMs: number;
  idleMs: number;
  graceMs: number;
  orphanGraceMs: number;
  restart: { intensity: number; periodMs: number };
  /** A cell ended that nobody had told to. */
  onCrash(cellKey: string, message: string): void;
}

/** A place in a cell, held by one execution. */
export interface CellPlace {
  readonly cellKey: string;
  /** Of its cell. */
  readonly pid: number;
  start(request: Start, observer: GuestObserver): void;
  /** Goes on with an execution that the cell has held since an older daemon's time. */
  resume(executionKey: string, outputDir: string, observer: GuestObserver): void;
  signal(executionKey: string, signal: string, tree: boolean, stop: StopReason | undefined): void;
  /** The end of this execution is kept safe; also after the place was given back. */
  acknowledge(executionKey: string): void;
  /** What the guests of its cell use now, by execution key. */
  measure(): Promise<Map<string, Usage>>;
  /** While a guest does nothing, the same object all the time, and another one next time. */
  sleepOf(executionKey: string): object | undefined;
  killGuest(executionKey: string, reason: StopReason): void;
  /** Whether there is a reason why its cell may not tell of the end of this guest yet. */
  isHeldUp(executionKey: string): boolean;
  write(executionKey: string, data: Buffer, end: boolean, position?: number): Promise<void>;
  killCell(): void;
  /** Gives the place back; call once, when the guest is gone. */
  release(): void;
}

/** What one cell looks like from outside. */
export interface CellSummary {
  cellKey: string;
  pid: number;
  state: 'starting' | 'ready' | 'stopping';
  executions: number;
}

interface Cell {
  cellKey: string;
  kind: EngineKind;
  actor: Actor<typeof cellMachine>;
  process: CellProcess | undefined;
  /** Resolves when the cell takes starts; rejects when it is gone before. */
  ready: Promise<void>;
  /** Resolves when its process is gone. */
  exited: Promise<void>;
  /** Of a cell that was just adopted, until it is known who asks for them: the executions it holds. */
  holds: Set<string> | undefined;
  guests: number;
  /** It gets no more guests, and is let go after its last; once it is idle where that has left something to be read. */
  worn: boolean;
  /** How many contexts it keeps booted ahead at most; -1: as an older daemon said. */
  warm: number;
}

/** A cell of an older daemon, with what it was made as. */
export interface AdoptableCell extends FoundCell {
  sessionKey: string;
  kind: EngineKind;
  /** Of the control groups that it may make for its guests. */
  controllers: string[];
  build: string;
}

/** Cell keys: names of fixed length, part of a socket's path. */
const CELL_KEY_CHARS = 10;

/** After the end of a guest: how long no other one ends until warm contexts go to the cells that are the next now, in ms. */
const CALM_MS = 200;

/** Controllers that hold limits of guests which are processes. */
const LIMITING = ['memory', 'pids'] as const;

const CELL_STATES = { pending: 'starting', running: 'ready', signaled: 'stopping' } as const;

/** Starts, fills, watches and lets go the cells of one session. */
export class CellSupervisor {
  readonly #options: CellOptions;
  readonly #cells = new Set<Cell>();
  readonly #restarts: RestartIntensity;
  #closed = false;
  #calm: NodeJS.Timeout | undefined;

  constructor(options: CellOptions) {
    this.#options = options;
    this.#restarts = new RestartIntensity(options.restart);
  }

  /** How long there is no place, in ms: it would take another cell, and too many have crashed. 0: there is one. */
  waitMs(kind: EngineKind): number {
    return this.#withRoom(kind) === undefined ? this.#restarts.waitMs(performance.now()) : 0;
  }

  /**
   * A place in a ready cell, started if there is none with room: whoever asks has waited as long as {@link waitMs} says.
   * Rejects when the cell cannot be started, or when `signal` aborts.
   */
  async acquire(kind: EngineKind, signal: AbortSignal): Promise<CellPlace> {
    if (this.#closed) throw new Error('the session has no cells any more');
    const cell = this.#withRoom(kind) ?? this.#start(kind);
    const release = this.#take(cell);
    const aborted = Promise.withResolvers<never>();
    signal.addEventListener('abort', () => aborted.reject(signal.reason), { once: true });
    try {
      await Promise.race([cell.ready, aborted.promise]);
      signal.throwIfAborted();
    } catch (error) {
      release();
      throw error;
    }
    return this.#place(cell, release);
  }

  /** Takes over a cell of an older daemon. What it holds is then resumed, one by one, or dropped. */
  adopt(found: AdoptableCell): void {
    this.#start(found.kind, found);
  }

  /** The place of an execution that an adopted cell holds; undefined when none does. */
  held(executionKey: string): CellPlace | undefined {
    const cell = [...this.#cells].find(({ holds }) => holds?.has(executionKey));
    return cell && this.#place(cell, this.#take(cell));
  }

  /** Ends what adopted cells hold and nobody has asked for. `outputDirectory`: of the session. */
  dropUnknown(outputDirectory: string): void {
    for (const cell of this.#cells) {
      cell.process?.dropUnknown(outputDirectory);
      cell.holds = undefined;
      this.#letGoWorn(cell);
    }
  }

  /** Leaves every cell to the next daemon. */
  detach(): void {
    this.#closed = true;
    clearTimeout(this.#calm);
    for (const { actor, process } of this.#cells) {
      process?.detach();
      actor.stop();
    }
    this.#cells.clear();
  }

  #place(cell: Cell, release: () => void): CellPlace {
    const { actor, process, cellKey } = cell;
    if (process === undefined) throw new Error('a ready cell without a process');
    return {
      cellKey,
      pid: process.pid,
      start: (request, observer) => process.start(request, observer),
      resume: (...resumed) => process.resume(...resumed),
      signal: (executionKey, name, tree, stop) => process.signal(executionKey, name, tree, stop),
      acknowledge: (executionKey) => process.acknowledge(executionKey),
      measure: () => process.measure(),
      sleepOf: (executionKey) => process.sleepOf(executionKey),
      killGuest: (executionKey, reason) => process.killGuest(executionKey, reason),
      isHeldUp: (executionKey) => process.isHeldUp(executionKey),
      write: (...input) => process.write(...input),
      killCell: () => actor.send({ type: 'cell.kill' }),
      release,
    };
  }

  /** Every cell that is not gone. */
  summaries(): CellSummary[] {
    return [...this.#cells].map(({ cellKey, actor, guests }) => {
      const { value, context } = actor.getSnapshot();
      const state = typeof value === 'string' ? value : (Object.keys(value)[0] as keyof typeof CELL_STATES);
      return {
        cellKey,
        pid: context.pid ?? 0,
        state: CELL_STATES[state as keyof typeof CELL_STATES] ?? 'stopping',
        executions: guests,
      };
    });
  }

  /** Lets every cell go, and resolves when all are gone. Each ends within `graceMs`, or is killed. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#calm);
    const cells = [...this.#cells];
    for (const { actor } of cells) actor.send({ type: 'cell.stop' });
    await Promise.all(cells.map(({ exited }) => exited));
  }

  /** The fullest cell that has room, so that the others fall idle and are let go; of equal ones, one that is ready. */
  #withRoom(kind: EngineKind): Cell | undefined {
    let best: Cell | undefined;
    let bestScore = -1;
    for (const cell of this.#cells) {
      if (cell.kind !== kind || cell.worn || cell.guests >= this.#options.guestsPerCell[kind]) continue;
      if (cell.process?.isGone === true) continue;
      const snapshot = cell.actor.getSnapshot();
      if (!snapshot.matches('pending') && !snapshot.matches('running')) continue;
      const score = 2 * cell.guests + Number(snapshot.matches('running'));
      if (score <= bestScore) continue;
      best = cell;
      bestScore = score;
    }
    return best;
  }

  #take(cell: Cell): () => void {
    cell.guests += 1;
    cell.actor.send({ type: 'cell.acquire' });
    this.#shareWarmth(cell.kind);
    return () => {
      cell.guests -= 1;
      if (cell.actor.getSnapshot().status === 'active') cell.actor.send({ type: 'cell.release' });
      this.#letGoWorn(cell);
      this.#shareWarmthOnceCalm();
    };
  }

  #letGoWorn({ worn, holds, guests, actor, process }: Cell): void {
    // While it holds guests that were not asked for yet, it is not known whether it has a last one.
    if (!worn || holds !== undefined || guests > 0) return;
    // It takes no more guests, and falls idle like any other.
    if (process?.isBringing === true) return;
    if (actor.getSnapshot().status === 'active') actor.send({ type: 'cell.stop' });
  }

  /** While many guests end, the next executions would go to another cell each time: its contexts would all be made for nothing. */
  #shareWarmthOnceCalm(): void {
    clearTimeout(this.#calm);
    if (this.#closed) return;
    this.#calm = setTimeout(() => {
      for (const kind of new Set([...this.#cells].map((cell) => cell.kind))) this.#shareWarmth(kind);
    }, CALM_MS).unref();
  }

  /** Gives the session's warm contexts to the cells that the next executions go to: the fullest with room first. */
  #shareWarmth(kind: EngineKind): void {
    let left = this.#options.contextPoolSize;
    const cells = [...this.#cells].filter((cell) => cell.kind === kind);
    for (const cell of cells.sort((a, b) => b.guests - a.guests)) {
      // An older daemon may have let it hold more than one may hold now.
      const room = Math.max(0, this.#options.guestsPerCell[kind] - cell.guests);
      const warm = cell.worn ? 0 : Math.min(left, room);
      left -= warm;
      if (warm === cell.warm) continue;
      cell.warm = warm;
      // A cell that is not ready yet is told with its hello, or after it.
      cell.ready.then(
        () => cell.process?.keepWarm(cell.warm),
        () => {},
      );
    }
  }

  #start(kind: EngineKind, found?: AdoptableCell): Cell {
    const options = this.#options;
    const cellKey = found?.cellKey ?? nanoid(CELL_KEY_CHARS);
    const ready = Promise.withResolvers<void>();
    const exited = Promise.withResolvers<void>();
    // Nobody may be waiting when it fails.
    ready.promise.catch(() => {});
    const process = fromCallback<ProcessCommand, { cellKey: string }>(({ sendBack, receive }) => {
      const child = new CellProcess({
        cellKey,
        directory: options.directory,
        origin: found === undefined ? { hello: this.#hello(cell), main: options.program.main } : { found },
        controlGroups: options.controlGroups,
        observer: {
          spawned: (pid) => sendBack({ type: 'process.spawned', pid }),
          ready: () => {
            sendBack({ type: 'process.ready' });
            ready.resolve();
          },
          worn: () => {
            cell.worn = true;
            this.#letGoWorn(cell);
            this.#shareWarmth(kind);
          },
          exited: (message) => {
            sendBack({ type: 'process.exited', message });
            ready.reject(new Error(actor.getSnapshot().context.failure ?? message));
          },
        },
      });
      cell.process = child;
      receive((command) => (command.type === 'process.kill' ? child.kill() : child.shutdown()));
    });
    const actor = createActor(cellMachine.provide({ actors: { process } }), {
      input: { cellKey, startLimitMs: options.startLimitMs, idleMs: options.idleMs, graceMs: options.graceMs },
    });
    const cell: Cell = {
      cellKey,
      kind,
      actor,
      process: undefined,
      ready: ready.promise,
      exited: exited.promise,
      holds: found && new Set(found.executionKeys),
      guests: 0,
      worn: found !== undefined && !this.#isAsMadeNow(found),
      warm: found === undefined ? 0 : -1,
    };
    actor.subscribe({
      complete: () => {
        this.#cells.delete(cell);
        const { failure } = actor.getSnapshot().context;
        if (failure !== undefined) {
          this.#restarts.add(performance.now());
          options.onCrash(cellKey, failure);
        }
        exited.resolve();
      },
      error: (error) => {
        this.#cells.delete(cell);
        ready.reject(error);
        exited.resolve();
      },
    });
    this.#cells.add(cell);
    actor.start();
    return cell;
  }

  /**
   * Whether an adopted cell can begin guests as those made here do: it runs the same program, and has all the control groups
   * that limits of new guests are said to be held by.
   */
  #isAsMadeNow({ kind, controllers, build }: AdoptableCell): boolean {
    if (build !== this.#options.program.build) return false;
    const offered = this.#options.controlGroups.controllers;
    return kind === 'javascript' || LIMITING.every((name) => !offered.has(name) || controllers.includes(name));
  }

  #hello({ kind, warm }: Cell): HelloOptions {
    const { sessionKey, guestsPerCell, heapLimitMb, program, python, orphanGraceMs, memoryBudgetBytes } = this.#options;
    return {
      engine: kind,
      sessionKey,
      keepWarm: warm,
      heapLimitMb,
      build: program.build,
      interpreter: python(),
      zygotePath: program.zygote,
      orphanGraceMs,
      memoryBudgetBytes: BigInt(memoryBudgetBytes),
      mostGuests: guestsPerCell[kind],
      umask: guestUmask(),
    };
  }
}
