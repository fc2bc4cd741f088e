import type { MessagePort } from 'node:worker_threads';
import type { OutputDescriptors, OutputRotation } from '../../workers/output-writer.ts';

/** What runs in a JavaScript context, whichever thread or process that is. */
export interface ProgramTask {
  mainPath: string;
  /** The program's JavaScript when it does not lie at `mainPath`: served under that path instead of read from there. */
  source?: MainSource;
  /** The program is TypeScript: `source` has to be made JavaScript, and stack traces go through source maps. */
  typescript: boolean;
  args: string[];
  env: Record<string, string>;
  cwd: string;
  tmpDir: string;
  /** The execution's `stdout` and `stderr` files by path, for children and for those who open `/dev/stdout`. */
  outputPaths: { stdout: string; stderr: string };
  /** False: standard input is at its end from the start. */
  stdin: boolean;
  /** Standard output and standard error together; undefined: no limit. */
  outputBytes: number | undefined;
  /** Child processes at one time; undefined: no limit. */
  maxChildren: number | undefined;
}

/** What a JavaScript thread is told when it is given its one execution. */
export interface ThreadTask extends ProgramTask {
  /** The thread's end of the control channel: {@link CellMessage} in, {@link ThreadMessage} out. */
  control: MessagePort;
  /** Facts that must be readable while the other side is busy or gone; its layout is `workers/javascript/shared.ts`. */
  shared: SharedArrayBuffer;
  /** Shared by all threads of the cell; laid out there too. */
  reaped: SharedArrayBuffer;
  descriptors: OutputDescriptors;
}

/** What a JavaScript process is told when it is given its one execution: one line of JSON. */
export interface ProcessTask extends ProgramTask {
  /** Files it writes `0` into to join control groups. */
  groups: string[];
  /** Where it notes when bytes were written; undefined where its output is rotated. */
  marksPath: string | undefined;
  rotation: Omit<OutputRotation, 'current'> | undefined;
}

/** A program's code that is not read from its own path. */
export interface MainSource {
  code: string;
  /** Where it lies: `mainPath`, or what that is a link to, beside which it finds what it imports. */
  path: string;
  /** What the user wrote, where that is something else. */
  original?: string;
  /** `syntax`: CommonJS unless it only parses as a module, Node's rule where no package.json decides. */
  format: 'commonjs' | 'module' | 'syntax';
}

/** From the cell to the thread, over the control port. */
export type CellMessage =
  | { type: 'signal'; name: NodeJS.Signals; number: number }
  | { type: 'input'; bytes: Uint8Array; end: boolean };

/** What of a thread is not its guest's: what it was before guest code runs in it. */
export interface ThreadStart {
  /** Its id, the kernel's. */
  thread: number;
  /** CPU time, in µs. */
  user: number;
  system: number;
  /** When it had booted. */
  booted: ThreadBoot;
}

/** What a thread held when it had booted, in bytes, and how many pages it had touched first by then: minor faults. */
export interface ThreadBoot {
  faults: number;
  /** Of its heap, what was used, and the whole. */
  usedBytes: number;
  heapBytes: number;
  externalBytes: number;
}

/** From the thread to the cell, over the control port. */
export type ThreadMessage =
  /** Guest code is about to run: in the thread of that id of the kernel's, which has used so many µs. */
  | ({ type: 'started' } & ThreadStart)
  /** So many input messages were taken since the last such message. */
  | { type: 'taken'; count: number };

/** From a process to the cell: a line of JSON each. A program can find the descriptor, and write there what it likes. */
export type ProcessMessage =
  /** It has booted. */
  | { type: 'warm' }
  /** Guest code is about to run; what its boot has used, and its resident set, is not the guest's. */
  | { type: 'started'; userSeconds: number; systemSeconds: number; residentBytes: number }
  /** Bits of `OUTPUT`, and how many bytes were dropped in all. */
  | { type: 'output'; bits: number; dropped: number }
  /** It has a child process; 0 for one that it waits for synchronously. */
  | { type: 'child'; pid: number }
  /** It ends by itself: what it has used since its start, ended children included, and its largest resident set. */
  | { type: 'end'; userSeconds: number; systemSeconds: number; residentBytes: number; dropped: number };
