import { type ChildProcess, execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { FailedPreconditionError, InvalidArgumentError } from '../errors.ts';
import { killTrees } from '../processes.ts';
import type { EngineKind } from './cell-supervisor.ts';

/** A language this daemon knows. */
export interface Language {
  name: string;
  aliases: string[];
  /** Of the interpreter; empty when there is none. */
  version: string;
  available: boolean;
  /** Why not, for people; empty when available. */
  message: string;
}

interface LanguageSpec {
  aliases: string[];
  engine: EngineKind;
  /** What a program is called whose request does not say. */
  mainName: string;
}

const LANGUAGES: Record<string, LanguageSpec> = {
  javascript: { aliases: ['js', 'node', 'nodejs'], engine: 'javascript', mainName: 'main.js' },
  typescript: { aliases: ['ts'], engine: 'javascript', mainName: 'main.ts' },
  python: { aliases: ['py', 'python3'], engine: 'python', mainName: 'main.py' },
};

/** How long an interpreter may take to say its version, in ms. */
const PROBE_LIMIT_MS = 30_000;
/** How long one that was not found is not looked for again: at least so many ms, and so many times as long as that took. */
const LOOK_AGAIN_MS = 2_000;
const LOOK_RATIO = 10;
const OLDEST_PYTHON = [3, 9] as const;
/** All that it says then. */
const ANSWER = /^\d+\.\d+\.\d+ .*\n$/s;

/** How long, by its abort signal, what was not found is looked for again; and what hears that it was found. */
interface Looks {
  until: AbortSignal;
  found(name: string, version: string): void;
}

/** The languages of this node: what there is, and what each is called. */
export class Languages {
  readonly #command: string;
  readonly #looks: Looks;
  #python: Probed;
  #isLooking = false;
  /** On the monotonic clock. */
  #lookAfterMs = performance.now() + LOOK_AGAIN_MS;

  private constructor(command: string, python: Probed, looks: Looks) {
    this.#command = command;
    this.#python = python;
    this.#looks = looks;
  }

  /** Looks for the interpreters, until `signal` aborts. `python` is a name on the `PATH` or a path. */
  static async probe(python: string, signal: AbortSignal, looks: Looks): Promise<Languages> {
    return new Languages(python, await probePython(python, signal), looks);
  }

  /** The interpreter of Python's guests: what was found is what runs, also where that was a launcher that looks for it. */
  get python(): string {
    return this.#python.executable || this.#command;
  }

  /** What did not answer is looked for again, so that a later call may tell of it. */
  list(): Language[] {
    void this.#lookAgain();
    return this.#all();
  }

  /** The proper name of a language that may be called by an alias. Throws when there is none of that name. */
  resolve(nameOrAlias: string, field: string): string {
    const wanted = nameOrAlias.toLowerCase();
    for (const { name, aliases } of this.#all()) {
      if (name === wanted || aliases.includes(wanted)) return name;
    }
    throw new InvalidArgumentError(`${field}: unknown language "${nameOrAlias}" (there are ${this.#names()})`);
  }

  /** Throws when the language is enabled in the session but cannot run on this node. */
  requireAvailable(name: string): void {
    const language = this.#all().find((known) => known.name === name);
    if (language?.available !== true) {
      void this.#lookAgain();
      throw new FailedPreconditionError(`language "${name}" is not available on this node: ${language?.message}`);
    }
  }

  /**
   * A node that had too few processes or too little time as its daemon started is not without a language for that. Not soon
   * after it was looked for, the later the longer that took, and not for one that has said that it is too old.
   */
  async #lookAgain(): Promise<void> {
    const beganMs = performance.now();
    const { until, found } = this.#looks;
    if (this.#python.version !== '' || this.#isLooking || until.aborted || beganMs < this.#lookAfterMs) return;
    this.#isLooking = true;
    const python = await probePython(this.#command, until);
    const endedMs = performance.now();
    this.#isLooking = false;
    this.#lookAfterMs = endedMs + Math.max(LOOK_AGAIN_MS, (endedMs - beganMs) * LOOK_RATIO);
    if (until.aborted) return;
    this.#python = python;
    if (python.available) found('python', python.version);
  }

  #all(): Language[] {
    const node = { version: process.versions.node, available: true, message: '' };
    const { executable: _, ...python } = this.#python;
    const found = { javascript: node, typescript: node, python };
    return Object.entries(found).map(([name, of]) => ({ name, aliases: specOf(name).aliases, ...of }));
  }

  #names(): string {
    return Object.keys(LANGUAGES).join(', ');
  }
}

/** What runs a language: JavaScript has a choice. */
export function engineOf(language: string, { isolation }: { isolation: string }): EngineKind {
  const { engine } = specOf(language);
  return engine === 'javascript' && isolation === 'process' ? 'process' : engine;
}

export function specOf(name: string): LanguageSpec {
  const spec = LANGUAGES[name];
  if (spec === undefined) throw new TypeError(`no such language: ${name}`);
  return spec;
}

interface Probed extends Pick<Language, 'version' | 'available' | 'message'> {
  /** Absolute; empty where there is none, or none that knows. */
  executable: string;
}

async function probePython(python: string, stopped: AbortSignal): Promise<Probed> {
  const script = 'import sys; print("%d.%d.%d" % sys.version_info[:3], sys.executable or "")';
  const signal = AbortSignal.any([stopped, AbortSignal.timeout(PROBE_LIMIT_MS)]);
  let child: ChildProcess | undefined;
  // The end of its output is not waited for: processes that it has started may have it, and outlive it.
  const hearNoMore = () => {
    child?.stdout?.destroy();
    child?.stderr?.destroy();
  };
  // Before the interpreter itself, which may be a launcher, is ended: then nobody knew what it has started.
  const end = () => {
    if (child?.pid !== undefined && child.exitCode === null && child.signalCode === null) killTrees([child.pid]);
    hearNoMore();
  };
  signal.addEventListener('abort', end);
  try {
    const asked = promisify(execFile)(python, ['-I', '-c', script], { signal });
    child = asked.child;
    let said = '';
    const look = () => {
      if (asked.child.exitCode === 0 && ANSWER.test(said)) hearNoMore();
    };
    child.once('exit', look).stdout?.on('data', (text: string) => {
      said += text;
      look();
    });
    const { stdout } = await asked;
    if (stdout.trim() === '') throw new Error('did not say its version');
    const [version = '', executable = ''] = stdout.trim().split(/ (.*)/s);
    const [major = 0, minor = 0] = version.split('.').map(Number);
    if (major > OLDEST_PYTHON[0] || (major === OLDEST_PYTHON[0] && minor >= OLDEST_PYTHON[1])) {
      return { version, available: true, message: '', executable };
    }
    const message = `${python} is ${version}; ${OLDEST_PYTHON.join('.')} is the oldest`;
    return { version, available: false, message, executable };
  } catch (error) {
    const limit = stopped.aborted ? 'before the daemon was stopped' : `within ${PROBE_LIMIT_MS / 1000} s`;
    const failed = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'not found' : (error as Error).message.trim();
    const why = signal.aborted ? `did not say its version ${limit}` : failed;
    const message = `${python}: ${why} (set python in the configuration)`;
    return { version: '', available: false, message, executable: '' };
  } finally {
    signal.removeEventListener('abort', end);
  }
}
