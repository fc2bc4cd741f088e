import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Guest, GuestExit, StartRequest } from '../../src/cell/engine.ts';
import type { GuestGroups } from '../../src/cell/guest-groups.ts';
import { PythonEngine } from '../../src/cell/python-engine.ts';

export const MB = 2 ** 20;

/** One started guest and what became of it. */
export interface Run {
  guest: Guest;
  dir: string;
  started: Promise<number>;
  exited: Promise<GuestExit>;
  /** Times that `outputExceeded` was told. */
  exceeded(): number;
  stdout(): string;
}

/** An engine with a directory of its own. `close` ends its guests. */
export class Host {
  readonly engine: PythonEngine;
  readonly #root = mkdtempSync(join(tmpdir(), 'python-host-'));
  #count = 0;

  constructor(groups?: GuestGroups) {
    const zygotePath = fileURLToPath(new URL('../../workers/zygote.py', import.meta.url));
    this.engine = new PythonEngine({ python: 'python3', zygotePath, groups });
  }

  start(code: string, overrides: Partial<StartRequest> = {}): Run {
    const executionKey = `e${++this.#count}`;
    const dir = join(this.#root, executionKey);
    for (const name of ['work', 'tmp', 'out']) mkdirSync(join(dir, name), { recursive: true });
    const started = Promise.withResolvers<number>();
    const exited = Promise.withResolvers<GuestExit>();
    let exceeded = 0;
    const request: StartRequest = {
      executionKey,
      language: 'python',
      code,
      args: [],
      env: { PATH: '/usr/bin:/bin' },
      cwd: join(dir, 'work'),
      mainPath: join(dir, 'main.py'),
      writeMain: true,
      tmpDir: join(dir, 'tmp'),
      outputDir: join(dir, 'out'),
      stdin: true,
      limits: { outputKill: false },
      signalTree: false,
      ...overrides,
    };
    const guest = this.engine.start(request, {
      started: ({ pid }) => started.resolve(pid ?? 0),
      outputExceeded: () => exceeded++,
      exited: (exit) => exited.resolve(exit),
    });
    const stdout = () => readFileSync(join(dir, 'out', 'stdout'), 'utf8');
    return { guest, dir, started: started.promise, exited: exited.promise, exceeded: () => exceeded, stdout };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    rmSync(this.#root, { recursive: true, force: true });
  }
}

/** Resolves when the condition holds; rejects after 30 s. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + 30_000;
  while (!condition()) {
    if (performance.now() > deadlineMs) throw new Error(`not within 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
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
