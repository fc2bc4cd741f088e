import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { bootId, now } from '../clock.ts';
import {
  Exited,
  FromCell,
  Hello,
  type Killed,
  type LimitReached,
  type Pipe,
  type Start,
  type Started,
  ToCell,
  type Usage,
} from '../gen/elide/cell/v1/cell.ts';
import { JAVASCRIPT_PROCESS, JAVASCRIPT_WORKER } from '../package-root.ts';
import { processName, zombiesOf } from '../processes.ts';
import { removeFile } from '../remove-tree.ts';
import { keepDescriptor } from '../spare-descriptor.ts';
import { EndRecord } from '../wire/end-record.ts';
import { FramedSocket, PROTOCOL_VERSION, TO_CELL_BYTES } from '../wire/framing.ts';
import { ProcessRecord } from '../wire/process-record.ts';
import { type Engine, type Guest, type GuestLimits, type GuestUsage, NO_OUTPUT, type StartRequest } from './engine.ts';
import { GuestGroups } from './guest-groups.ts';
import { GuestInput, type InputAnswer } from './guest-input.ts';
import { Meter } from './meter.ts';
import { OutputPipes } from './output-pipes.ts';

/**
 * The cell process: listens on its own socket, obeys whoever brings the token, and runs the guests of one session on one
 * engine. It keeps its guests when the daemon goes, and ends with them when no daemon comes back in time.
 */

const [socketPath, tokenPath] = process.argv.slice(2);
if (socketPath === undefined || tokenPath === undefined) throw new TypeError('usage: main SOCKET TOKEN_FILE');
/** The cell's files are beside its socket. */
const fileOf = (ending: string) => socketPath.replace(/\.sock$/, ending);

/** How long a cell that no daemon ever spoke to lives, in ms. */
const UNCLAIMED_MS = 30_000;

/** How long a connection may be without the token, in ms, and its longest frame until it has shown that, in bytes. */
const HELLO_LIMIT_MS = 10_000;
const HELLO_BYTES = 64 * 1024;

/** How long a cell without guests and without a daemon lives at most, in ms. */
const EMPTY_GRACE_MS = 10_000;

/** How long the engine may take to end its guests before the cell ends with them, in ms. */
const CLOSE_LIMIT_MS = 1_000;

/** How long a reader may hold up the end of a guest that was ended by force, in ms; the daemon waits a little longer. */
const FORCED_OUTPUT_MS = 100;

/**
 * A child that outlives the thread which started it is killed, and stays a zombie: Node waits for it only from that
 * thread. So many of them a cell may collect, looked for at this distance, before it asks to be let go.
 */
const MOST_ZOMBIES = 64;
const WEAR_LOOK_MS = 1_000;

/**
 * Threads share the pool of threads in which Node opens and reads files, looks up names and computes keys: for each, as
 * many as a process of its own would have, and in all no more than libuv takes.
 */
const POOL_THREADS = 4;
const MOST_POOL_THREADS = 1_024;

/**
 * Signals that would end it, but for those that tell of a fault of its own. A child of a thread has the cell for its parent,
 * and sends it what is meant for that thread's program; a daemon's terminal must not reach its cells, a log that is gone
 * must not end them, and with SIGUSR1 Node would open a debugger to whoever is on this machine.
 */
const IGNORED = [
  ...(['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGPIPE', 'SIGALRM'] as const),
  ...(['SIGVTALRM', 'SIGPROF', 'SIGIO', 'SIGPWR'] as const),
];

/** Of what is said of an end, in characters: an error may be a guest's own. */
const LONGEST_MESSAGE = 8_192;

// Its guests are looked at, and brought to their ends, also when they have taken every descriptor.
keepDescriptor();
// What names of processes are made of is read now, and kept: later there may be no descriptor for it, nor the one above.
processName(process.pid);
const token = readFileSync(tokenPath, 'utf8');
const guests = new Map<string, RunningGuest>();
/** What the daemon was told of each guest last, and what the guest said then. */
const told = new Map<string, { measured: GuestUsage; usage: Usage }>();
/** Output of guests that are gone, on its way into their callers' pipes. */
const bringing = new Set<Promise<void>>();
/** Ends that no daemon has acknowledged. */
const ends = new EndRecord(fileOf('.ends'));
/** Those of guests that outlive their cell. */
const processes = new ProcessRecord(fileOf('.guests'));
/** What the cell was made as: the first greeting. */
let made = Hello.create();
let engine: Engine | undefined;
let meter: Meter | undefined;
let daemon: FramedSocket<ToCell, FromCell> | undefined;
let orphanTimer = setTimeout(shutdown, UNCLAIMED_MS);
let orphanGraceMs = UNCLAIMED_MS;
/** Why guests are killed that nobody stops; for people. */
let killedFor = '';
let looksForWear = false;
let worn = false;
/** It stands by, its engine in the making. */
let claiming: Promise<void> | undefined;

interface RunningGuest {
  guest: Guest;
  started: Started | undefined;
  killed: Killed | undefined;
  isGone: boolean;
  /** The limits it has passed: a later daemon has not heard, and the one that has may not have written it down. */
  passed: LimitReached[];
  input: GuestInput;
  /** Of the stop under way: why, and how far it has come. */
  stop: { reason: string; rung: 'graceful' | 'forced' } | undefined;
  /** Resolved a moment after the first use of force. */
  forced: PromiseWithResolvers<void>;
}

for (const signal of IGNORED) process.on(signal, () => {});
process.on('SIGTERM', () => {
  // A daemon ends its cells itself; from whom else this comes, nobody can tell.
  if (daemon === undefined) giveUp('the cell was sent SIGTERM while there was no daemon');
});

const server = createServer((socket) => accept(socket));
server.listen(socketPath, () => {
  chmodSync(socketPath, 0o600);
  writeSync(1, 'ready\n');
  // Nobody reads more of it. A guest could make a socket of a pipe, and close it.
  closeSync(1);
  openSync('/dev/null', 'r+');
});

function accept(socket: Socket): void {
  const connection = new FramedSocket<ToCell, FromCell>(socket, ToCell, FromCell);
  // Guests of other cells can connect as well.
  connection.maxFrameBytes = HELLO_BYTES;
  const limit = setTimeout(() => connection !== daemon && connection.destroy(), HELLO_LIMIT_MS);
  connection.on('message', ({ body }) => {
    if (connection === daemon) {
      if (body !== undefined) obey(body);
    } else if (body?.$case === 'hello' && body.value.token === token) {
      claim(connection, body.value).catch((error: Error) => connection.destroy(error));
    } else {
      connection.destroy(new Error('not the daemon'));
    }
  });
  connection.on('close', () => {
    clearTimeout(limit);
    if (connection !== daemon) return;
    daemon = undefined;
    if (meter !== undefined) meter.mayDoze = false;
    waitForDaemon();
  });
}

/** Without a daemon, a cell with guests waits for the next one; the ends of those that are gone lie on disk for it. */
function waitForDaemon(): void {
  clearTimeout(orphanTimer);
  const limitMs = guests.size === 0 ? Math.min(orphanGraceMs, EMPTY_GRACE_MS) : orphanGraceMs;
  orphanTimer = setTimeout(giveUp, limitMs, `no daemon came back within ${orphanGraceMs} ms (orphanGraceMs)`);
}

function giveUp(reason: string): void {
  killedFor = reason;
  void shutdown();
}

/** A daemon that knows the token takes the cell; an older connection of its own is dropped. */
async function claim(connection: FramedSocket<ToCell, FromCell>, hello: Hello): Promise<void> {
  const { engine: kind, sessionKey, cgroups, build } = made;
  const executionKeys = [...new Set([...guests.keys(), ...ends.kept().map(({ executionKey }) => executionKey)])];
  const own = { pid: process.pid, engine: kind, sessionKey, controllers: Object.keys(cgroups), build };
  const welcome = { protocolVersion: PROTOCOL_VERSION, ...own, executionKeys };
  connection.send({ body: { $case: 'welcome', value: welcome } });
  if (hello.protocolVersion !== PROTOCOL_VERSION) return;
  clearTimeout(orphanTimer);
  const before = daemon;
  daemon = connection;
  connection.maxFrameBytes = TO_CELL_BYTES;
  before?.destroy();
  told.clear();
  claiming ??= setUp(hello);
  await claiming;
  if (daemon !== connection) return;
  for (const [executionKey, { started, killed, isGone, passed }] of guests) {
    if (started) report({ body: { $case: 'started', value: started } });
    if (killed) report({ body: { $case: 'killed', value: killed } });
    if (isGone) report({ body: { $case: 'gone', value: { executionKey } } });
    for (const value of passed) report({ body: { $case: 'limitReached', value } });
  }
  for (const exited of ends.kept()) report({ body: { $case: 'exited', value: exited } });
  if (worn) report({ body: { $case: 'worn', value: {} } });
  report({ body: { $case: 'ready', value: {} } });
  if (meter !== undefined) meter.mayDoze = true;
}

async function setUp(hello: Hello): Promise<void> {
  made = hello;
  orphanGraceMs = hello.orphanGraceMs;
  // Threads have it from here, all others with their start. What the cell itself makes has modes of its own, and lies in
  // directories that are its user's alone.
  if (hello.umask !== undefined) process.umask(hello.umask);
  engine = await createEngine(hello);
  meter = new Meter(Number(hello.memoryBudgetBytes), hello.engine === 'javascript' ? 0 : 1, {
    passed: limitPassed,
    dozing: (usages) =>
      report({ body: { $case: 'dozing', value: { usages: newsOf(usages), executionKeys: [...usages.keys()] } } }),
  });
  engine.keepWarm(hello.keepWarm);
}

async function createEngine(hello: Hello): Promise<Engine> {
  const { cgroupVersion: version, cgroups } = hello;
  const groups = version > 0 ? new GuestGroups({ version, cgroups }) : undefined;
  const heapLimitMb = hello.heapLimitMb || undefined;
  if (hello.engine === 'python') {
    const { PythonEngine } = await import('./python-engine.ts');
    return new PythonEngine({ python: hello.interpreter, zygotePath: hello.zygotePath, groups });
  }
  if (hello.engine === 'process') {
    const { ProcessEngine } = await import('./process-engine.ts');
    return new ProcessEngine({ programPath: JAVASCRIPT_PROCESS, heapLimitMb, groups });
  }
  const poolThreads = Math.min(MOST_POOL_THREADS, POOL_THREADS * Math.max(1, hello.mostGuests));
  // Read when the pool is needed first, which makes its threads. What the cell was started with every guest can see.
  process.env.UV_THREADPOOL_SIZE = String(poolThreads);
  const { JavaScriptEngine } = await import('./javascript-engine.ts');
  return new JavaScriptEngine({ workerUrl: JAVASCRIPT_WORKER, heapLimitMb });
}

function obey(body: NonNullable<ToCell['body']>): void {
  switch (body.$case) {
    case 'hello':
      break;
    case 'start':
      start(body.value);
      break;
    case 'signal': {
      const { executionKey, signal, tree, stop, reason } = body.value;
      const known = guests.get(executionKey);
      if (known === undefined || (stop && known.stop !== undefined)) break;
      if (stop) known.stop = { reason, rung: 'graceful' };
      known.guest.signal(signal as NodeJS.Signals, tree);
      break;
    }
    case 'kill':
      kill(body.value.executionKey, body.value.reason);
      break;
    case 'input': {
      const { executionKey } = body.value;
      // A later daemon has not asked.
      const asker = daemon;
      const answer = (value: InputAnswer) =>
        asker?.send({ body: { $case: 'inputTaken', value: { executionKey, ...value } } });
      const input = guests.get(executionKey)?.input;
      if (input === undefined) answer({ gapBehind: undefined, ended: false });
      else void input.take(body.value).then(answer);
      break;
    }
    case 'keepWarm':
      engine?.keepWarm(body.value.count);
      break;
    case 'measure':
      void measure(body.value.request);
      break;
    case 'wake':
      meter?.wake(body.value.executionKeys.length > 0 ? body.value.executionKeys : undefined);
      break;
    case 'settled':
      orphanGraceMs = body.value.orphanGraceMs;
      break;
    case 'acknowledge':
      ends.forget(body.value.executionKey);
      break;
    case 'shutdown':
      void shutdown();
      break;
  }
}

/** Starts a guest; a second request for the same execution is the first. */
function start(request: Start): void {
  const { executionKey } = request;
  if (engine === undefined || guests.has(executionKey) || ends.has(executionKey)) return;
  try {
    prepareDirectories(request);
  } catch (error) {
    const { message } = error as Error;
    const value = { executionKey, exitCode: -1, cause: 'start_failed', message, ...now(), bootId: bootId() };
    reportEnd(Exited.create(value));
    return;
  }
  const limits = limitsOf(request);
  const { outputFiles } = request;
  // Of JavaScript the cell has the files open that it began with; what Python writes comes through pipes.
  const keepsFirst = made.engine !== 'python';
  const pipes = outputFiles?.maxFiles === 0 ? new OutputPipes(request.outputDir, outputFiles, keepsFirst) : undefined;
  const gone = () => {
    running.isGone = true;
    report({ body: { $case: 'gone', value: { executionKey } } });
  };
  const ofGuest: StartRequest = { ...request, limits };
  const guest = engine.start(ofGuest, {
    handed: (pid) => {
      const name = processName(pid);
      // It has ended before it began.
      if (name !== undefined) processes.add(executionKey, name);
    },
    started: ({ pid = 0, thread = 0, pipes: ownPipes }) => {
      meter?.add(executionKey, guest, limits);
      const [stdout, stderr] = [pipeOf(ownPipes?.stdout), pipeOf(ownPipes?.stderr)];
      const value = { executionKey, pid, thread, ...now(), stdout, stderr, outputFiles: ownPipes && outputFiles };
      running.started = value;
      report({ body: { $case: 'started', value } });
    },
    killed: (processes) => {
      const startTimes = [...processes.values()].map((startTime) => startTime ?? '');
      const value = { executionKey, pids: [...processes.keys()], startTimes };
      running.killed = value;
      report({ body: { $case: 'killed', value } });
    },
    gone,
    outputExceeded: () => {
      if (limits.outputKill) limitPassed(executionKey, 'output', `more than ${limits.outputBytes} bytes of output`);
    },
    exited: async ({ exitCode, signal = '', cause = '', message: said = '', usage }) => {
      if (pipes !== undefined) {
        gone();
        // Of one that was ended by force the rest may follow its end.
        await Promise.race([bringRest(pipes), running.forced.promise]);
      }
      meter?.remove(executionKey);
      const { reason: stopReason = '', rung: stopRung = '' } = running.stop ?? {};
      const message = (said || (signal === 'SIGKILL' ? killedFor : '')).slice(0, LONGEST_MESSAGE);
      const end = { exitCode, signal, cause, message, ...now(), bootId: bootId(), stopReason, stopRung };
      const memorySoft = running.passed.find(({ limit }) => limit === 'memory_soft');
      reportEnd({ executionKey, ...end, usage: usage && usageOf(executionKey, usage), memorySoft });
      guests.delete(executionKey);
      processes.remove(executionKey);
      if (daemon === undefined && guests.size === 0) waitForDaemon();
      told.delete(executionKey);
      if (!looksForWear) setTimeout(lookForWear, WEAR_LOOK_MS).unref();
      looksForWear = true;
    },
  });
  const running: RunningGuest = {
    guest,
    started: undefined,
    killed: undefined,
    isGone: false,
    passed: [],
    input: new GuestInput(guest),
    stop: undefined,
    forced: Promise.withResolvers(),
  };
  guests.set(executionKey, running);
}

async function bringRest(pipes: OutputPipes): Promise<void> {
  const brought = pipes.end();
  bringing.add(brought);
  await brought;
  bringing.delete(brought);
}

function pipeOf(pipe: { fd: number; inode: number } | undefined): Pipe | undefined {
  return pipe && { fd: pipe.fd, inode: BigInt(pipe.inode) };
}

function lookForWear(): void {
  // Set for good once it has asked: it asks once.
  worn = zombiesOf(process.pid) >= MOST_ZOMBIES;
  if (worn) report({ body: { $case: 'worn', value: {} } });
  else looksForWear = false;
}

/** A guest passed a limit. Beyond memory and output nothing is asked of it any more. */
function limitPassed(executionKey: string, limit: string, message: string): void {
  const value = { executionKey, limit, message, ...now() };
  guests.get(executionKey)?.passed.push(value);
  report({ body: { $case: 'limitReached', value } });
  if (limit === 'memory' || limit === 'output') kill(executionKey, `${limit}_exceeded`);
}

/** Ends a guest by force. The reason of a stop that is under way stays. */
function kill(executionKey: string, reason: string): void {
  const known = guests.get(executionKey);
  if (known === undefined) return;
  known.stop = { reason: known.stop?.reason ?? reason, rung: 'forced' };
  setTimeout(known.forced.resolve, FORCED_OUTPUT_MS).unref();
  known.guest.kill();
}

/** Tells what has changed since the daemon was told last: of guests that sleep nothing has. */
async function measure(request: number): Promise<void> {
  const measured = (await meter?.measure()) ?? new Map<string, GuestUsage>();
  report({ body: { $case: 'measured', value: { request, usages: newsOf(measured) } } });
}

function newsOf(measured: Map<string, GuestUsage>): Usage[] {
  return [...measured].flatMap(([executionKey, usage]) => newUsageOf(executionKey, usage) ?? []);
}

/** What is to be told, and is noted as told; undefined when nothing has changed. */
function newUsageOf(executionKey: string, measured: GuestUsage): Usage | undefined {
  const before = told.get(executionKey);
  // The very same figures: it has not run, and written nothing.
  if (before?.measured === measured) return undefined;
  const usage = usageOf(executionKey, measured);
  // One that has ended meanwhile has told its final figures.
  if (guests.has(executionKey)) told.set(executionKey, { measured, usage });
  const isSame = (Object.keys(usage) as (keyof Usage)[]).every((key) => usage[key] === before?.usage[key]);
  return isSame ? undefined : usage;
}

function limitsOf({ limits }: Start): GuestLimits {
  const set = (value: bigint | number) => (Number(value) === 0 ? undefined : Number(value));
  return {
    cpuTimeMs: set(limits?.cpuTimeMs ?? 0),
    memoryBytes: set(limits?.memoryBytes ?? 0),
    memorySoftBytes: set(limits?.memorySoftBytes ?? 0),
    outputBytes: set(limits?.outputBytes ?? 0),
    outputKill: limits?.outputKill ?? false,
    processes: set(limits?.processes ?? 0),
    openFiles: set(limits?.openFiles ?? 0),
  };
}

function usageOf(executionKey: string, usage: GuestUsage): Usage {
  // A guest that forges its figures may say more than a message takes.
  const whole = (value: number) => BigInt(Math.min(Number.MAX_SAFE_INTEGER, Math.max(0, Math.round(value))));
  const { userSeconds, systemSeconds, processes, threads } = usage;
  const { stdout, stderr } = guests.get(executionKey)?.guest.outputBytes ?? NO_OUTPUT;
  return {
    executionKey,
    userSeconds,
    systemSeconds,
    processes,
    threads,
    memoryBytes: whole(usage.memoryBytes),
    peakMemoryBytes: whole(usage.peakMemoryBytes),
    heapBytes: whole(usage.heapBytes),
    externalBytes: whole(usage.externalBytes),
    wasmBytes: whole(usage.wasmBytes),
    droppedBytes: whole(usage.droppedBytes),
    stdoutBytes: BigInt(stdout),
    stderrBytes: BigInt(stderr),
  };
}

/** Makes the directories the daemon named; the daemon removes them. */
function prepareDirectories({ tmpDir, outputDir, cwd, createCwd, mainPath, writeMain }: Start): void {
  const own = [tmpDir, outputDir];
  if (createCwd) own.push(cwd);
  if (writeMain) own.push(dirname(mainPath));
  for (const directory of own) makeDirectory(directory);
}

/** Makes a directory that may be there. `recursive` costs several times as much, and is only needed for the first. */
function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return;
    if (code !== 'ENOENT') throw error;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }
}

function report(message: FromCell): void {
  daemon?.send(message);
}

/** The end of an execution is kept until a daemon has it. */
function reportEnd(exited: Exited): void {
  ends.keep(exited);
  report({ body: { $case: 'exited', value: exited } });
}

let ending = false;
async function shutdown(): Promise<void> {
  if (ending) return;
  ending = true;
  server.close();
  removeFile(socketPath as string);
  const closed = (async () => {
    await engine?.close();
    await Promise.all(bringing);
  })();
  await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, CLOSE_LIMIT_MS))]);
  // Not exit(): that would join a thread which is stuck in native code, and never return. The whole group, so that a
  // child such a thread waits for ends as well.
  process.kill(0, 'SIGKILL');
}
