import type { OutputStream } from '../../workers/output-writer.ts';
import type { OutputFiles } from '../gen/elide/cell/v1/cell.ts';
import type { Processes } from '../processes.ts';

/** What a guest, its child processes included, may use; undefined: no limit. */
export interface GuestLimits {
  /** User and system time together, in ms. Watched by the cell, not by the engine. */
  cpuTimeMs?: number | undefined;
  /** Held by the cell's meter from {@link Guest.usage}, and by the engine where it has something quicker. */
  memoryBytes?: number | undefined;
  memorySoftBytes?: number | undefined;
  /** Standard output and standard error together: the engine keeps the head and drops the rest. */
  outputBytes?: number | undefined;
  /** True: the cell ends the guest at the output limit. */
  outputKill: boolean;
  /** Processes and threads at one time; one more fails to start, inside the guest. Where the engine can. */
  processes?: number | undefined;
  /** Open files of each process; one more fails to open, inside the guest. Where the engine can. */
  openFiles?: number | undefined;
}

/** What a guest, its child processes included, uses or used. */
export interface GuestUsage {
  /** CPU time since its start. */
  userSeconds: number;
  systemSeconds: number;
  /** Now; after its end what it held last. Heap, external and wasm of a thread and the processes below it; the proportional set size of processes. */
  memoryBytes: number;
  /** The most that was seen. */
  peakMemoryBytes: number;
  /** Of a thread: its JavaScript heap, its buffers, and what neither shows (WebAssembly, shared buffers). 0 for processes. */
  heapBytes: number;
  externalBytes: number;
  wasmBytes: number;
  processes: number;
  threads: number;
  /** Dropped at the output limit, of both streams. */
  droppedBytes: number;
}

/** No guest has used so many seconds, or held or written so many bytes: who says so lies, and is not to confuse others. */
export const LARGEST_FIGURE = 2 ** 48;

/** What a guest uses whose code has not begun. */
export const NO_USAGE: GuestUsage = {
  userSeconds: 0,
  systemSeconds: 0,
  memoryBytes: 0,
  peakMemoryBytes: 0,
  heapBytes: 0,
  externalBytes: 0,
  wasmBytes: 0,
  processes: 0,
  threads: 0,
  droppedBytes: 0,
};

/** What a cell is asked to run. Everything in it was checked by the daemon. */
export interface StartRequest {
  /** Fixed-length key made by the daemon: names the execution between daemon and cell, and in paths. */
  executionKey: string;
  /** `javascript`, `typescript` or `python`. */
  language: string;
  code: string;
  /** The guest's arguments, without the program's own name. */
  args: string[];
  /** The guest's whole environment. */
  env: Record<string, string>;
  /** Absolute; exists. */
  cwd: string;
  /** Absolute path the program believes it lies at: `process.argv[1]`, `import.meta.url`, `__file__`, stack traces. */
  mainPath: string;
  /** True when `mainPath` is inside the execution's own private directory and the engine is to write `code` there. */
  writeMain: boolean;
  /** Absolute, private to this execution, exists: where the guest's temporary files belong. */
  tmpDir: string;
  /** Absolute; the directory exists and holds (or will hold) `stdout`, `stderr` and `marks`. */
  outputDir: string;
  /** Where output goes instead; undefined: there. */
  outputFiles?: OutputFiles | undefined;
  /** False: standard input is at its end from the start. */
  stdin: boolean;
  limits: GuestLimits;
  /** Signals go to the guest's child processes too. */
  signalTree: boolean;
}

/** How a guest ended, told once it is gone. */
export interface GuestExit {
  /** 0-255; `128 + N` for a guest that ended by signal N. */
  exitCode: number;
  /** The signal that ended it, for example `SIGKILL`; undefined for an exit. */
  signal?: NodeJS.Signals;
  /** Why, where the engine knows more: the heap limit, the memory limit as the kernel holds it, or it never started. */
  cause?: 'heap_limit' | 'memory_limit' | 'start_failed';
  /** One line for people, with `cause`. */
  message?: string;
  /** The final figures; absent when no guest code ran. */
  usage?: GuestUsage;
}

/** The pipes of a guest's output as this process has, or had, them open. */
interface OutputPipes {
  stdout: { fd: number; inode: number };
  stderr: { fd: number; inode: number };
}

/** What a guest tells its cell. Each but `handed` and `killed` is called at most once, `started` before `exited`. */
export interface GuestEvents {
  /**
   * A process that outlives its cell is about to be given the program, another one again where that failed to boot. Throws
   * where that cannot be written down; it must not get it then.
   */
  handed?(pid: number): void;
  /** Guest code is about to run. `pid` is the process group leader of a guest that is a process, `thread` the Node thread id of one that is a thread, `pipes` what the engine reads its output from, if it does. */
  started(info: { pid?: number; thread?: number; pipes?: OutputPipes }): void;
  /** These processes, all that were killed with it so far, are gone before it is told to be. */
  killed?(processes: Processes): void;
  /** Its thread or process is gone. Told where what it has left behind may take a while to be ended. */
  gone?(): void;
  /** Output was dropped at the limit for the first time. */
  outputExceeded(): void;
  /** The thread or process, and every process below it, is gone; all its output is in the files. */
  exited(exit: GuestExit): void;
}

/** What a guest has written that has no output files, or none yet. */
export const NO_OUTPUT: Record<OutputStream, number> = { stdout: 0, stderr: 0 };

/** One running guest, as its engine offers it. Every method is harmless after the guest's end. */
export interface Guest {
  /**
   * Delivers a signal: to the handler the guest installed, else the default action. `SIGKILL` is {@link kill}. With
   * `tree`, and when its request said so, every process below the guest gets it too.
   */
  signal(name: NodeJS.Signals, tree?: boolean): void;
  /** Delivers a signal only if the guest has a handler for it; false when it has none. */
  notify(name: NodeJS.Signals): boolean;
  /** What it uses now. Resolves within 100 ms also while the guest is stuck in native code, then with the newest figures there are. The very same object means that it has not run, nor written, since. */
  usage(): Promise<GuestUsage>;
  /** How many bytes are in its output files; after its end, how many were then. 0 where it has none of its own. */
  readonly outputBytes: Record<OutputStream, number>;
  /** Ends it by force: terminates the thread, or SIGKILLs the process group. Confirmed by `exited`. */
  kill(): void;
  /** Appends to the guest's standard input; resolves when the guest's pipe took it. `end` closes it. */
  write(data: Uint8Array, end: boolean): Promise<void>;
}

/** Runs the guests of one kind inside a cell. */
export interface Engine {
  /** Starts a guest; failures arrive as `exited` with cause `start_failed`, never as a throw. */
  start(request: StartRequest, events: GuestEvents): Guest;
  /** How many contexts to keep booted ahead, at most. An engine that needs none ignores it. */
  keepWarm(count: number): void;
  /** Ends every guest by force and frees what the engine holds. */
  close(): Promise<void>;
}
