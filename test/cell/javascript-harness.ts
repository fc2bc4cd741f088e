import { lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Engine, Guest, GuestExit, GuestLimits, StartRequest } from '../../src/cell/engine.ts';
import { JavaScriptEngine, type JavaScriptEngineOptions } from '../../src/cell/javascript-engine.ts';

/** The worker as it is shipped: what runs beside guest code is always built JavaScript. */
export const WORKER = fileURLToPath(new URL('../../dist/workers/javascript.cjs', import.meta.url));

/** What one execution came to. */
export interface Result extends GuestExit {
  out: string;
  err: string;
  /** In the order they came. */
  events: string[];
  /** The Node thread it ran in. */
  thread: number | undefined;
}

/** A running execution of a {@link Harness}. */
export interface Running {
  guest: Guest;
  directory: string;
  cwd: string;
  started: Promise<void>;
  /** What it runs in is gone, which is told where its end may take longer. */
  gone: Promise<void>;
  outputExceeded: Promise<void>;
  result: Promise<Result>;
  out(): string;
  /** Resolves when standard output holds `text`. */
  printed(text: string): Promise<void>;
}

/** What a test may say of an execution; limits that are not named are none. */
export type Overrides = Partial<Omit<StartRequest, 'limits'>> & { extension?: string; limits?: Partial<GuestLimits> };

/** An engine on real threads or processes, with directories as the cell makes them. */
export class EngineHarness<E extends Engine> implements AsyncDisposable {
  readonly engine: E;
  readonly root = mkdtempSync(join(tmpdir(), 'javascript-engine-'));
  #count = 0;

  constructor(engine: E) {
    this.engine = engine;
  }

  start(code: string, overrides: Overrides = {}): Running {
    this.#count += 1;
    const { extension = overrides.language === 'typescript' ? '.ts' : '.js', limits, ...rest } = overrides;
    const directory = join(this.root, `e${this.#count}`);
    const [cwd, tmpDir, outputDir] = ['cwd', 'tmp', 'out'].map((name) => join(directory, name)) as [
      string,
      string,
      string,
      string,
    ];
    for (const path of [cwd, tmpDir, outputDir]) mkdirSync(path, { recursive: true });
    const begun = Promise.withResolvers<void>();
    const gone = Promise.withResolvers<void>();
    const exceeded = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<Result>();
    const events: string[] = [];
    // A link leads to a device.
    const outputs = overrides.outputDir ?? outputDir;
    const read = (name: string) => {
      const path = join(outputs, name);
      return lstatSync(path, { throwIfNoEntry: false })?.isFile() ? readFileSync(path, 'utf8') : '';
    };
    const request: StartRequest = {
      executionKey: `e${this.#count}`,
      language: 'javascript',
      code,
      args: [],
      env: {},
      cwd,
      mainPath: join(directory, `main${extension}`),
      writeMain: true,
      tmpDir,
      outputDir,
      stdin: false,
      signalTree: false,
      limits: { outputKill: false, ...limits },
      ...rest,
    };
    let thread: number | undefined;
    const guest = this.engine.start(request, {
      started(info) {
        events.push('started');
        thread = info.thread;
        begun.resolve();
      },
      gone: () => gone.resolve(),
      outputExceeded() {
        events.push('outputExceeded');
        exceeded.resolve();
      },
      exited(exit) {
        events.push('exited');
        ended.resolve({ ...exit, out: read('stdout'), err: read('stderr'), events, thread });
      },
    });
    const printed = async (text: string) => {
      while (!read('stdout').includes(text)) await new Promise(setImmediate);
    };
    return {
      guest,
      directory,
      cwd: request.cwd,
      started: begun.promise,
      gone: gone.promise,
      outputExceeded: exceeded.promise,
      result: ended.promise,
      out: () => read('stdout'),
      printed,
    };
  }

  run(code: string, overrides: Overrides = {}): Promise<Result> {
    return this.start(code, overrides).result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** One on threads. */
export class Harness extends EngineHarness<JavaScriptEngine> {
  constructor(options: Partial<JavaScriptEngineOptions> = {}) {
    super(new JavaScriptEngine({ workerUrl: WORKER, ...options }));
  }
}
