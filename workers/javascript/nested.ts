import { fileURLToPath } from 'node:url';
import workerThreads, { type WorkerOptions } from 'node:worker_threads';
import { define, type Program, program } from './program.ts';

/** Under which name a thread that a guest starts finds what it needs of the program it belongs to. */
export const NESTED_KEY = 'elide.program';

/** What crosses to a nested thread. */
export type NestedProgram = Pick<Program, 'cwd' | 'tmpDir' | 'descriptors' | 'outputPaths' | 'shared'>;

/** Built beside the worker. */
const PRELOAD = fileURLToPath(new URL('nested-preload.cjs', import.meta.url));

/** Gives the threads a guest starts the same working directory and streams as the guest has. */
export function replaceWorker(): void {
  const handler: ProxyHandler<typeof workerThreads.Worker> = {
    construct(target, [file, options, ...rest], newTarget) {
      const { cwd, tmpDir, descriptors, outputPaths, shared } = program;
      const nested: NestedProgram = { cwd, tmpDir, descriptors, outputPaths, shared };
      workerThreads.setEnvironmentData(NESTED_KEY, nested as never);
      const given = options as WorkerOptions | undefined;
      const execArgv = ['--require', PRELOAD, ...(given?.execArgv ?? [])];
      return Reflect.construct(target, [file, { ...given, execArgv }, ...rest], newTarget);
    },
  };
  define(workerThreads, 'Worker', new Proxy(workerThreads.Worker, handler));
}
