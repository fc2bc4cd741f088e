import type { MessagePort } from 'node:worker_threads';
import type { OutputDescriptors } from '../../workers/output-writer.ts';

/** What a JavaScript thread is told when it is given its one execution. */
export interface ThreadTask {
  /** The thread's end of the control channel: {@link CellMessage} in, {@link ThreadMessage} out. */
  control: MessagePort;
  /** Facts that must be readable while the other side is busy or gone; its layout is `workers/javascript/shared.ts`. */
  shared: SharedArrayBuffer;
  /** Shared by all threads of the cell; laid out there too. */
  reaped: SharedArrayBuffer;
  mainPath: string;
  /** The program's JavaScript when it does not lie at `mainPath`: served under that path instead of read from there. */
  source?: MainSource;
  /** True when stack traces go through source maps: the program was TypeScript. */
  sourceMaps: boolean;
  args: string[];
  env: Record<string, string>;
  cwd: string;
  tmpDir: string;
  /** The execution's `stdout` and `stderr` files by path, for children and for those who open `/dev/stdout`. */
  outputPaths: { stdout: string; stderr: string };
  descriptors: OutputDescriptors;
  /** False: standard input is at its end from the start. */
  stdin: boolean;
  /** Standard output and standard error together; undefined: no limit. */
  outputBytes: number | undefined;
  /** Child processes at one time; undefined: no limit. */
  maxChildren: number | undefined;
}

/** A program's code that is not read from its own path. */
export interface MainSource {
  /** JavaScript. */
  code: string;
  /** What the user wrote, where that is something else. */
  original?: string;
  /** `syntax`: CommonJS unless it only parses as a module, Node's rule where no package.json decides. */
  format: 'commonjs' | 'module' | 'syntax';
}

/** From the cell to the thread, over the control port. */
export type CellMessage =
  | { type: 'signal'; name: NodeJS.Signals; number: number }
  | { type: 'input'; bytes: Uint8Array; end: boolean };

/** From the thread to the cell, over the control port. */
export type ThreadMessage =
  /** Guest code is about to run. */
  | { type: 'started' }
  /** So many input messages were taken since the last such message. */
  | { type: 'taken'; count: number };
