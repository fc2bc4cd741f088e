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
  /** False: standard input is at its end from the start. */
  stdin: boolean;
}

/** How a guest ended, told once it is gone. */
export interface GuestExit {
  /** 0-255; `128 + N` for a guest that ended by signal N. */
  exitCode: number;
  /** The signal that ended it, for example `SIGKILL`; undefined for an exit. */
  signal?: NodeJS.Signals;
  /** Why, where the engine knows more than code and signal: the heap limit was hit, or it never started. */
  cause?: 'heap_limit' | 'start_failed';
  /** One line for people, with `cause`. */
  message?: string;
}

/** What a guest tells its cell. Each is called at most once, `started` before `exited`. */
export interface GuestEvents {
  /** Guest code is about to run. `pid` is the process group leader of a guest that is a process. */
  started(info: { pid?: number }): void;
  /** The thread or process, and every process below it, is gone; all its output is in the files. */
  exited(exit: GuestExit): void;
}

/** One running guest, as its engine offers it. Every method is harmless after the guest's end. */
export interface Guest {
  /** Delivers a signal: to the handler the guest installed, else the default action. `SIGKILL` is {@link kill}. */
  signal(name: NodeJS.Signals): void;
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
