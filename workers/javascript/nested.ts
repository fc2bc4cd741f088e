import { EventEmitter } from 'node:events';
import { fileURLToPath } from 'node:url';
import workerThreads, { SHARE_ENV, type Worker, type WorkerOptions } from 'node:worker_threads';
import { homeOfProgram } from './places.ts';
import { define, type Program, program, standIn } from './program.ts';
import { noteId, SHARED, THREAD_SLOTS, UNKNOWN_THREAD } from './shared.ts';
import { hearThreads } from './signals.ts';
import { noteReaped } from './usage.ts';

const { exchange, load: atomicLoad, store: atomicStore } = Atomics;
const { apply, construct } = Reflect;
const { isArray } = Array;
const { setEnvironmentData } = workerThreads;

/** Under which name a thread that a guest starts finds what it needs of the program it belongs to. */
export const NESTED_KEY = 'elide.program';

/** What crosses to a nested thread. */
export type NestedProgram = Pick<
  Program,
  | 'ownsProcess'
  | 'cwd'
  | 'tmpDir'
  | 'home'
  | 'descriptors'
  | 'outputPaths'
  | 'shared'
  | 'slot'
  | 'reaped'
  | 'outputBytes'
  | 'maxChildren'
>;

/** Of the threads that this one has started. */
const slots = new WeakMap<Worker, number>();

/** Built beside the worker. */
const PRELOAD = fileURLToPath(new URL('nested-preload.cjs', import.meta.url));

/** What NODE_OPTIONS of a guest's thread begin with where it has any: what it preloads by them comes after that. */
export const PRELOADS_FIRST = `--require ${JSON.stringify(PRELOAD)} `;

/**
 * Flags of this process that hold for a guest's thread whatever flags that is given. Node would give it none of the
 * process's: it reads those of a thread anew that has any of its own.
 */
const IS_KEPT = /^--(no-)?(experimental[-_]ffi|report[-_]exclude[-_](env|network))(=|$)/;
export const KEPT_FLAGS = [...new Set(process.execArgv.filter((flag) => IS_KEPT.test(flag)))];

/** Gives the threads a guest starts the same working directory and streams as the guest has. */
export function replaceWorker(): void {
  const handler: ProxyHandler<typeof workerThreads.Worker> = {
    construct(target, [file, options = {}, ...rest], newTarget) {
      const given = options.execArgv || [];
      // Node reads no flag behind what is none, and of those it reads the last one counts. What is no list, it refuses.
      const others = isArray(given) ? given.map((flag) => `${flag}`).filter((flag) => !IS_KEPT.test(flag)) : given;
      const env = environmentOf(options);
      const preload = env === undefined ? ['--require', PRELOAD] : [];
      const execArgv = isArray(given) ? [...preload, ...KEPT_FLAGS, ...others] : given;
      const { ownsProcess, cwd, tmpDir, descriptors, outputPaths, shared, reaped, outputBytes, maxChildren } = program;
      const slot = noteId(shared, SHARED.threads + 1, THREAD_SLOTS - 1, UNKNOWN_THREAD);
      // In a process of its own it counts all the same.
      if (slot === undefined && !ownsProcess) throw tooMany();
      if (slot !== undefined) atomicStore(shared, starterOf(slot), program.slot ?? 0);
      const nested: NestedProgram = {
        ownsProcess,
        cwd,
        tmpDir,
        home: homeOfProgram(),
        descriptors,
        outputPaths,
        shared,
        reaped,
        outputBytes,
        maxChildren,
        slot,
      };
      if (!ownsProcess) hearThreads();
      setEnvironmentData(NESTED_KEY, nested as never);
      try {
        const worker = construct(
          target,
          [file, { __proto__: options, execArgv, ...(env && { env }) }, ...rest],
          newTarget,
        );
        if (slot !== undefined) slots.set(worker, slot);
        return worker;
      } catch (error) {
        if (slot !== undefined) free(slot);
        throw error;
      } finally {
        // It was copied for that thread. No other has any use for it.
        setEnvironmentData(NESTED_KEY, undefined);
      }
    },
  };
  const worker = new Proxy(workerThreads.Worker, handler);
  define(workerThreads, 'Worker', worker);
  define(worker.prototype, 'constructor', worker);
  define(worker.prototype, 'emit', standIn(worker.prototype.emit, emitAndFree as typeof worker.prototype.emit));
}

/** That of a thread whose NODE_OPTIONS may preload something. */
function environmentOf({ env = process.env }: WorkerOptions): NodeJS.Dict<unknown> | undefined {
  const { NODE_OPTIONS, ...others } = env === SHARE_ENV ? {} : { ...(env ?? process.env) };
  return NODE_OPTIONS ? { ...others, NODE_OPTIONS: `${PRELOADS_FIRST}${NODE_OPTIONS}` } : undefined;
}

/** Not by a listener: a program may remove all of them. */
function emitAndFree(this: Worker, ...args: unknown[]): boolean {
  const slot = args[0] === 'exit' ? slots.get(this) : undefined;
  if (slot !== undefined && this.threadId === -1) {
    slots.delete(this);
    free(slot);
  }
  return apply(EventEmitter.prototype.emit, this, args);
}

/** The thread is gone, and with it those that it has started: the kernel may give their ids to another program's. */
function free(slot: number): void {
  const { shared } = program;
  atomicStore(shared, starterOf(slot), 0);
  for (let other = SHARED.threads + 1; other < SHARED.threads + THREAD_SLOTS; other += 1) {
    if (atomicLoad(shared, starterOf(other)) === slot) free(other);
  }
  // One that was ended in the middle of such a wait did not say that it is over.
  if (exchange(shared, waitingOf(slot), 0) !== 0) noteReaped();
  atomicStore(shared, spawningOf(slot), 0);
  atomicStore(shared, slot, 0);
}

/** Where it is told how many child processes the thread in this slot waits for synchronously. */
export function waitingOf(slot: number): number {
  return slot - SHARED.threads + SHARED.waiting;
}

/** Where it is told that the thread in this slot makes a child process. */
export function spawningOf(slot: number): number {
  return slot - SHARED.threads + SHARED.spawning;
}

function starterOf(slot: number): number {
  return slot - SHARED.threads + SHARED.starters;
}

/** What Node says of a thread that it cannot start. */
function tooMany(): Error {
  const message = `Worker initialization failure: a program may have ${THREAD_SLOTS} threads`;
  return Object.assign(new Error(message), { code: 'ERR_WORKER_INIT_FAILED' });
}
