import type { ChildProcess } from 'node:child_process';
import { closeSync, openSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { nanoid } from 'nanoid';
import type { LostReason, StopReason, Usage } from '../../machines/execution.ts';
import { CELL_FLAGS } from '../cell-flags.ts';
import type { Moment } from '../clock.ts';
import {
  type Usage as CellUsage,
  type Exited,
  FromCell,
  type Hello,
  type Pipe,
  type Start,
  type Started,
  ToCell,
} from '../gen/elide/cell/v1/cell.ts';
import { HEAP_EXHAUSTED } from '../heap-exhausted.ts';
import { PipeRemains } from '../output/pipe-remains.ts';
import { broughtBy, hasSpool, removeSpool } from '../output/spool.ts';
import {
  endSessionOf,
  isSameProcess,
  killTrees,
  type Processes,
  processName,
  sendSignal,
  startTimeOf,
  untilGone,
} from '../processes.ts';
import { removeFile } from '../remove-tree.ts';
import { withDescriptor } from '../spare-descriptor.ts';
import { spawnChild } from '../spawn-child.ts';
import { readEndRecord } from '../wire/end-record.ts';
import { bigintOf } from '../wire/execution-configuration.ts';
import { FramedSocket, PROTOCOL_VERSION } from '../wire/framing.ts';
import { readProcessRecord } from '../wire/process-record.ts';
import { within } from '../within.ts';
import { CellSleep } from './cell-sleep.ts';
import { type GuestEnd, guestEndOf, refusalOf, usageOf } from './cell-words.ts';
import type { CellGroups, ControlGroups } from './control-groups.ts';
import { lastWordsOf, readTail, threadOf } from './last-words.ts';
import { StartsUnderWay } from './starts-under-way.ts';

/** How long a cell may take to say what its guests use, in ms. */
const MEASURE_LIMIT_MS = 500;

/** Of what was killed with a guest so many are looked at in one go, 25 µs each: a guest may have started thousands. */
const KILLED_AT_ONCE = 256;

/** What a guest of a cell reports to the daemon. */
export interface GuestObserver {
  started(info: { pid: number; process: string | undefined; at: Moment }): void;
  /**
   * It passed a limit; one line for people. Beyond `memory` and `output` the cell has begun to force it. An older daemon
   * may have heard it too.
   */
  limitReached(limit: GuestLimit, message: string, at: Moment): void;
  /** Its thread or process is gone; its end comes when all is that it has left behind. */
  gone(): void;
  exited(end: GuestEnd): void;
  /** The cell is gone, and the guest, processes included, with it. `usage` is what was seen last. */
  lost(reason: LostReason, message: string, usage: Usage | undefined): void;
}

/** Limits that a cell watches. */
type GuestLimit = 'cpu' | 'memory' | 'memory_soft' | 'output';

/** What the cell's own supervisor hears. */
export interface CellObserver {
  spawned(pid: number): void;
  ready(): void;
  /** It should get no more guests. */
  worn(): void;
  /** The process is gone; called once. */
  exited(message: string): void;
}

export type HelloOptions = Omit<Hello, 'token' | 'protocolVersion' | 'cgroups' | 'cgroupVersion'>;

/** The files of a cell. */
export function cellFiles(directory: string, cellKey: string) {
  const base = join(directory, cellKey);
  return {
    socket: `${base}.sock`,
    token: `${base}.token`,
    log: `${base}.log`,
    report: `${base}.report`,
    ends: `${base}.ends`,
    /** See `ProcessRecord`. */
    guests: `${base}.guests`,
    /** Names the cell's process for good: see `processName`. */
    process: `${base}.process`,
  };
}

/** A cell of an older daemon that has let itself be claimed. */
export interface FoundCell {
  cellKey: string;
  pid: number;
  startTime: string;
  connection: FramedSocket<FromCell, ToCell>;
  /** The executions it holds. */
  executionKeys: string[];
  /** What it has said beyond its welcome; taken from here once it is taken over. */
  said: FromCell[];
}

/** `main` is the program to start, `hello` what it is made as. */
type CellOrigin = { found: FoundCell } | { hello: HelloOptions; main: string };

/** Where a guest's output goes. */
type Destination = Pick<Start, 'outputDir'> & Partial<Pick<Start, 'outputFiles'>>;

interface RemoteGuest extends Destination {
  observer: GuestObserver;
  /** Its output goes into pipes of the caller's, or may: that is not known of an older daemon's guest. */
  piped: boolean;
  pid: number;
  /** Names a guest that is a process for good: see `processName`. */
  process: string | undefined;
  /** Node's id of a guest that is a thread; 0 otherwise. */
  thread: number;
  /** What it had started and was killed with it: it does not end before. Who was seen to be gone is left out. */
  killed: Map<number, string | undefined>;
  /** What it used when the cell was asked last. */
  usage: Usage | undefined;
  /** What the cell has not read yet of the output of a guest that is a process. */
  remains: PipeRemains | undefined;
  /** One for each input that the guest has not taken yet, oldest first. */
  inputs: ((refused?: Error) => void)[];
}

/** The daemon's side of one cell: starts the process, speaks its protocol, and says when it is gone. */
export class CellProcess {
  readonly #guests = new Map<string, RemoteGuest>();
  readonly #observer: CellObserver;
  readonly #files: ReturnType<typeof cellFiles>;
  readonly #cellKey: string;
  readonly #controlGroups: ControlGroups;
  #groups: CellGroups = { version: 0, cgroups: {} };
  readonly #token = nanoid(32);
  #child: ChildProcess | undefined;
  /** Names the process for good; 0 and empty before there is one. */
  #pid = 0;
  #startTime: string | undefined = '';
  /** The same, over every start of the machine: see `processName`. */
  #name: string | undefined;
  /** What an adopted cell holds and nobody here has asked for yet, with what it said of it, by execution. */
  #early: Map<string, NonNullable<FromCell['body']>[]> | undefined;
  #connection: FramedSocket<FromCell, ToCell> | undefined;
  #ready = false;
  #measuring: Promise<Map<string, Usage>> | undefined;
  #measured = () => {};
  readonly #sleep: CellSleep;
  readonly #starts = new StartsUnderWay();
  /** Executions whose end was told and is not kept safe yet: until then a later daemon may need the cell's record. */
  readonly #unacknowledged = new Set<string>();
  /** Output directories of guests that were ended by force, whose cell may still bring what is left to their readers. */
  readonly #bringing = new Set<string>();
  /** Processes that were killed with the cell. */
  #killed: Processes = new Map();
  /** Node's ids of the guests that have ended: one whose end was told may still make V8 abort the process. */
  readonly #endedThreads = new Set<number>();
  #gone = false;
  /** Left to the next daemon: what its process keeps is no longer this one's to remove. */
  #detached = false;

  /** Starts the process, or takes over one that was found. `directory` exists, is 0700 and short enough for a socket's path. */
  constructor(options: {
    cellKey: string;
    directory: string;
    origin: CellOrigin;
    controlGroups: ControlGroups;
    observer: CellObserver;
  }) {
    const { origin } = options;
    this.#files = cellFiles(options.directory, options.cellKey);
    this.#cellKey = options.cellKey;
    this.#controlGroups = options.controlGroups;
    this.#observer = options.observer;
    this.#sleep = new CellSleep({
      guests: this.#guests,
      pid: () => this.#pid,
      usageFile: () => this.#controlGroups.usageFile(this.#cellKey),
      wake: (executionKeys) => this.#send({ $case: 'wake', value: { executionKeys } }),
    });
    if ('found' in origin) {
      this.#takeOver(origin.found);
      return;
    }
    // A throw here would reach the machine as an error; a cell that cannot start is a cell that exited.
    try {
      this.#spawn(origin);
    } catch (error) {
      // There may be a process already.
      this.kill();
      queueMicrotask(() => this.#exited(`did not start: ${(error as Error).message}`));
    }
  }

  /** 0 before there is one. */
  get pid(): number {
    return this.#pid;
  }

  /** True from the end of the process on, also while what was below it is still seen to its end; and once it was left. */
  get isGone(): boolean {
    return this.#gone;
  }

  /** Whether it still brings what guests that were ended by force have left to their readers. */
  get isBringing(): boolean {
    this.#dropBrought();
    return this.#bringing.size > 0;
  }

  /** Runs a guest; its end reaches the observer, whatever happens to the cell. The cell must be ready. */
  start(request: Start, observer: GuestObserver): void {
    if (this.#gone) {
      observer.lost('cell_lost', 'the cell was gone before the guest started', undefined);
      return;
    }
    this.#wake();
    this.#sleep.onStart();
    // First: what cannot be put into words is no guest.
    this.#send({ $case: 'start', value: request });
    this.#observe(request.executionKey, request, observer, request.outputFiles?.maxFiles === 0);
    this.#starts.sent(request.executionKey, request.code);
  }

  /** Goes on with a guest that the cell has held since an older daemon's time; what it has said since is told at once. */
  resume(executionKey: string, outputDir: string, observer: GuestObserver): void {
    this.#observe(executionKey, { outputDir }, observer, true);
    const early = this.#early?.get(executionKey) ?? [];
    this.#early?.delete(executionKey);
    for (const body of early) this.#hear(body);
    if (!this.#gone) return;
    removeSpool(outputDir);
    if (this.#guests.delete(executionKey)) observer.lost('cell_lost', 'the cell is gone', undefined);
  }

  /**
   * Ends what an adopted cell holds and nobody here knows. Of others than its guests it brings what is left since an older
   * daemon's time. `outputDirectory`: of its session.
   */
  dropUnknown(outputDirectory: string): void {
    const ofGuests = new Set(Iterator.from(this.#guests.values()).map(({ outputDir }) => outputDir));
    for (const left of broughtBy(this.#pid, outputDirectory).difference(ofGuests)) this.#bringing.add(left);
    for (const executionKey of this.#early?.keys() ?? []) {
      this.killGuest(executionKey, 'session_closed');
      this.acknowledge(executionKey);
    }
    this.#early = undefined;
  }

  /** The end of this execution is kept safe: the cell may forget it. */
  acknowledge(executionKey: string): void {
    this.#unacknowledged.delete(executionKey);
    this.#dropEnds();
    this.#send({ $case: 'acknowledge', value: { executionKey } });
  }

  /** With `stop`, its reason, the signal begins a stop, and is delivered once however often it is said. */
  signal(executionKey: string, signal: string, tree: boolean, stop: StopReason | undefined): void {
    this.#sleep.rouse(executionKey);
    const value = { executionKey, signal, tree, stop: stop !== undefined, reason: stop ?? '' };
    this.#send({ $case: 'signal', value });
  }

  /** While a guest sleeps the same object all the time, and another one in its next sleep. */
  sleepOf(executionKey: string): object | undefined {
    return this.#sleep.of(executionKey);
  }

  /**
   * What every guest uses now, by execution key. Callers at one time share one answer. Resolves with what was seen last
   * when the cell does not answer within {@link MEASURE_LIMIT_MS}, or is gone.
   */
  measure(): Promise<Map<string, Usage>> {
    this.#measuring ??= this.#measure().finally(() => {
      this.#measuring = undefined;
    });
    return this.#measuring;
  }

  async #measure(): Promise<Map<string, Usage>> {
    // What the cell has told of a guest that dozes is true as long as that does not wake.
    this.#sleep.look();
    const isAwake = (executionKey: string) => this.sleepOf(executionKey) === undefined;
    if (this.#ready && !this.#gone && Iterator.from(this.#guests.keys()).some(isAwake)) {
      const answered = Promise.withResolvers<void>();
      this.#measured = answered.resolve;
      this.#send({ $case: 'measure', value: { request: 0 } });
      await within(MEASURE_LIMIT_MS, answered.promise);
    }
    const seen = [...this.#guests].flatMap(([executionKey, { usage }]) =>
      usage ? [[executionKey, usage] as const] : [],
    );
    return new Map(seen);
  }

  /** Ends a guest by force; `reason` is that of the stop it belongs to. */
  killGuest(executionKey: string, reason: StopReason): void {
    this.#wake();
    this.#send({ $case: 'kill', value: { executionKey, reason } });
  }

  /** Appends to a guest's input; resolves when its pipe took it, or when the guest is gone. Rejects where it is refused. */
  write(executionKey: string, data: Buffer, end: boolean, position?: number): Promise<void> {
    const guest = this.#guests.get(executionKey);
    if (guest === undefined) return Promise.resolve();
    const at = bigintOf(position, 'position');
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    guest.inputs.push((refused) => (refused === undefined ? resolve() : reject(refused)));
    this.#sleep.rouse(executionKey);
    this.#send({ $case: 'input', value: { executionKey, data, end, position: at } });
    return promise;
  }

  /** Whether there is a reason why the cell may not tell of the end of this guest yet. */
  isHeldUp(executionKey: string): boolean {
    if (this.#starts.mayHoldUp) return true;
    const killed = this.#guests.get(executionKey)?.killed ?? new Map<number, string | undefined>();
    for (const [pid, startTime] of killed.entries().take(KILLED_AT_ONCE)) {
      if (isSameProcess(pid, startTime)) return true;
      killed.delete(pid);
    }
    return killed.size > 0;
  }

  /** How many contexts the cell is to keep booted ahead at most, from now on. */
  keepWarm(count: number): void {
    this.#send({ $case: 'keepWarm', value: { count } });
  }

  /** Asks the cell to end its guests and itself. */
  shutdown(): void {
    if (this.#connection === undefined) this.kill();
    else this.#send({ $case: 'shutdown', value: {} });
  }

  /** Ends the process and all below it: what its guests started would outlive it. Confirmed by `exited`. */
  kill(): void {
    if (!this.#gone && this.#isRunning()) this.#killed = killTrees([this.#pid]);
  }

  /** Leaves the process to the next daemon. */
  detach(): void {
    this.#gone = true;
    this.#detached = true;
    this.#sleep[Symbol.dispose]();
    this.#connection?.destroy();
    for (const { remains } of this.#guests.values()) remains?.close();
    this.#child?.unref();
  }

  #observe(executionKey: string, to: Destination, observer: GuestObserver, piped: boolean): void {
    const { outputDir, outputFiles } = to;
    const unknown = { pid: 0, process: undefined, thread: 0, usage: undefined, remains: undefined };
    const own = { outputDir, outputFiles, piped, observer };
    this.#guests.set(executionKey, { ...unknown, ...own, killed: new Map(), inputs: [] });
  }

  #isRunning(): boolean {
    if (this.#pid === 0) return false;
    const { exitCode, signalCode } = this.#child ?? {};
    return this.#child === undefined ? isSameProcess(this.#pid, this.#startTime) : (exitCode ?? signalCode) === null;
  }

  #takeOver({ pid, startTime, connection, executionKeys, said }: FoundCell): void {
    this.#early = new Map(executionKeys.map((executionKey) => [executionKey, []]));
    this.#pid = pid;
    this.#startTime = startTime;
    this.#name = processName(pid, startTime);
    this.#ready = true;
    this.#controlGroups.adopt(this.#cellKey);
    this.#listen(connection);
    for (const { body } of said) if (body) this.#hear(body);
    queueMicrotask(() => {
      this.#observer.spawned(pid);
      this.#observer.ready();
    });
  }

  /** To nobody's child here the kernel says nothing of its end. */
  async #awaitEnd(): Promise<void> {
    await untilGone(new Map([[this.#pid, this.#startTime]]));
    this.#exited('ended');
  }

  #spawn({ hello, main }: Extract<CellOrigin, { main: string }>): void {
    writeFileSync(this.#files.token, this.#token, { mode: 0o600 });
    const log = openSync(this.#files.log, 'a', 0o600);
    try {
      const flags = [...CELL_FLAGS, `--report-filename=${this.#files.report}`];
      const child = spawnChild(process.execPath, [...flags, main, this.#files.socket, this.#files.token], {
        // Common to its threads, which add-ons and SQL take relative paths from: nobody can make a file there.
        cwd: '/proc',
        detached: true,
        env: {},
        stdio: ['ignore', 'pipe', log],
      });
      this.#child = child;
      child.once('error', (error) => this.#exited(`did not start: ${error.message}`));
      child.once('exit', (code, signal) => this.#exited(signal ? `ended by ${signal}` : `exited with code ${code}`));
      child.stdout?.once('data', () => {
        child.stdout?.destroy();
        if (!this.#detached) this.#connect(hello);
      });
      if (child.pid !== undefined) {
        const { pid } = child;
        this.#pid = pid;
        this.#startTime = startTimeOf(pid);
        this.#name = processName(pid, this.#startTime);
        withDescriptor(() => writeFileSync(this.#files.process, this.#name ?? '', { mode: 0o600 }));
        // From its first moment on. Without them what is said to hold its guests' limits would not.
        this.#groups = this.#controlGroups.add(this.#cellKey, pid);
        queueMicrotask(() => this.#observer.spawned(pid));
      }
    } finally {
      closeSync(log);
    }
  }

  #connect(hello: HelloOptions): void {
    const connection = new FramedSocket<FromCell, ToCell>(connect(this.#files.socket), FromCell, ToCell);
    this.#listen(connection);
    const { version, cgroups } = this.#groups;
    const groups = { cgroupVersion: version, cgroups };
    const own = { protocolVersion: PROTOCOL_VERSION, token: this.#token, ...groups };
    const value = { ...hello, ...own };
    connection.send({ body: { $case: 'hello', value } });
  }

  #listen(connection: FramedSocket<FromCell, ToCell>): void {
    this.#connection = connection;
    connection.removeAllListeners();
    connection.on('message', ({ body }) => body && this.#hear(body));
    connection.on('close', () => this.#disconnected());
    if (connection.isClosed) queueMicrotask(() => this.#disconnected());
  }

  /** A cell whose channel is gone can neither be told nor believed: its end is the truth. */
  #disconnected(): void {
    this.kill();
    if (this.#child === undefined && !this.#gone) void this.#awaitEnd();
  }

  #hear(body: NonNullable<FromCell['body']>): void {
    switch (body.$case) {
      case 'welcome':
        break;
      case 'ready':
        if (this.#ready) break;
        this.#ready = true;
        this.#observer.ready();
        break;
      case 'worn':
        this.#observer.worn();
        break;
      case 'started': {
        const { executionKey, pid, thread, atMs, monotonicMs } = body.value;
        this.#starts.answered(executionKey);
        const guest = this.#guests.get(executionKey);
        if (guest === undefined) {
          this.#keepEarly(executionKey, body);
          break;
        }
        guest.pid = pid;
        guest.process = pid > 0 ? processName(pid) : undefined;
        guest.thread = thread;
        guest.outputFiles ??= body.value.outputFiles;
        guest.remains = this.#remainsOf(body.value);
        guest.observer.started({ pid, process: guest.process, at: { atMs, monotonicMs } });
        break;
      }
      case 'killed': {
        const { executionKey, pids, startTimes } = body.value;
        const guest = this.#guests.get(executionKey);
        if (guest === undefined) this.#keepEarly(executionKey, body);
        else guest.killed = new Map(pids.map((pid, at) => [pid, startTimes[at]]));
        break;
      }
      case 'gone': {
        const { executionKey } = body.value;
        const guest = this.#guests.get(executionKey);
        if (guest === undefined) this.#keepEarly(executionKey, body);
        else guest.observer.gone();
        break;
      }
      case 'exited':
        if (this.#guests.has(body.value.executionKey)) this.#guestExited(body.value);
        else this.#keepEarly(body.value.executionKey, body);
        break;
      case 'limitReached': {
        const { executionKey, limit, message, atMs, monotonicMs } = body.value;
        const guest = this.#guests.get(executionKey);
        if (guest === undefined) this.#keepEarly(executionKey, body);
        else guest.observer.limitReached(limit as GuestLimit, message, { atMs, monotonicMs });
        break;
      }
      case 'measured':
        this.#note(body.value.usages);
        this.#measured();
        break;
      case 'dozing':
        this.#note(body.value.usages);
        this.#sleep.begin(body.value.executionKeys, new Set(body.value.usages.map((usage) => usage.executionKey)));
        break;
      case 'inputTaken':
        this.#guests.get(body.value.executionKey)?.inputs.shift()?.(refusalOf(body.value));
        break;
    }
  }

  #note(usages: CellUsage[]): void {
    for (const usage of usages) {
      const guest = this.#guests.get(usage.executionKey);
      if (guest !== undefined) guest.usage = usageOf(usage);
    }
  }

  #keepEarly(executionKey: string, body: NonNullable<FromCell['body']>): void {
    this.#early?.set(executionKey, [...(this.#early.get(executionKey) ?? []), body]);
  }

  /** Removes the record of a cell that is gone, once nothing in it is needed. */
  #dropEnds(): void {
    if (this.#gone && !this.#detached && this.#unacknowledged.size === 0) removeFile(this.#files.ends);
  }

  /** Oldest first, as far as to one that is still on its way: however many there are, each end looks at few. */
  #dropBrought(): void {
    for (const outputDir of this.#bringing) {
      if (hasSpool(outputDir)) return;
      this.#bringing.delete(outputDir);
    }
  }

  #guestExited(exited: Exited): void {
    const guest = this.#guests.get(exited.executionKey);
    if (guest === undefined) return;
    this.#guests.delete(exited.executionKey);
    this.#starts.answered(exited.executionKey);
    this.#sleep.onExit(exited.executionKey);
    if (guest.thread > 0) this.#endedThreads.add(guest.thread);
    guest.remains?.close();
    for (const taken of guest.inputs) taken();
    this.#unacknowledged.add(exited.executionKey);
    this.#dropBrought();
    if (guest.piped && exited.stopRung === 'forced') this.#bringing.add(guest.outputDir);
    guest.observer.exited(guestEndOf(exited));
  }

  /** The process is gone: so are its threads. What is left of processes below it is seen to its end before it counts. */
  #exited(how: string): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#sleep[Symbol.dispose]();
    this.#connection?.destroy();
    const log = readTail(this.#files.log);
    // Its last words may not have been heard.
    for (const exited of readEndRecord(this.#files.ends)) this.#hear({ $case: 'exited', value: exited });
    const isExhausted = HEAP_EXHAUSTED.test(log);
    const exhausted = isExhausted ? threadOf(readTail(this.#files.report)) : undefined;
    const handed = readProcessRecord(this.#files.guests);
    const { ends: _, ...files } = this.#files;
    for (const file of Object.values(files)) removeFile(file);
    this.#dropEnds();
    const why = isExhausted ? 'the heap of an execution reached its limit' : lastWordsOf(log);
    const message = `the cell ${how}${why === '' ? '' : `: ${why}`}`;
    const guests = [...this.#guests.values()];
    // Of a thread that no guest is, the only one there has started it; one whose guest has ended is nobody's.
    const isNested = exhausted !== undefined && guests.length === 1 && !this.#endedThreads.has(exhausted);
    this.#guests.clear();
    for (const { inputs } of guests) for (const taken of inputs) taken();
    // What ran away from all of that is still in the cell's control group.
    const swept = Promise.all([
      untilGone(this.#killed),
      this.#name && endSessionOf(this.#name),
      ...handed.map(endSessionOf),
    ]).then(() => this.#controlGroups.remove(this.#cellKey));
    const ends = guests.map(async ({ process, thread, usage, observer, remains, outputDir, outputFiles, piped }) => {
      // A session of its own; and it may be gone, and what it has started not.
      await Promise.all([swept, process && endSessionOf(process)]);
      remains?.save(outputDir, outputFiles);
      remains?.close();
      if (piped) removeSpool(outputDir);
      const grew = thread === exhausted || isNested;
      if (grew) observer.lost('memory_exceeded', `its heap reached its limit: the cell ${how}`, usage);
      else observer.lost('cell_lost', message, usage);
    });
    void Promise.all([swept, ...ends]).then(() => {
      for (const outputDir of this.#bringing) removeSpool(outputDir);
      this.#observer.exited(message);
    });
  }

  #remainsOf({ stdout, stderr }: Started): PipeRemains | undefined {
    if (stdout === undefined || stderr === undefined) return undefined;
    const pipeOf = ({ fd, inode }: Pipe) => ({ fd, inode: Number(inode) });
    return new PipeRemains(this.#pid, { stdout: pipeOf(stdout), stderr: pipeOf(stderr) });
  }

  /** A guest can stop the process it runs in, which then hears nothing. */
  #wake(): void {
    if (!this.#gone && this.#isRunning()) sendSignal(this.#pid, 'SIGCONT');
  }

  #send(body: NonNullable<ToCell['body']>): void {
    this.#connection?.send({ body });
  }
}
