import fs from 'node:fs';
import Module from 'node:module';
import type { ProcessTask } from '../src/cell/messages.ts';
import { CONTROL, droppedBytes, tellCell, tellChild, tellOutput } from './javascript/control.ts';
import { forgetModules, serveMain } from './javascript/modules.ts';
import { createOutput } from './javascript/output.ts';
import { onOutputChange, outputLimit } from './javascript/output-limit.ts';
import { define, program, standIn } from './javascript/program.ts';
import { sourceOf } from './javascript/source.ts';
import { replaceSurface } from './javascript/surface.ts';
import { isFailing, reportUncaught } from './javascript/uncaught.ts';
import { atEnd, giveWay, isExiting, noteEarlyEnd } from './javascript/usage.ts';
import { warmUp } from './javascript/warm-up.ts';
import { OutputWriter } from './output-writer.ts';

// A JavaScript guest with a process of its own. It boots ahead, waits for its one task, and is from then on what
// `node FILE` is; beside it only what keeps its output to its limit, and tells the cell what nobody sees from outside.

// Taken once: a guest may replace any of them.
const { closeSync, openSync, readFileSync, readSync } = fs;
const { apply } = Reflect;
const { lastIndexOf, slice, split } = String.prototype;
const cpuUsage = process.cpuUsage.bind(process);
const resourceUsage = process.resourceUsage.bind(process);
const later = setImmediate;
const ownPid = process.pid;

/** Blocks: there is nothing else to do. */
function receive(): ProcessTask {
  const chunks: Buffer[] = [];
  for (;;) {
    const chunk = Buffer.allocUnsafe(65_536);
    const count = readSync(CONTROL, chunk);
    // Never needed.
    if (count === 0) process.exit(0);
    chunks.push(chunk.subarray(0, count));
    if (chunk[count - 1] === 10) return JSON.parse(Buffer.concat(chunks).toString());
  }
}

/** The standard descriptors of this process, for whoever writes and reads past Node, child processes above all. */
function openStandard({ stdin, outputPaths }: ProcessTask): void {
  // The lowest free number is the one that was just closed.
  if (!stdin) {
    closeSync(0);
    openSync('/dev/null', 'r');
  }
  closeSync(1);
  openSync(outputPaths.stdout, 'a');
  closeSync(2);
  openSync(outputPaths.stderr, 'a');
}

function createWriter({ marksPath, outputPaths, rotation, outputBytes }: ProcessTask): OutputWriter {
  const open = (path: string | undefined) => (path === undefined ? -1 : openSync(path, 'a'));
  const current = new Int32Array(new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT));
  if (rotation !== undefined) current.set([rotation.start.stdout.file, rotation.start.stderr.file]);
  program.descriptors =
    rotation === undefined
      ? { stdout: open(outputPaths.stdout), stderr: open(outputPaths.stderr), marks: open(marksPath) }
      : { stdout: 1, stderr: 2, marks: -1, rotation: { ...rotation, current } };
  return new OutputWriter(program.descriptors, outputLimit(program.shared, outputBytes));
}

/** What it has used: of its ended children too, exact to 10 ms. */
function usedSince({ user, system }: NodeJS.CpuUsage): { userSeconds: number; systemSeconds: number } {
  const used = cpuUsage();
  const stat = readFileSync('/proc/self/stat', 'latin1');
  // proc_pid_stat(5), from the state on: cutime and cstime at 13 and 14, in hundredths of a second.
  const fields = apply(split, apply(slice, stat, [apply(lastIndexOf, stat, [')']) + 2]), [' ']) as string[];
  return {
    userSeconds: (used.user - user) / 1e6 + +(fields[13] as string) / 100,
    systemSeconds: (used.system - system) / 1e6 + +(fields[14] as string) / 100,
  };
}

type ReallyExit = (code: number) => never;
const ending = process as unknown as { reallyExit: ReallyExit };
const reallyExit: ReallyExit = ending.reallyExit.bind(process);

/** Ends this process at once. `code` as `process.exitCode` has it. */
function leave(code: typeof process.exitCode): never {
  return reallyExit(+(code ?? 0) || 0);
}

/** Has `note` called when this process ends by itself, and ends it then sooner than Node would. */
function endBy(note: () => void): void {
  atEnd(note);
  const { emit } = process;
  const { reallyExit: ours } = ending;
  define(process, 'emit', function emitLast(this: NodeJS.Process, ...args: unknown[]) {
    const result = apply(emit as never, this, args);
    if (args[0] !== 'exit' || this !== process || !isExiting() || isFailing() || result || program.needsTeardown)
      return result;
    // All that Node would still do is to free, piece by piece, what goes with the process: a fifth of its end. And to run
    // what a listener has left to promises, or what a program that has replaced either does last.
    if (process.emit === emitLast && ending.reallyExit === ours) leave(process.exitCode);
    return result;
  });
  const { dlopen } = process;
  const dlopenNoted = (...args: unknown[]) => {
    program.needsTeardown = true;
    return apply(dlopen as never, process, args);
  };
  define(process, 'dlopen', standIn(dlopen, dlopenNoted));
  // A program may end itself by a signal.
  for (const [name, ends] of [
    ['abort', () => true],
    ['kill', (pid: unknown) => pid === ownPid],
  ] as const) {
    const original = process[name] as (...args: unknown[]) => unknown;
    define(process, name, function noteFirst(this: NodeJS.Process, ...args: unknown[]) {
      if (ends(args[0])) noteEarlyEnd();
      return apply(original as never, this, args);
    });
  }
}

// Node would open a debugger to whoever is on this machine; gone with its last listener, the signal ends a program again.
process.once('SIGUSR1', () => {}).removeAllListeners('SIGUSR1');
program.ownsProcess = true;
for (const [name, fd] of [
  ['stdout', 1],
  ['stderr', 2],
] as const) {
  const value = createOutput(name, fd);
  Object.defineProperty(process, name, { value, configurable: true, enumerable: true, writable: true });
}
onOutputChange(tellOutput);
reportUncaught();
program.noteChild = tellChild;
replaceSurface();

void warmUp().then(() => {
  giveWay();
  tellCell({ type: 'warm' });
  const task = receive();
  for (const path of task.groups) fs.writeFileSync(path, '0');
  process.chdir(task.cwd);
  program.tmpDir = task.tmpDir;
  program.stdin = task.stdin;
  program.outputPaths = task.outputPaths;
  program.outputBytes = task.outputBytes;
  program.maxChildren = task.maxChildren;
  openStandard(task);
  program.writer = createWriter(task);
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, task.env);
  process.execArgv = [];
  process.argv.splice(0, process.argv.length, process.execPath, task.mainPath, ...task.args);
  if (task.typescript) process.setSourceMapsEnabled(true);
  const made = sourceOf(task);
  if (made.ok && made.source !== undefined) {
    program.mainSource = { path: made.source.path, code: made.source.original ?? made.source.code };
    serveMain(task.mainPath, made.source);
  }
  forgetModules();
  const begun = cpuUsage();
  const residentBytes = () => resourceUsage().maxRSS * 1024;
  endBy(() => tellCell({ type: 'end', ...usedSince(begun), residentBytes: residentBytes(), dropped: droppedBytes() }));
  const boot = { userSeconds: begun.user / 1e6, systemSeconds: begun.system / 1e6 };
  tellCell({ type: 'started', ...boot, residentBytes: residentBytes() });
  if (!made.ok) {
    program.writer.write('stderr', Buffer.from(`${made.message}\n`));
    leave(1);
  }
  // With no frame of ours on its stack.
  later(Module.runMain, task.mainPath);
});
