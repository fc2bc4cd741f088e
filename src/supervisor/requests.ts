import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { isAbsolute, resolve } from 'node:path';
import { FailedPreconditionError, InvalidArgumentError } from '../errors.ts';
import type { Languages } from './languages.ts';
import { specOf } from './languages.ts';

/** What a session may do, as its creator asks for it. Absent fields have the daemon's defaults. */
export interface SessionConfiguration {
  /** How many contexts are kept warm at most, 1 to 1000; 0: the daemon's default. Not how many may run. */
  contextPoolSize?: number | undefined;
  /** Names or aliases; empty: all this node has. */
  enabledLanguages?: string[] | undefined;
  enabledIntrinsics?: string[] | undefined;
  /** Heap limit of one JavaScript context in MiB, 8 to 1048576; 0: the engine's default. */
  memoryLimitMb?: number | undefined;
  enableAi?: boolean | undefined;
}

/** A session's configuration with every field filled in. */
export type CheckedSessionConfiguration = { [K in keyof SessionConfiguration]-?: NonNullable<SessionConfiguration[K]> };

/** What to run, as a client asks for it. */
export interface Snippet {
  sessionId: string;
  /** Unique in the session. */
  executionId: string;
  code: string;
  language: string;
  env?: Record<string, string> | undefined;
  args?: string[] | undefined;
  /** Run limit in ms from the start of guest code, 1 to {@link LONGEST_MS}; absent: none. */
  timeoutMs?: number | undefined;
  /** How long a stop waits between signal and force, in ms, 0 to {@link LONGEST_MS}; absent: the daemon's default. */
  graceMs?: number | undefined;
  /** Absolute; an existing directory. Absent: a fresh private one, removed at the end. */
  workingDirectory?: string | undefined;
  /** What the program is called; relative to the working directory. Absent: `main.js`, `main.ts`, `main.py`. */
  sourceFileName?: string | undefined;
  /** Keep standard input open for `writeInput`. */
  stdin?: boolean | undefined;
}

/** A snippet that was found good. */
export interface ExecutionRequest {
  sessionId: string;
  executionId: string;
  code: string;
  language: string;
  env: Record<string, string>;
  args: string[];
  timeoutMs: number | undefined;
  graceMs: number;
  workingDirectory: string | undefined;
  sourceFileName: string;
  stdin: boolean;
  /** Equal for equal requests. */
  fingerprint: string;
}

/** The longest duration anybody may ask for: 24 days, the most a timer of the runtime can hold. */
export const LONGEST_MS = 2_073_600_000;

const LONGEST_ID_BYTES = 1024;
const LARGEST_POOL = 1000;
const SMALLEST_HEAP_MB = 8;
const LARGEST_HEAP_MB = 1_048_576;

/** Ids are the clients' own; they must be printable, and never become a path. */
export function checkId(value: string, field: string): string {
  if (value === '') throw new InvalidArgumentError(`${field} is empty`);
  const bytes = Buffer.byteLength(value);
  if (bytes > LONGEST_ID_BYTES) {
    throw new InvalidArgumentError(`${field} has ${bytes} bytes; at most ${LONGEST_ID_BYTES} are allowed`);
  }
  if (/\p{Cc}/u.test(value)) {
    throw new InvalidArgumentError(`${field} ${JSON.stringify(value)} has a control character`);
  }
  return value;
}

/** Throws unless `value` is a whole number of ms within the bounds, both included. */
export function checkDuration(value: number, field: string, leastMs: number): number {
  if (!Number.isInteger(value) || value < leastMs || value > LONGEST_MS) {
    throw new InvalidArgumentError(`${field} is ${value} ms; it must be ${leastMs} to ${LONGEST_MS} ms (24 days)`);
  }
  return value;
}

/** Fills in and checks a session's configuration. */
export function checkSessionConfiguration(
  config: SessionConfiguration,
  languages: Languages,
  defaults: { contextPoolSize: number },
): CheckedSessionConfiguration {
  const contextPoolSize = config.contextPoolSize || defaults.contextPoolSize;
  if (!Number.isInteger(contextPoolSize) || contextPoolSize < 0 || contextPoolSize > LARGEST_POOL) {
    throw new InvalidArgumentError(`config.context_pool_size is ${contextPoolSize}; it must be 0 to ${LARGEST_POOL}`);
  }
  const memoryLimitMb = config.memoryLimitMb ?? 0;
  if (memoryLimitMb !== 0 && (memoryLimitMb < SMALLEST_HEAP_MB || memoryLimitMb > LARGEST_HEAP_MB)) {
    throw new InvalidArgumentError(
      `config.memory_limit_mb is ${memoryLimitMb}; it must be ${SMALLEST_HEAP_MB} to ${LARGEST_HEAP_MB} MiB`,
    );
  }
  const wanted = config.enabledLanguages ?? [];
  const enabledLanguages =
    wanted.length === 0
      ? languages.list().map(({ name }) => name)
      : [...new Set(wanted.map((name) => languages.resolve(name, 'config.enabled_languages')))];
  return {
    contextPoolSize,
    enabledLanguages,
    enabledIntrinsics: config.enabledIntrinsics ?? [],
    memoryLimitMb,
    enableAi: config.enableAi ?? false,
  };
}

/** Checks a snippet against the node and its session, and fills in what it leaves open. */
export async function checkSnippet(
  snippet: Snippet,
  session: CheckedSessionConfiguration,
  languages: Languages,
  limits: { maxCodeBytes: number; graceMs: number },
): Promise<ExecutionRequest> {
  const { sessionId, executionId, code } = snippet;
  checkId(executionId, 'execution_id');
  const language = languages.resolve(snippet.language, 'language');
  if (!session.enabledLanguages.includes(language)) {
    throw new FailedPreconditionError(
      `language "${language}" is not enabled in session "${sessionId}" (enabled: ${session.enabledLanguages.join(', ')})`,
    );
  }
  languages.requireAvailable(language);
  const codeBytes = Buffer.byteLength(code);
  if (codeBytes === 0) throw new InvalidArgumentError('code is empty');
  if (codeBytes > limits.maxCodeBytes) {
    throw new InvalidArgumentError(`code has ${codeBytes} bytes; at most ${limits.maxCodeBytes} are allowed`);
  }
  const { args = [], env = {}, timeoutMs, workingDirectory, stdin = false } = snippet;
  for (const [index, arg] of args.entries()) checkNoNul(arg, `args[${index}]`);
  for (const [name, value] of Object.entries(env)) {
    if (name === '' || name.includes('=') || name.includes('\0')) {
      throw new InvalidArgumentError(`env: ${JSON.stringify(name)} is not a name (empty, or with "=" or NUL)`);
    }
    checkNoNul(value, `env ${name}`);
  }
  if (timeoutMs !== undefined) checkDuration(timeoutMs, 'config.timeout', 1);
  const graceMs = checkDuration(snippet.graceMs ?? limits.graceMs, 'config.grace', 0);
  const sourceFileName = snippet.sourceFileName || specOf(language).mainName;
  if (/\p{Cc}/u.test(sourceFileName) || sourceFileName.endsWith('/')) {
    throw new InvalidArgumentError(`config.source_file_name ${JSON.stringify(sourceFileName)} is no file name`);
  }
  if (workingDirectory !== undefined) await checkDirectory(workingDirectory, 'config.working_directory');
  const request = {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    timeoutMs,
    graceMs,
    workingDirectory,
    sourceFileName,
    stdin,
  };
  return { ...request, fingerprint: fingerprint(request) };
}

function checkNoNul(value: string, field: string): void {
  if (value.includes('\0')) throw new InvalidArgumentError(`${field} has a NUL character`);
}

async function checkDirectory(path: string, field: string): Promise<void> {
  if (!isAbsolute(path) || path.includes('\0') || resolve(path) === '') {
    throw new InvalidArgumentError(`${field} ${JSON.stringify(path)} is not an absolute path`);
  }
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => error.code ?? 'unreadable');
  if (typeof found === 'string') throw new InvalidArgumentError(`${field} ${JSON.stringify(path)}: ${found}`);
  if (!found.isDirectory()) throw new InvalidArgumentError(`${field} ${JSON.stringify(path)} is not a directory`);
}

function fingerprint(request: Omit<ExecutionRequest, 'fingerprint'>): string {
  const { code, env, ...rest } = request;
  const sortedEnv = Object.entries(env).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash('sha256')
    .update(JSON.stringify([rest, sortedEnv]))
    .update('\0')
    .update(code)
    .digest('base64url');
}
