import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionResult } from '../../machines/execution.ts';
import { sendSignal, threadsOf } from '../../src/processes.ts';
import { eventually, isAlive, TestDaemon, type TestExecution, type TestSession } from '../support/daemon.ts';
import type { HostileGuest } from './guest.ts';
import { Witness } from './witness.ts';

/** What came of a hostile guest, and of everybody else. */
export interface Outcome {
  result: ExecutionResult | undefined;
  /** From what was to end it to its end. */
  tookMs: number;
  /** The head of its standard output, or why that could not be read. */
  stdout: Buffer;
  /**
   * What there was of it after its end: its processes when that was told; soon after, its private directory; and, of one
   * that has a session to itself, whatever was below its cell, once that session was closed.
   */
  left: string[];
  neighbour: string;
  bystanders: string[];
  /** Of the next execution where the neighbour was lost, else undefined. */
  next: string | undefined;
}

/** How long beyond its longest allowed end a guest is waited for, so that the time it did take can be told. */
const PATIENCE_MS = 30_000;

/** How long after an end what is removed in the background may take: thousands of files, beside seven others at work. */
const REMOVAL_LIMIT_MS = 30_000;

/** How much of an output is looked at. */
const HEAD_BYTES = 4 * 1024 * 1024;

/** A session of hostile guests with the neighbour that shares their cell. */
interface Place {
  session: TestSession;
  neighbour: Witness;
}

/** One daemon with bystanders, in which hostile guests run, so many at a time. */
export class Arena implements AsyncDisposable {
  readonly node: TestDaemon;
  readonly #bystanders: Witness[];
  /** The processes this one had below it before. */
  readonly #before: Set<number>;
  readonly #places = new Map<string, Promise<Place>>();
  /** Sessions that lost a neighbour which they should not have lost. */
  readonly #spent: TestSession[] = [];
  #count = 0;

  private constructor(node: TestDaemon, bystanders: Witness[], before: Set<number>) {
    this.node = node;
    this.#bystanders = bystanders;
    this.#before = before;
  }

  /** `forcedLimitMs`: how long force may take before a cell is killed. */
  static async open(forcedLimitMs: number): Promise<Arena> {
    const before = new Set(treeBelow([process.pid]));
    const node = await TestDaemon.start({ contextPoolSize: 1, forcedLimitMs });
    const bystanders = [
      await Witness.start(await node.session({}, 'bystander'), 'javascript'),
      await Witness.start(await node.session({}, 'bystander'), 'python'),
    ];
    return new Arena(node, bystanders, before);
  }

  /** Runs one to its end, next to its neighbour, and says what came of it. */
  async run(guest: HostileGuest): Promise<Outcome> {
    const key = isAlone(guest)
      ? `${guest.family}-${this.#count++}`
      : `${guest.family}-${guest.language}-${guest.isolation}`;
    const place = this.#places.get(key) ?? this.#newPlace(guest);
    this.#places.set(key, place);
    // One that did not come to be is nobody's.
    place.catch(() => this.#places.delete(key));
    const { session, neighbour } = await place;
    const mark = uniqueNumber();

    const { language, code, limits, snippet } = guest;
    const { stop } = guest;
    const times = stop.by === 'timeout' ? { timeoutMs: stop.timeoutMs, graceMs: stop.graceMs } : {};
    const execution = await session.submit({
      language,
      code,
      env: { ...PATHS, MARK: mark },
      ...times,
      ...limits,
      ...snippet,
    });
    await readyOrEnded(execution);
    const { pid } = await execution.snapshot();
    const privateDirectory = pid > 0 ? workspaceOf(pid) : undefined;
    const below = isAlone(guest) ? startsOf(treeBelow(await session.cellPids())) : [];
    let fromMs = performance.now();
    if (stop.by === 'cancel') await execution.cancel({ graceMs: stop.graceMs });
    if (stop.by === 'timeout') {
      const { times } = await execution.snapshot();
      fromMs += (times.startedAtMs ?? 0) + stop.timeoutMs - Date.now();
    }
    const result = await this.#resultOf(execution, guest.endsWithinMs + PATIENCE_MS);
    const tookMs = performance.now() - fromMs;
    const left = processesOf(mark);
    if (pid > 0 && isAlive(pid)) left.push(`the guest ${pid} itself`);

    const outcome: Outcome = {
      result,
      tookMs,
      stdout: await headOf(execution),
      left,
      neighbour: await neighbour.ask(),
      bystanders: await Promise.all(this.#bystanders.map((bystander) => bystander.ask())),
      next: undefined,
    };
    if (outcome.neighbour !== 'untouched') {
      outcome.next = (await session.run({ language, code: '0' })).result.reason;
      // Guests that were next to it may still be at work there.
      if (!isAlone(guest) && this.#places.get(key) === place) {
        this.#places.delete(key);
        this.#spent.push(session);
      }
    }
    if (isAlone(guest)) {
      this.#places.delete(key);
      await session.close();
    }
    left.push(...(await remainsOf(below, privateDirectory)));
    return outcome;
  }

  /** Closes the sessions of the guests; resolves when all that is left are the bystanders. */
  async clear(): Promise<void> {
    const places = await Promise.all(this.#places.values());
    const sessions = [...places.map(({ session }) => session), ...this.#spent.splice(0)];
    this.#places.clear();
    await Promise.all(sessions.map((session) => session.close()));
  }

  /** Where a daemon keeps what it should not keep for ever, with what lies there. */
  directories(): Record<'cells' | 'work' | 'output', string[]> {
    const state = join(this.node.root, 's');
    return {
      cells: readdirSync(join(state, 'daemon', 'cells')),
      work: readdirSync(join(state, 'work')),
      output: readdirSync(join(state, 'daemon', 'output'), { withFileTypes: true }).flatMap(({ name }) =>
        readdirSync(join(state, 'daemon', 'output', name)),
      ),
    };
  }

  /** The processes there are because of this daemon: below this process, or with a working directory below its own. */
  processes(): string[] {
    const below = treeBelow([process.pid]).filter((pid) => !this.#before.has(pid));
    const inside = processIds().filter((pid) => link(`/proc/${pid}/cwd`).startsWith(this.node.root));
    return [...new Set([...below, ...inside])].map(describe);
  }

  async #newPlace(guest: HostileGuest): Promise<Place> {
    const { isolation } = guest;
    const own = isolation && { executionDefaults: { isolation } };
    const session = await this.node.session({ ...guest.session, ...own }, guest.family);
    return { session, neighbour: await Witness.start(session, guest.language) };
  }

  async #resultOf(execution: TestExecution, limitMs: number): Promise<ExecutionResult | undefined> {
    const { daemon, sessionId, executionId } = execution;
    const { result } = await daemon.wait(sessionId, executionId, { signal: AbortSignal.timeout(Math.ceil(limitMs)) });
    if (result === undefined) {
      await execution.signal('SIGKILL');
      await daemon.wait(sessionId, executionId);
    }
    return result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node.daemon.stop({ force: true });
    // What a daemon could not remove is in the test's report; the machine is to be clean all the same.
    execFileSync('rm', ['-rf', this.node.root]);
    await eventually('all processes of this daemon are gone', () => this.processes().length === 0);
  }
}

/** What a guest needs to find programs. */
const PATHS = { PATH: process.env.PATH ?? '/usr/bin:/bin' };

function isAlone(guest: HostileGuest): boolean {
  return guest.alone === true || guest.neighbours !== 'untouched' || guest.session !== undefined;
}

/** As long as a life of processes named by it should be: `sleep` of it ends in no time of ours. */
function uniqueNumber(): string {
  return `60${Math.floor(Math.random() * 1e9)}`.padEnd(11, '0');
}

/** One that is not ready by then has lost its output: it is stopped all the same. */
const READY_LIMIT_MS = 10_000;

async function readyOrEnded(execution: TestExecution): Promise<void> {
  const { daemon, sessionId, executionId } = execution;
  let written = '';
  try {
    const options = { streams: ['stdout' as const], signal: AbortSignal.timeout(READY_LIMIT_MS) };
    for await (const { data } of daemon.streamOutput(sessionId, executionId, options)) {
      written += data.toString('latin1');
      if (written.includes('ready\n')) return;
    }
  } catch {
    // It has done something to its output: that is told with what it wrote.
  }
}

async function headOf(execution: TestExecution): Promise<Buffer> {
  const { daemon, sessionId, executionId } = execution;
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const { data } of daemon.streamOutput(sessionId, executionId, { streams: ['stdout'], follow: false })) {
      chunks.push(data);
      bytes += data.byteLength;
      if (bytes > HEAD_BYTES) break;
    }
  } catch (error) {
    return Buffer.from(`${error}`);
  }
  return Buffer.concat(chunks);
}

/** Living processes with a guest's mark in their environment or arguments; kills them, so that the next guest finds none. */
function processesOf(mark: string): string[] {
  // Of one whose first thread has ended only the others tell.
  const texts = (pid: number) =>
    threadsOf(pid).flatMap((thread) => ['environ', 'cmdline'].map((name) => `/proc/${pid}/task/${thread}/${name}`));
  const found = processIds().filter((pid) => isAlive(pid) && texts(pid).some((path) => read(path).includes(mark)));
  const described = found.map(describe);
  for (const pid of found) sendSignal(pid, 'SIGKILL');
  return described;
}

/** A process, told from a later one of the same number. */
interface Started {
  pid: number;
  start: string;
}

function startsOf(pids: number[]): Started[] {
  return pids.map((pid) => ({ pid, start: startOf(pid) }));
}

function startOf(pid: number): string {
  return fieldsOf(pid)[19] ?? '';
}

/** Where the execution of a process has its files, if that is a directory of its own. */
function workspaceOf(pid: number): string | undefined {
  return /^.*\/work\/[^/]+\/[^/]+/.exec(link(`/proc/${pid}/cwd`))?.[0];
}

/** What is left after a while of what is to be gone; ends and removes that. */
async function remainsOf(processes: Started[], directory: string | undefined): Promise<string[]> {
  const living = () => processes.filter(({ pid, start }) => isAlive(pid) && startOf(pid) === start);
  const isThere = () => directory !== undefined && existsSync(directory);
  const isGone = () => living().length === 0 && !isThere();
  await eventually('nothing is left', isGone, REMOVAL_LIMIT_MS).catch(() => {});
  const left = living().map(({ pid }) => describe(pid));
  for (const { pid } of living()) sendSignal(pid, 'SIGKILL');
  if (directory !== undefined && isThere()) {
    left.push(directory);
    execFileSync('rm', ['-rf', directory]);
  }
  return left;
}

/** Every living process below these; one look at /proc, for a look at each process would hold up the daemon in this one. */
function treeBelow(roots: number[]): number[] {
  const children = new Map<number, number[]>();
  for (const pid of processIds()) {
    const [state, parent] = fieldsOf(pid);
    if (state === 'Z' || parent === undefined) continue;
    children.set(Number(parent), [...(children.get(Number(parent)) ?? []), pid]);
  }
  const found: number[] = [];
  for (let level = roots; level.length > 0; ) {
    level = level.flatMap((pid) => children.get(pid) ?? []);
    found.push(...level);
  }
  return found;
}

/** What the kernel tells of a process, from its state on. */
function fieldsOf(pid: number): string[] {
  const stat = read(`/proc/${pid}/stat`);
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}

function processIds(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

function describe(pid: number): string {
  return `${pid}: ${read(`/proc/${pid}/cmdline`).split('\0').join(' ').slice(0, 120)}`;
}

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

function link(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}
