import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Guest, GuestExit, StartRequest } from '../../src/cell/engine.ts';
import { PythonEngine, type PythonEngineOptions } from '../../src/cell/python-engine.ts';

export const MB = 2 ** 20;

/** One started guest and what became of it. */
export interface Run {
  guest: Guest;
  /** Its working directory is `work` in this one. */
  dir: string;
  mainPath: string;
  started: Promise<number>;
  exited: Promise<GuestExit>;
  /** Times that `outputExceeded` was told. */
  exceeded(): number;
  isOver(): boolean;
  stdout(): string;
  stderr(): string;
}

/** What every engine of these tests is made with. */
export const OPTIONS = {
  python: 'python3',
  zygotePath: fileURLToPath(new URL('../../workers/zygote.py', import.meta.url)),
};

/** To start this code with its directories, which are made, in `dir`. */
export function requestIn(dir: string, executionKey: string, code: string): StartRequest {
  for (const name of ['work', 'tmp', 'out']) mkdirSync(join(dir, name), { recursive: true });
  return {
    executionKey,
    language: 'python',
    code,
    args: [],
    env: {},
    cwd: join(dir, 'work'),
    mainPath: join(dir, 'main.py'),
    writeMain: true,
    tmpDir: join(dir, 'tmp'),
    outputDir: join(dir, 'out'),
    stdin: true,
    limits: { outputKill: false },
    signalTree: false,
  };
}

/** An engine with a directory of its own. Disposing ends its guests. */
export class Host {
  readonly engine: PythonEngine;
  readonly root = mkdtempSync(join(tmpdir(), 'python-host-'));
  #count = 0;

  constructor(options: Partial<PythonEngineOptions> = {}) {
    this.engine = new PythonEngine({ ...OPTIONS, ...options });
  }

  start(code: string, overrides: Partial<StartRequest> = {}): Run {
    const executionKey = `e${++this.#count}`;
    const dir = join(this.root, executionKey);
    const started = Promise.withResolvers<number>();
    const exited = Promise.withResolvers<GuestExit>();
    let [exceeded, over] = [0, false];
    const request: StartRequest = { ...requestIn(dir, executionKey, code), ...overrides };
    const guest = this.engine.start(request, {
      started: ({ pid }) => started.resolve(pid ?? 0),
      outputExceeded: () => exceeded++,
      exited: (exit) => {
        over = true;
        exited.resolve(exit);
      },
    });
    const written = (name: string) => readFileSync(join(dir, 'out', name), 'utf8');
    return {
      guest,
      dir,
      mainPath: request.mainPath,
      started: started.promise,
      exited: exited.promise,
      exceeded: () => exceeded,
      isOver: () => over,
      stdout: () => written('stdout'),
      stderr: () => written('stderr'),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** The letter of proc_pid_stat(5); undefined for a process that is gone. */
export function stateOf(pid: number): string | undefined {
  try {
    return /^State:\s+(\S)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  } catch {
    return undefined;
  }
}

/** Writes its pid to a file, and sleeps, in a session of its own whose parent is gone. */
export const DAEMON = `
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid() if os.getpid() != os.getsid(0) else None
        with open('daemon.tmp', 'w') as file: file.write(str(os.getpid()))
        os.rename('daemon.tmp', 'daemon')
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists('daemon'): time.sleep(0.001)
print('ready')
`;

export function parentOf(pid: number): number {
  return Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}
