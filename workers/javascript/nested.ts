import { EventEmitter } from 'node:events';
import { fileURLToPath } from 'node:url';
import workerThreads, { type WorkerOptions } from 'node:worker_threads';
import { define, type Program, program } from './program.ts';
import { noteId, SHARED, THREAD_SLOTS, UNKNOWN_THREAD } from './shared.ts';

const { store: atomicStore } = Atomics;
const { once } = EventEmitter.prototype;

/** Under which name a thread that a guest starts finds what it needs of the program it belongs to. */
export const NESTED_KEY = 'elide.program';

/** What crosses to a nested thread. */
export type NestedProgram = Pick<
  Program,
  'ownsProcess' | 'cwd' | 'tmpDir' | 'descriptors' | 'outputPaths' | 'shared' | 'reaped' | 'outputBytes' | 'maxChildren'
> & {
  /** Where the thread is to note which one of the kernel's it is; undefined where there are too many, in a process of its own. */
  slot: number | undefined;
};

/** Built beside the worker. */
const PRELOAD = fileURLToPath(new URL('nested-preload.cjs', import.meta.url));

/** Gives the threads a guest starts the same working directory and streams as the guest has. */
export function replaceWorker(): void {
  const handler: ProxyHandler<typeof workerThreads.Worker> = {
    construct(target, [file, options, ...rest], newTarget) {
      const { ownsProcess, cwd, tmpDir, descriptors, outputPaths, shared, reaped, outputBytes, maxChildren } = program;
      const slot = noteId(shared, SHARED.threads, THREAD_SLOTS, UNKNOWN_THREAD);
      // In a process of its own it counts all the same.
      if (slot === undefined && !ownsProcess) throw tooMany();
      const nested: NestedProgram = {
        ownsProcess,
        cwd,
        tmpDir,
        descriptors,
        outputPaths,
        shared,
        reaped,
        outputBytes,
        maxChildren,
        slot,
      };
      workerThreads.setEnvironmentData(NESTED_KEY, nested as never);
      const given = options as WorkerOptions | undefined;
      const execArgv = ['--require', PRELOAD, ...(given?.execArgv ?? [])];
      const forget = () => {
        if (slot !== undefined) atomicStore(shared, slot, 0);
      };
      try {
        const worker = Reflect.construct(target, [file, { ...given, execArgv }, ...rest], newTarget);
        // The kernel may give the id to another program's thread.
        once.call(worker, 'exit', forget);
        return worker;
      } catch (error) {
        forget();
        throw error;
      }
    },
  };
  const worker = new Proxy(workerThreads.Worker, handler);
  define(workerThreads, 'Worker', worker);
  define(worker.prototype, 'constructor', worker);
}

/** What Node says of a thread that it cannot start. */
function tooMany(): Error {
  const message = `Worker initialization failure: a program may have ${THREAD_SLOTS} threads`;
  return Object.assign(new Error(message), { code: 'ERR_WORKER_INIT_FAILED' });
}
