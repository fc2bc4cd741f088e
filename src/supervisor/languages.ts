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
/** How long one that was not found is not looked for again, in ms. */
const LOOK_AGAIN_MS = 2_000;
const OLDEST_PYTHON = [3, 9] as const;
/** All that it says then. */
const ANSWER = /^\d+\.\d+\.\d+ .*\n$/s;

/** The languages of this node: what there is, and what each is called. */
export class Languages {
  readonly #command: string;
  #python: Probed;
  #isLooking = false;
  /** When Python was looked for last, on the monotonic clock. */
  #lookedAtMs = performance.now();

  private constructor(command: string, python: Probed) {
    this.#command = command;
    this.#python = python;
  }

  /** Looks for the interpreters, until `signal` aborts. `python` is a name on the `PATH` or a path. */
  static async probe(python: string, signal: AbortSignal): Promise<Languages> {
    return new Languages(python, await probePython(python, signal));
  }

  /** The interpreter of Python's guests: what was found is what runs, also where that was a launcher that looks for it. */
  get python(): string {
    return this.#python.executable || this.#command;
  }

  /**
   * Looks for what was not found, until `signal` aborts, and tells what is found then. A node that had too few processes or
   * too little time as its daemon started is not without a language for that. Not soon after it was looked for.
   */
  async lookAgain(signal: AbortSignal, onFound: (language: Language) => void): Promise<void> {
    const isEarly = performance.now() - this.#lookedAtMs < LOOK_AGAIN_MS;
    if (this.#python.available || this.#isLooking || isEarly) return;
    this.#isLooking = true;
    const python = await probePython(this.#command, signal);
    this.#isLooking = false;
    this.#lookedAtMs = performance.now();
    if (signal.aborted) return;
    this.#python = python;
    for (const language of this.list()) if (language.name === 'python' && language.available) onFound(language);
  }

  list(): Language[] {
    const node = { version: process.versions.node, available: true, message: '' };
    const { executable: _, ...python } = this.#python;
    const found = { javascript: node, typescript: node, python };
    return Object.entries(found).map(([name, of]) => ({ name, aliases: specOf(name).aliases, ...of }));
  }

  /** The proper name of a language that may be called by an alias. Throws when there is none of that name. */
  resolve(nameOrAlias: string, field: string): string {
    const wanted = nameOrAlias.toLowerCase();
    for (const { name, aliases } of this.list()) {
      if (name === wanted || aliases.includes(wanted)) return name;
    }
    throw new InvalidArgumentError(`${field}: unknown language "${nameOrAlias}" (there are ${this.#names()})`);
  }

  /** Throws when the language is enabled in the session but cannot run on this node. */
  requireAvailable(name: string): void {
    const language = this.list().find((known) => known.name === name);
    if (language?.available !== true) {
      throw new FailedPreconditionError(`language "${name}" is not available on this node: ${language?.message}`);
    }
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
