import Module, { syncBuiltinESMExports } from 'node:module';
import workerThreads, { MessagePort } from 'node:worker_threads';
import type { CellMessage, ThreadTask } from '../src/cell/messages.ts';
import { createInput, openInput } from './javascript/input.ts';
import { forgetModules, serveMain } from './javascript/modules.ts';
import { createOutput } from './javascript/output.ts';
import { outputLimit } from './javascript/output-limit.ts';
import { define, program, setWorkingDirectory, tell } from './javascript/program.ts';
import { figuresOf, SHARED } from './javascript/shared.ts';
import { deliver, watchListeners } from './javascript/signals.ts';
import { replaceSurface } from './javascript/surface.ts';
import { reportUncaught, reportUnsettled } from './javascript/uncaught.ts';
import { atEnd, giveWay, noteBoot, noteEnd, startOf, threadId } from './javascript/usage.ts';
import { warmUp } from './javascript/warm-up.ts';
import { OutputWriter } from './output-writer.ts';

// The thread side of the JavaScript engine. This module runs while a spare thread boots; the function it exports runs
// the one program the thread is for. The thread ends when the program does.

const parentPort = workerThreads.parentPort as MessagePort;
const never = new Promise<never>(() => {});
const later = setImmediate;
let taskPort: MessagePort | undefined;

/**
 * Piscina listens on a port of its own for tasks, which would keep a thread alive whose program is done, and offers no way
 * to it. It calls `on` right after it has loaded this module: the next call is the one, and its last use of `parentPort`.
 */
function catchTaskPort(): void {
  const { prototype } = MessagePort;
  const inherited = prototype.on;
  define(prototype, 'on', function on(this: MessagePort, ...args: Parameters<typeof inherited>) {
    Reflect.deleteProperty(prototype, 'on');
    taskPort = this;
    hideThread();
    return Reflect.apply(inherited, this, args);
  });
}

const input = createInput();
for (const [name, value] of [
  ['stdin', input],
  ['stdout', createOutput('stdout', 1)],
  ['stderr', createOutput('stderr', 2)],
] as const) {
  Object.defineProperty(process, name, { value, configurable: true, enumerable: true, writable: true });
}
reportUncaught();
reportUnsettled();
atEnd(noteEnd);
watchListeners();
replaceSurface();
catchTaskPort();
const booted = boot();

/** A program looks whether it is the main thread; the threads it starts itself find the truth. */
function hideThread(): void {
  Object.assign(workerThreads, { isMainThread: true, parentPort: null, workerData: null });
  process.execArgv = [];
  syncBuiltinESMExports();
}

async function boot(): Promise<void> {
  await warmUp();
  noteBoot();
  giveWay();
  parentPort.postMessage('warm');
}

/** Runs the program. Never resolves: its end is the end of the thread. */
export default async function run(task: ThreadTask): Promise<never> {
  await booted;
  program.shared = new Int32Array(task.shared);
  program.figures = figuresOf(program.shared);
  program.reaped = new BigInt64Array(task.reaped);
  program.outputBytes = task.outputBytes;
  program.maxChildren = task.maxChildren;
  program.control = task.control;
  program.descriptors = task.descriptors;
  program.outputPaths = task.outputPaths;
  program.writer = new OutputWriter(task.descriptors, outputLimit(program.shared, task.outputBytes));
  program.tmpDir = task.tmpDir;
  program.stdin = task.stdin;
  setWorkingDirectory(task.cwd);
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, task.env);
  process.argv.splice(0, process.argv.length, process.execPath, task.mainPath, ...task.args);
  if (task.typescript) process.setSourceMapsEnabled(true);
  if (task.source !== undefined) {
    program.mainSource = { path: task.source.path, code: task.source.original ?? task.source.code };
    serveMain(task.mainPath, task.source);
  }
  forgetModules();
  openInput(input, (message: CellMessage) => {
    if (message.type === 'signal') deliver(message.name, message.number);
  });
  parentPort.unref();
  // It has brought its one task, and is of no more use to anybody but a program that would post what Piscina cannot read.
  taskPort?.close();
  Atomics.store(program.shared, SHARED.threads, threadId);
  // Not in what the program can find and change.
  tell({ type: 'started', ...startOf() });
  Atomics.store(program.shared, SHARED.begun, 1);
  // Neither inside Piscina's promise, which would catch what the program throws, nor with a frame of ours on its stack.
  later(Module.runMain, task.mainPath);
  return never;
}
