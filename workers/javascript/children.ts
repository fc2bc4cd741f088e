import type * as ChildProcessModule from 'node:child_process';
import fs from 'node:fs';
import { constants } from 'node:os';
import { spawningOf, waitingOf } from './nested.ts';
import { announceOutput } from './output-limit.ts';
import { absolute, define, program, standIn } from './program.ts';
import { addLeft } from './reaped.ts';
import { CHILD_SLOTS, noteId, OUTPUT, SHARED, THREAD_SLOTS } from './shared.ts';
import { noteReaped, statOf } from './usage.ts';

const { add: atomicAdd, compareExchange, load: atomicLoad, store: atomicStore, notify, wait } = Atomics;

/** What the kernel answers when there may be no more processes. */
const EAGAIN = -constants.errno.EAGAIN;

interface SpawnOptions {
  cwd?: string | null;
  stdio?: unknown;
}
interface ChildHandle {
  onexit(...args: unknown[]): unknown;
  spawn(...args: unknown[]): number;
}
/** Node's own, below `spawnSync` and all that is made of it. */
interface SyncBinding {
  spawn(options: unknown): unknown;
}
type AnyFunction = (...args: unknown[]) => unknown;

const { apply } = Reflect;
const { includes } = String.prototype;
const { readFileSync } = fs;
const ownPid = process.pid;

/**
 * Child processes get the program's working directory and its standard streams, and are remembered: the cell ends those
 * that are left when the program has ended.
 */
export function replaceChildFunctions(childProcess: typeof ChildProcessModule): void {
  // Every asynchronous form (spawn, exec, execFile, fork) comes through this one method.
  const { prototype } = childProcess.ChildProcess as unknown as { prototype: { spawn: AnyFunction } };
  const { spawn } = prototype;
  define(prototype, 'spawn', function spawnHere(this: ChildProcessModule.ChildProcess, options: SpawnOptions) {
    const input = locate(options, true);
    const handle = handleOf(this);
    const refused = handle !== null && isFull();
    if (refused) handle.spawn = () => EAGAIN;
    let result: unknown;
    const spawning = spawningOf(program.slot ?? SHARED.threads);
    atomicStore(program.shared, spawning, 1);
    if (atomicLoad(program.shared, SHARED.closing) === 1) {
      // The cell has seen that no child was being made, or is about to; its end is all there is to wait for.
      atomicStore(program.shared, spawning, 0);
      notify(program.shared, spawning);
      wait(program.shared, SHARED.closing, 1);
    }
    try {
      result = apply(spawn, this, [options]);
      remember(this);
    } finally {
      atomicStore(program.shared, spawning, 0);
      notify(program.shared, spawning);
    }
    // Its pipes lead nowhere, of which Node makes errors beside the one that tells why.
    if (refused) for (const stream of this.stdio) stream?.on('error', () => {});
    if (input) {
      this.stdin?.on('error', () => {});
      if (this.stdin !== null) process.stdin.pipe(this.stdin);
    }
    return result;
  });
  replaceSyncSpawn();
  for (const name of ['spawnSync', 'execFileSync', 'execSync'] as const) {
    const original = childProcess[name] as AnyFunction;
    const replacement = (...args: unknown[]) => {
      const index =
        name === 'execSync' ? 1 : Array.isArray(args[1]) || args[1] === undefined || args[1] === null ? 2 : 1;
      const options = { ...(args[index] as SpawnOptions | undefined) };
      locate(options, false);
      args[index] = options;
      return apply(original, childProcess, args);
    };
    (childProcess as unknown as Record<string, unknown>)[name] = standIn(original, replacement);
  }
}

/** Every synchronous form comes through one function that can be had no other way. */
function replaceSyncSpawn(): void {
  const binding = (process as unknown as { binding(name: string): SyncBinding }).binding('spawn_sync');
  const { spawn } = binding;
  binding.spawn = (options) => {
    if (isFull()) return { error: EAGAIN, status: null, signal: null, output: null, pid: 0 };
    // What too many threads of a process wait for is counted with its first one.
    const waiting = waitingOf(program.slot ?? SHARED.threads);
    atomicAdd(program.shared, waiting, 1);
    program.noteChild?.(0);
    try {
      return spawn(options);
    } finally {
      atomicAdd(program.shared, waiting, -1);
      noteReaped();
    }
  };
}

/** Whether the program runs as many child processes as it may, which is no more than are remembered for its end. */
function isFull(): boolean {
  const { ownsProcess, maxChildren } = program;
  if (ownsProcess && maxChildren === undefined) return false;
  const most = maxChildren === undefined || maxChildren > CHILD_SLOTS ? CHILD_SLOTS : maxChildren;
  if (countChildren() < most) return false;
  forgetLeft();
  return countChildren() >= most;
}

function countChildren(): number {
  let count = 0;
  for (let slot = SHARED.waiting; slot < SHARED.waiting + THREAD_SLOTS; slot += 1) {
    count += atomicLoad(program.shared, slot);
  }
  for (let slot = SHARED.children; slot < SHARED.children + CHILD_SLOTS; slot += 1) {
    if (atomicLoad(program.shared, slot) !== 0) count += 1;
  }
  return count;
}

/** Forgets the ended children of threads that are gone: nobody else would, as it is their threads that wait for them. */
function forgetLeft(): void {
  let left: string;
  try {
    // The kernel gives them to the first thread, where in a cell no program runs.
    left = ` ${readFileSync(`/proc/self/task/${ownPid}/children`, 'latin1')}`;
  } catch {
    return;
  }
  for (let slot = SHARED.children; slot < SHARED.children + CHILD_SLOTS; slot += 1) {
    const pid = atomicLoad(program.shared, slot);
    if (pid === 0 || !apply(includes, left, [` ${pid} `])) continue;
    const stat = statOf(pid);
    if (stat === undefined || !isEnded(stat)) continue;
    // The cell looks for it no longer.
    if (compareExchange(program.shared, slot, pid, 0) === pid) addLeft(stat, program.figures);
  }
}

/** Not while only its first thread has. State and num_threads, see proc_pid_stat(5). */
function isEnded(stat: string[]): boolean {
  return stat[0] === 'Z' && stat[17] === '1';
}

/** Settles `cwd`, where the process has another one, and `stdio` in place; true when the child's standard input is to be fed from the program's own. */
function locate(options: SpawnOptions, feedable: boolean): boolean {
  // An empty one is none to Node where it does not wait for the child.
  if (feedable && options.cwd === '') options.cwd = null;
  if (!program.ownsProcess) options.cwd = (absolute(options.cwd) ?? program.cwd) as string;
  if (options.stdio === undefined || options.stdio === 'pipe' || options.stdio === 'ignore') return false;
  if (options.stdio === 'inherit') options.stdio = [0, 1, 2];
  if (!Array.isArray(options.stdio)) return false;
  // One that is forked inherits it unless its program says otherwise, and is spoken to by messages: it seldom reads there.
  const canFeed = program.stdin && feedable && !options.stdio.includes('ipc');
  let feed = false;
  options.stdio = options.stdio.map((entry: unknown, index) => {
    const meant =
      entry === 'inherit'
        ? index
        : typeof entry === 'object' && entry !== null
          ? (entry as { fd?: unknown }).fd
          : entry;
    // What the child writes there does not pass by here, and a descriptor of any number may be of an output file.
    if (typeof meant === 'number' && meant !== 0) announceOutput(program.shared, OUTPUT.direct);
    if (meant === 1) return program.descriptors.stdout;
    if (meant === 2) return program.descriptors.stderr;
    if (meant !== 0 || program.ownsProcess) return entry;
    // Standard input comes as messages, so there is no descriptor to hand on.
    if (!canFeed || index !== 0) return 'ignore';
    feed = true;
    return 'pipe';
  });
  return feed;
}

function remember(child: ChildProcessModule.ChildProcess): void {
  const handle = handleOf(child);
  const { pid } = child;
  if (pid === undefined || pid <= 0 || handle === null) return;
  const slot = noteId(program.shared, SHARED.children, CHILD_SLOTS, pid);
  program.noteChild?.(pid);
  const { onexit } = handle;
  handle.onexit = function forget(...args: unknown[]) {
    if (slot !== undefined) compareExchange(program.shared, slot, pid, 0);
    noteReaped();
    return apply(onexit, this, args);
  };
}

function handleOf(child: ChildProcessModule.ChildProcess): ChildHandle | null {
  return (child as unknown as { _handle: ChildHandle | null })._handle;
}
