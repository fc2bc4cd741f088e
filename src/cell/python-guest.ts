import { closeSync, fstatSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { type OnReadOpts, Socket } from 'node:net';
import { constants } from 'node:os';
import { signalName } from '../../workers/javascript/shared.ts';
import { type OutputDescriptors, type OutputStream, OutputWriter } from '../../workers/output-writer.ts';
import { bytesIn, closeDestination, openDestination } from '../output/output-destination.ts';
import { childrenOf, isAlive, sendSignal, treeOf } from '../processes.ts';
import {
  type Guest,
  type GuestEvents,
  type GuestExit,
  type GuestUsage,
  NO_OUTPUT,
  type StartRequest,
} from './engine.ts';
import type { GuestGroup, GuestGroups } from './guest-groups.ts';
import { catches, GuestSignals } from './guest-signals.ts';
import { PythonUsage, type Reaped } from './python-usage.ts';
import type { GuestPipes, Zygote } from './python-zygote.ts';

/** How long a guest may take from its request to its first word. It needs a millisecond, or something stopped it. */
const START_LIMIT_MS = 10_000;
/**
 * How long output is awaited after the last process of a guest is gone. Only a descriptor given away needs it; well
 * below what force may take before the cell is killed.
 */
const DRAIN_LIMIT_MS = 50;
/** How long a zygote may take to sweep up behind a shepherd that was killed. */
const SWEEP_LIMIT_MS = 1_000;
/** What a pipe takes at once, so that most programs are handed over in one system call. */
const PIPE_BYTES = 65_536;
/** Reads after which a pipe that held no more than {@link PIPE_BYTES} is surely empty, short reads included. */
const PIPE_READS = 64;
/** Exit code of a guest that never ran. */
const START_FAILED_CODE = 1;
const NEVER_STARTED = 'its process was killed before it started';
/** What is kept of a report pipe: more than the longest report, a failure of 1,000 characters with all of them escaped. */
const REPORT_CHARS = 16_384;
/** Where in that the report of the end is looked for. */
const LAST_LINES = 10;
/** How long a stream that is only dropped is left alone between two looks. It takes 64 MB/s then, and little CPU time. */
const DROP_PAUSE_MS = 1;

/** What all guests' output passes through: it is written to the files before anything else is read. */
const outputBuffer = Buffer.alloc(PIPE_BYTES);

type ExitReport = { exited: number } & Reaped;
type StartReport = { started: number; shepherd: number; rss: number };
type Report = StartReport | { failed: string } | ExitReport;

interface Pump {
  socket: Socket;
  pipe: { fd: number; inode: number };
}

/**
 * One Python guest: pumps its output into the files, feeds its input, signals it, and turns the reports of its
 * processes into events. Waiting until {@link PythonGuest.launch}, then starting until the guest reports, then running.
 */
export class PythonGuest implements Guest {
  readonly #request: StartRequest;
  readonly #events: GuestEvents;
  readonly #groups: GuestGroups | undefined;
  readonly #onEnded: () => void;
  readonly #ended = Promise.withResolvers<void>();
  /** Resolved when input can be written, with undefined when it never can. */
  readonly #input = Promise.withResolvers<Socket | undefined>();
  #output: OutputDescriptors | undefined;
  /** Once that is closed: what was in its files then. */
  #closedAt: Record<OutputStream, number> | undefined;
  #writer: OutputWriter | undefined;
  #group: GuestGroup | undefined;
  #usage = new PythonUsage(undefined, undefined);
  #droppedBytes = 0;
  #zygote: Zygote | undefined;
  #setNumber = 0;
  #sockets: { output: Pump; error: Pump; report: Socket; request?: Socket; input?: Socket } | undefined;
  #startTimer: NodeJS.Timeout | undefined;
  readonly #signals = new GuestSignals((pid, tree) => this.#members(pid, tree));
  #reported = '';
  /** The guest's process, from its report to the report of its end. Nothing is signalled without it. */
  #pid: number | undefined;
  #shepherdPid: number | undefined;
  /** Resident set of its process before it ran anything, in KiB. */
  #startKb = 0;
  #started = false;
  #over = false;
  /** Signals asked for before there was a process. */
  #pendingSignals: [name: NodeJS.Signals, tree: boolean][] = [];
  #killed = false;
  #failure: string | undefined;
  #lookTimer: NodeJS.Timeout | undefined;
  #swept = false;
  #shepherdGone = false;
  #outputError: string | undefined;
  readonly #brokenStreams = new Set<OutputStream>();

  constructor(request: StartRequest, events: GuestEvents, groups: GuestGroups | undefined, onEnded: () => void) {
    this.#request = request;
    this.#events = events;
    this.#groups = groups;
    this.#onEnded = onEnded;
  }

  /** True from the moment its end is certain. */
  get isOver(): boolean {
    return this.#over;
  }

  /** Resolves after `exited` was told. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Puts on disk what the guest needs there, and makes its group. False when that failed, which ends the guest. */
  prepare(): boolean {
    const { executionKey, limits, writeMain, mainPath, code } = this.#request;
    try {
      this.#output = openDestination(this.#request.outputDir, this.#request.outputFiles);
      const onDropped = (count: number) => this.#onDropped(count);
      const limit = limits.outputBytes === undefined ? undefined : { bytes: limits.outputBytes, onDropped };
      this.#writer = new OutputWriter(this.#output, limit);
      if (writeMain) writeFileSync(mainPath, code, { mode: 0o600 });
      this.#group = this.#groups?.create(executionKey, limits);
      this.#usage = new PythonUsage(this.#group, limits.memoryBytes);
      return true;
    } catch (error) {
      this.fail((error as Error).message);
      return false;
    }
  }

  /** Starts it: as the guest, made by `zygote`, at the other end of `pipes`. */
  launch(zygote: Zygote, pipes: GuestPipes): void {
    this.#zygote = zygote;
    this.#setNumber = pipes.setNumber;
    this.#sockets = {
      output: this.#pump('stdout', pipes.output),
      error: this.#pump('stderr', pipes.error),
      report: readable(pipes.report),
    };
    const { report } = this.#sockets;
    report.setEncoding('utf8');
    report.on('data', (text: unknown) => this.#onReportText(report, String(text)));
    report.once('close', () => this.#onShepherdGone());
    if (this.#request.stdin) {
      this.#sockets.input = writable(pipes.input);
      this.#input.resolve(this.#sockets.input);
    } else {
      closeSync(pipes.input);
      this.#input.resolve(undefined);
    }
    this.#startTimer = setTimeout(() => {
      this.#failure = `its process did not start it within ${START_LIMIT_MS / 1000} s`;
      report.destroy(); // its shepherd takes that as the end of the cell
    }, START_LIMIT_MS);
    this.#sendRequest(pipes.request);
  }

  signal(name: NodeJS.Signals, tree = false): void {
    if (name === 'SIGKILL') this.kill();
    else if (this.#pid !== undefined) this.#signals.deliver(this.#pid, name, tree || this.#request.signalTree);
    else if (!this.#over) this.#pendingSignals.push([name, tree]);
  }

  notify(name: NodeJS.Signals): boolean {
    if (this.#pid === undefined || !catches(this.#pid, name)) return false;
    sendSignal(this.#pid, name);
    return true;
  }

  async usage(): Promise<GuestUsage> {
    const isThere = this.#pid !== undefined && this.#shepherdPid !== undefined;
    const hasRun = isThere && this.#usage.sample(this.#pid as number, this.#shepherdPid as number);
    if (hasRun && !this.#killed && this.#group?.isMaimed) this.kill();
    return this.#usageNow();
  }

  get outputBytes(): Record<OutputStream, number> {
    if (this.#closedAt !== undefined || this.#output === undefined) return this.#closedAt ?? NO_OUTPUT;
    return bytesIn(this.#output);
  }

  kill(): void {
    if (this.#over) return;
    this.#killed = true;
    if (this.#pid !== undefined) {
      sendSignal(-this.#pid, 'SIGKILL');
      // It may have stopped its shepherd, which is to sweep and report now.
      if (this.#shepherdPid !== undefined) sendSignal(this.#shepherdPid, 'SIGCONT');
    } else if (this.#zygote === undefined) {
      this.#finish({ exitCode: 128 + constants.signals.SIGKILL, signal: 'SIGKILL' });
    }
  }

  async write(data: Uint8Array, end: boolean): Promise<void> {
    const input = await this.#input.promise;
    if (input === undefined || input.destroyed || input.writableEnded) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    input.once('close', resolve); // the guest is gone: nobody will take it
    input.write(data, () => {
      input.off('close', resolve);
      resolve();
    });
    if (end) input.end();
    await promise;
  }

  /** Ends it as one that never ran. */
  fail(message: string): void {
    this.#finish({ exitCode: START_FAILED_CODE, cause: 'start_failed', message });
  }

  /** A zygote swept up behind a shepherd. */
  onGone(zygote: Zygote, setNumber: number): void {
    if (zygote !== this.#zygote || setNumber !== this.#setNumber) return;
    this.#swept = true;
    if (this.#shepherdGone) this.#finishLost();
  }

  /** A zygote will not sweep up behind anybody any more. */
  onZygoteExit(zygote: Zygote): void {
    if (zygote !== this.#zygote) return;
    this.#swept = true;
    if (this.#shepherdGone) this.#finishLost();
  }

  /** Lets go of a guest that would not end: its shepherd takes that as the end of the cell. */
  abandon(): void {
    this.#sockets?.report.destroy();
  }

  #sendRequest(fd: number): void {
    const code = Buffer.from(this.#request.code);
    const { env, args, cwd, mainPath, tmpDir, stdin } = this.#request;
    const header = Buffer.from(
      JSON.stringify({
        env,
        args,
        cwd,
        mainPath,
        tmpDir,
        stdin,
        groups: this.#group?.joinPaths ?? [],
        openFiles: this.#request.limits.openFiles,
        codeBytes: code.length,
      }),
    );
    const length = Buffer.alloc(4);
    length.writeUInt32BE(header.length);
    const head = Buffer.concat([length, header]);
    let sent = 0;
    try {
      const first = head.length + code.length <= PIPE_BYTES ? Buffer.concat([head, code]) : head;
      sent = writeSync(fd, first);
    } catch {
      // EPIPE: the zygote is gone, the report pipe tells. EAGAIN: a pipe of less room.
    }
    if (sent === head.length + code.length) {
      closeSync(fd);
      return;
    }
    const socket = writable(fd);
    if (this.#sockets !== undefined) this.#sockets.request = socket;
    if (sent < head.length) socket.write(head.subarray(sent));
    socket.end(code.subarray(Math.max(0, sent - head.length)));
  }

  #members(pid: number, tree: boolean): Set<number> {
    if (!tree || this.#shepherdPid === undefined) return new Set([pid]);
    return treeOf([pid, ...childrenOf(this.#shepherdPid)]);
  }

  #pump(stream: OutputStream, fd: number): Pump {
    const callback = (count: number, buffer: Uint8Array) => {
      this.#writeOutput(stream, buffer.subarray(0, count));
      if (this.#droppedBytes === 0) return true;
      setTimeout(() => socket.resume(), DROP_PAUSE_MS);
      return false;
    };
    const socket = readable(fd, { buffer: outputBuffer, callback });
    return { socket, pipe: { fd, inode: fstatSync(fd).ino } };
  }

  #onDropped(count: number): void {
    const isFirst = this.#droppedBytes === 0;
    this.#droppedBytes += count;
    if (isFirst) this.#events.outputExceeded();
  }

  #usageNow(): GuestUsage {
    return { ...this.#usage.last, droppedBytes: this.#droppedBytes };
  }

  /**
   * The guest goes on after a failure. The rest of that stream is dropped, so that what is in the file has no gap; where
   * files are rotated nobody counts on positions, and only what cannot be written is.
   */
  #writeOutput(stream: OutputStream, chunk: Uint8Array): void {
    if (this.#brokenStreams.has(stream)) return;
    try {
      this.#writer?.write(stream, chunk);
    } catch (error) {
      if (this.#output?.rotation === undefined) this.#brokenStreams.add(stream);
      this.#outputError ??= `output could not be written: ${(error as Error).message}`;
    }
  }

  /** A guest can get hold of the pipe, and say anything for ever: of what comes after the start only the rest is read. */
  #onReportText(report: Socket, text: string): void {
    const reported = this.#reported + text;
    this.#reported = reported.slice(-REPORT_CHARS);
    if (reported.length > REPORT_CHARS) {
      report.pause();
      setTimeout(() => report.resume(), DROP_PAUSE_MS);
    }
    const firstLength = reported.indexOf('\n') + 1;
    if (!this.#started) {
      const first = parseReport(reported.slice(0, firstLength));
      if (first !== undefined && 'started' in first) this.#onStarted(first);
      else if (first !== undefined && 'failed' in first) this.#failure ??= first.failed;
    }
    if (!this.#started || reported.length === firstLength) return;
    this.#lookTimer ??= setTimeout(() => this.#lookForShepherd(), DRAIN_LIMIT_MS).unref();
  }

  /** Somebody may have got hold of the report pipe, and keep its end from being seen; the shepherd itself is gone or not. */
  #lookForShepherd(): void {
    if (this.#over || this.#shepherdGone) return;
    if (this.#shepherdPid !== undefined && isAlive(this.#shepherdPid)) this.#lookTimer?.refresh();
    else setTimeout(() => this.abandon(), DRAIN_LIMIT_MS).unref(); // what it said last is still being read
  }

  #onExitReport(report: ExitReport): void {
    this.#pid = undefined;
    this.#signals.end();
    this.#usage.finish(report, this.#startKb);
    if (this.#started || this.#killed) this.#finish(decodeWaitStatus(report.exited));
    else this.fail(this.#failure ?? NEVER_STARTED);
  }

  /** Before any guest code, so that a guest which got hold of the pipe comes too late with what it says it is. */
  #onStarted({ started: pid, shepherd, rss }: StartReport): void {
    clearTimeout(this.#startTimer);
    this.#pid = pid;
    this.#shepherdPid = shepherd;
    this.#startKb = rss;
    this.#started = true;
    for (const [name, tree] of this.#pendingSignals) this.signal(name, tree);
    if (this.#killed) this.kill();
    const { output, error } = this.#sockets ?? {};
    const pipes = output && error && { stdout: output.pipe, stderr: error.pipe };
    this.#events.started({ pid, ...(pipes !== undefined && { pipes }) });
  }

  /** Nobody holds the report pipe, so that what was said last is the shepherd's own. Without a report of the end that is a shepherd, or a zygote, that was killed. */
  #onShepherdGone(): void {
    if (this.#over) return;
    this.#shepherdGone = true;
    this.#shepherdPid = undefined;
    const lastReports = this.#reported.split('\n').slice(-LAST_LINES).map(parseReport);
    const exit = lastReports.findLast((report) => report !== undefined && 'exited' in report);
    if (exit !== undefined) {
      this.#onExitReport(exit);
      return;
    }
    // Wait for the zygote to reap what came to it.
    if (this.#swept || this.#zygote?.exited || this.#failure !== undefined) this.#finishLost();
    else setTimeout(() => this.#finishLost(), SWEEP_LIMIT_MS);
  }

  #finishLost(): void {
    if (this.#over) return;
    if (this.#pid !== undefined) sendSignal(-this.#pid, 'SIGKILL');
    this.#pid = undefined;
    this.#signals.end();
    if (this.#started || this.#killed) this.#finish({ exitCode: 128 + constants.signals.SIGKILL, signal: 'SIGKILL' });
    else this.fail(this.#failure ?? NEVER_STARTED);
  }

  #finish(exit: GuestExit): void {
    if (this.#over) return;
    this.#over = true;
    const limited = this.#group?.isOutOfMemory
      ? { ...exit, cause: 'memory_limit' as const, message: 'the kernel killed it at its memory limit' }
      : exit;
    void this.#group?.remove();
    clearTimeout(this.#startTimer);
    this.#usage.close();
    this.#input.resolve(undefined);
    void this.#drain().then(() => {
      this.#writer?.close();
      this.#closedAt = this.outputBytes;
      if (this.#output !== undefined) closeDestination(this.#output);
      this.#onEnded();
      const message = limited.message ?? this.#outputError;
      this.#events.exited({
        ...limited,
        ...(message !== undefined && { message }),
        ...(this.#started && { usage: this.#usageNow() }),
      });
      this.#ended.resolve();
    });
  }

  /** Resolves when all output is in the files; every process that could write is gone. */
  async #drain(): Promise<void> {
    if (this.#sockets === undefined) return;
    const { output, error, report, request, input } = this.#sockets;
    for (const socket of [report, request, input]) socket?.destroy();
    await Promise.all([this.#drainStream('stdout', output), this.#drainStream('stderr', error)]);
  }

  /** Resolves at the stream's end of file; gives up on one that somebody else still holds. */
  async #drainStream(stream: OutputStream, { socket, pipe }: Pump): Promise<void> {
    if (socket.closed) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    socket.once('close', () => resolve());
    const timer = setTimeout(() => {
      // A timer of a busy process may fire before it looked at the pipe even once.
      if (!socket.readableEnded && !socket.destroyed) this.#readRest(stream, pipe.fd);
      socket.destroy();
    }, DRAIN_LIMIT_MS);
    await promise;
    clearTimeout(timer);
  }

  #readRest(stream: OutputStream, fd: number): void {
    const chunk = Buffer.alloc(PIPE_BYTES);
    try {
      // Bounded: whoever still holds the other end may never stop writing.
      for (let reads = 0; reads < PIPE_READS; reads++) {
        const count = readSync(fd, chunk);
        if (count === 0) return;
        this.#writeOutput(stream, chunk.subarray(0, count));
      }
    } catch {
      // EAGAIN: nothing is left
    }
  }
}

function readable(fd: number, onread?: OnReadOpts): Socket {
  const socket = new Socket({ fd, readable: true, writable: false, ...(onread !== undefined && { onread }) });
  socket.on('error', () => {}); // its close tells all there is to tell
  return socket;
}

/** Undefined for what the shepherd would not have said: a guest of the same user can reach the pipe. */
function parseReport(line: string): Report | undefined {
  try {
    const report: unknown = JSON.parse(line);
    if (typeof report !== 'object' || report === null) return undefined;
    const { failed, ...figures } = report as Record<string, unknown>;
    const known =
      'started' in figures ? ['started', 'shepherd', 'rss'] : ['exited', 'user', 'system', 'maxrss', 'blocks'];
    const isWhole = known.every((name) => Number.isFinite(figures[name]));
    return typeof failed === 'string' || isWhole ? (report as Report) : undefined;
  } catch {
    return undefined;
  }
}

function writable(fd: number): Socket {
  const socket = new Socket({ fd, readable: false, writable: true });
  socket.on('error', () => {}); // EPIPE: a guest may close its input, or end
  return socket;
}

function decodeWaitStatus(status: number): GuestExit {
  const number = status & 0x7f;
  if (number === 0) return { exitCode: (status >> 8) & 0xff };
  const signal = signalName(number);
  return { exitCode: 128 + number, ...(signal !== undefined && { signal }) };
}
