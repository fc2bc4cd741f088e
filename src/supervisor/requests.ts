import { createHash } from 'node:crypto';
import { access, constants, lstat, stat } from 'node:fs/promises';
import { devNull } from 'node:os';
import { dirname, isAbsolute } from 'node:path';
import { FailedPreconditionError, InvalidArgumentError } from '../errors.ts';
import { checkSessionTypes, checkSnippetTypes, checkText } from './argument-types.ts';
import type { Languages } from './languages.ts';
import { engineOf, specOf } from './languages.ts';
import {
  applyDefaults,
  type CheckedOptions,
  checkCeilings,
  checkDefaults,
  checkDuration,
  checkEnforcement,
  checkLimits,
  checkSoft,
  type Enforcement,
  type ExecutionDefaults,
  type ExecutionLimits,
  overDefaults,
  withoutUndefined,
} from './limits.ts';
import type { RetentionLimits } from './retention.ts';
import { requireThreadSignal } from './signals.ts';

/** What a session may do, as its creator asks for it. Absent fields have the daemon's defaults. */
export interface SessionConfiguration {
  /** How many contexts are kept warm at most, 1 to 1000; 0: the daemon's default. Not how many may run. */
  contextPoolSize?: number | undefined;
  /** Names or aliases; empty: all this node has. */
  enabledLanguages?: string[] | undefined;
  enabledIntrinsics?: string[] | undefined;
  /** Memory limit of each execution in MiB, 8 to 1048576: default and ceiling where those say nothing. 0: none. */
  memoryLimitMb?: number | undefined;
  enableAi?: boolean | undefined;
  /** What an execution has that does not say. */
  executionDefaults?: ExecutionDefaults | undefined;
  /** The most an execution may ask for; a limit with a ceiling cannot be switched off. */
  executionCeilings?: ExecutionLimits | undefined;
  /** How many executions run at most at one time, 0 to 1000000; 0: as many as the node has places for. */
  maxRunning?: number | undefined;
  /** How many may wait, 0 to 10000000; 0: the daemon's default. */
  maxQueued?: number | undefined;
  /** Share of the node's places when sessions compete, 1 to 1000; 0: 100. */
  weight?: number | undefined;
  /** It is deleted once nothing was pending or running in it for so long, in ms, 1 to {@link LONGEST_MS}. Absent: never. */
  idleTtlMs?: number | undefined;
  /** It is deleted so long after its creation, whatever runs, in ms, 1 to {@link LONGEST_MS}. Absent: never. */
  totalTtlMs?: number | undefined;
  /** How long after its end an execution stays queryable, in ms, 1 to {@link LONGEST_MS}. Absent: the daemon's bounds alone. */
  retainedAgeMs?: number | undefined;
  /** How many finished executions stay queryable, 1 to 10000000. Absent: the daemon's bounds alone. */
  retainedExecutions?: number | undefined;
  /** Bytes of output of all executions, 1 to 2^50: beyond, that of the oldest finished ones goes. Absent: the daemon's alone. */
  outputBudgetBytes?: number | undefined;
}

/** Fields that stay absent where nobody gave them. */
type Optional = 'idleTtlMs' | 'totalTtlMs' | 'retainedAgeMs' | 'retainedExecutions' | 'outputBudgetBytes';

/** A session's configuration with every field filled in that has a default. */
export type CheckedSessionConfiguration = {
  [K in Exclude<keyof SessionConfiguration, Optional>]-?: NonNullable<SessionConfiguration[K]>;
} & Pick<SessionConfiguration, Optional>;

/** What is kept of a session's finished executions; undefined when the daemon's own bounds are all there are. */
export function retentionOf(config: CheckedSessionConfiguration): RetentionLimits | undefined {
  const { retainedAgeMs: ageMs, retainedExecutions: executions, outputBudgetBytes: outputBytes } = config;
  if (ageMs === undefined && executions === undefined && outputBytes === undefined) return undefined;
  return { ageMs, executions, outputBytes };
}

/** What to run, as a client asks for it. */
export interface Snippet extends ExecutionDefaults {
  sessionId: string;
  /** Unique in the session. */
  executionId: string;
  code: string;
  language: string;
  env?: Record<string, string> | undefined;
  args?: string[] | undefined;
  /** Absolute; an existing directory. Absent: a fresh private one, removed at the end. */
  workingDirectory?: string | undefined;
  /** What the program is called; relative to the working directory. Absent: `main.js`, `main.ts`, `main.py`, in a given one `<main.js>` and so on, which is no file. */
  sourceFileName?: string | undefined;
  /** Keep standard input open for `writeInput`. */
  stdin?: boolean | undefined;
  /** It has the session's next place, ahead of what waits there already: somebody waits for it. */
  ahead?: boolean | undefined;
  /** Where output goes instead of into the daemon's own files. */
  outputFiles?: OutputFiles | undefined;
}

/**
 * Files or pipes of the caller's that a guest's output is written to; the daemon itself keeps none. All of it is there when
 * the guest has ended; of one that was ended by force, the rest may still be on its way into a pipe.
 */
export interface OutputFiles {
  /**
   * Absolute. With `maxFiles`: what the names of files begin with, `.0`, `.1` and so on follow. Without: a pipe that is
   * there; what its reader has not taken waits on disk, the newest 100 MiB of each stream.
   */
  stdout: string;
  stderr: string;
  /** How many files of each stream are kept, 0 to 1000: the newest. */
  maxFiles: number;
  /** When the next file is begun, in bytes, 1024 to 2^40. */
  maxFileBytes: number;
}

/** A snippet that was found good. */
export interface ExecutionRequest {
  sessionId: string;
  executionId: string;
  code: string;
  language: string;
  env: Record<string, string>;
  args: string[];
  options: CheckedOptions;
  /** Limits that this node cannot hold, one line each. */
  warnings: string[];
  workingDirectory: string | undefined;
  sourceFileName: string;
  stdin: boolean;
  ahead?: true | undefined;
  outputFiles?: OutputFiles | undefined;
  /** Equal for equal requests. */
  fingerprint: string;
}

const LONGEST_ID_BYTES = 1024;
const LARGEST_POOL = 1000;
const MOST_RUNNING = 1_000_000;
const MOST_QUEUED = 10_000_000;
/** The most finished executions, and bytes of output, that may be asked to be kept. */
export const MOST_RETAINED = 10_000_000;
export const LARGEST_BUDGET_BYTES = 2 ** 50;
const LARGEST_WEIGHT = 1000;
const MOST_OUTPUT_FILES = 1000;
const SMALLEST_FILE_BYTES = 1024;
const LARGEST_FILE_BYTES = 2 ** 40;
const DEFAULT_WEIGHT = 100;

/** Ids are the clients' own; they must be printable, and never become a path. */
export function checkId(value: string, field: string): string {
  checkText(value, field);
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

/** What the daemon's own configuration gives to sessions. */
export interface NodeDefaults {
  contextPoolSize: number;
  graceMs: number;
  maxQueued: number;
  executionDefaults: ExecutionDefaults;
  executionCeilings: ExecutionLimits;
}

/** Fills in and checks a session's configuration. */
export function checkSessionConfiguration(
  config: SessionConfiguration,
  languages: Languages,
  node: NodeDefaults,
): CheckedSessionConfiguration {
  checkSessionTypes(config);
  const contextPoolSize = config.contextPoolSize || node.contextPoolSize;
  checkCount(contextPoolSize, 'config.context_pool_size', LARGEST_POOL);
  const memoryLimitMb = config.memoryLimitMb || undefined;
  checkLimits({ memoryLimitMb }, 'config');
  const ceilings = checkLimits(config.executionCeilings ?? {}, 'config.execution_ceilings');
  checkCeilings({ memoryLimitMb }, node.executionCeilings, 'config', 'this daemon');
  checkCeilings(ceilings, node.executionCeilings, 'config.execution_ceilings', 'this daemon');
  const executionCeilings = {
    ...node.executionCeilings,
    ...(memoryLimitMb !== undefined && { memoryLimitMb }),
    ...ceilings,
  };
  checkCeilings({ memoryLimitMb }, executionCeilings, 'config', 'the session');
  const asked = checkDefaults(config.executionDefaults ?? {}, 'config.execution_defaults');
  checkCeilings(asked, executionCeilings, 'config.execution_defaults', 'the session');
  const executionDefaults = overDefaults(asked, {
    graceMs: node.graceMs,
    ...within(node.executionDefaults, executionCeilings),
    ...(memoryLimitMb !== undefined && { memoryLimitMb }),
  });
  const { memorySoftLimitMb } = asked;
  checkSoft({ ...executionCeilings, ...executionDefaults, memorySoftLimitMb }, 'config.execution_defaults');
  const { maxRunning = 0, weight = 0 } = config;
  const maxQueued = config.maxQueued || node.maxQueued;
  checkCount(maxRunning, 'config.max_running', MOST_RUNNING);
  checkCount(maxQueued, 'config.max_queued', MOST_QUEUED);
  checkCount(weight, 'config.weight', LARGEST_WEIGHT);
  const { idleTtlMs, totalTtlMs, retainedAgeMs, retainedExecutions, outputBudgetBytes } = config;
  if (idleTtlMs !== undefined) checkDuration(idleTtlMs, 'config.idle_ttl_ms', 1);
  if (totalTtlMs !== undefined) checkDuration(totalTtlMs, 'config.total_ttl_ms', 1);
  if (retainedAgeMs !== undefined) checkDuration(retainedAgeMs, 'config.retained_age_ms', 1);
  if (retainedExecutions !== undefined) {
    checkCount(retainedExecutions, 'config.retained_executions', MOST_RETAINED, 1);
  }
  if (outputBudgetBytes !== undefined) {
    checkCount(outputBudgetBytes, 'config.output_budget_bytes', LARGEST_BUDGET_BYTES, 1);
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
    memoryLimitMb: memoryLimitMb ?? 0,
    enableAi: config.enableAi ?? false,
    executionDefaults,
    executionCeilings,
    maxRunning,
    maxQueued,
    weight: weight || DEFAULT_WEIGHT,
    idleTtlMs,
    totalTtlMs,
    retainedAgeMs,
    retainedExecutions,
    outputBudgetBytes,
  };
}

/** Equal for configurations that ask for the same, whatever the daemon gives where they say nothing. */
export function fingerprintOf(config: SessionConfiguration, checked: CheckedSessionConfiguration): string {
  const { contextPoolSize = 0, maxQueued = 0, enabledLanguages = [] } = config;
  const asked = {
    ...checked,
    contextPoolSize,
    maxQueued,
    enabledLanguages: enabledLanguages.length === 0 ? [] : checked.enabledLanguages,
    executionDefaults: checkDefaults(config.executionDefaults ?? {}, 'config.execution_defaults'),
    executionCeilings: checkLimits(config.executionCeilings ?? {}, 'config.execution_ceilings'),
  };
  return createHash('sha256').update(JSON.stringify(asked)).digest('base64url');
}

function checkCount(value: number, field: string, most: number, least = 0): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new InvalidArgumentError(`${field} is ${value}; it must be ${least} to ${most}`);
  }
}

/** The daemon's defaults, cut down to a session's ceilings. */
function within(defaults: ExecutionDefaults, ceilings: ExecutionLimits): ExecutionDefaults {
  const cut: ExecutionDefaults = withoutUndefined(defaults);
  for (const [name, ceiling] of Object.entries(ceilings) as [keyof ExecutionLimits, number][]) {
    if ((cut[name] ?? 0) > ceiling) cut[name] = ceiling;
  }
  return cut;
}

/** Checks a snippet against the node and its session, and fills in what it leaves open. What is on disk is not looked at. */
export function checkSnippet(
  snippet: Snippet,
  session: CheckedSessionConfiguration,
  languages: Languages,
  node: { maxCodeBytes: number; enforcement: Enforcement[] },
): ExecutionRequest {
  checkSnippetTypes(snippet);
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
  if (codeBytes > node.maxCodeBytes) {
    throw new InvalidArgumentError(`code has ${codeBytes} bytes; at most ${node.maxCodeBytes} are allowed`);
  }
  const { args = [], env = {}, workingDirectory, stdin = false, outputFiles } = snippet;
  for (const [index, arg] of args.entries()) checkNoNul(arg, `args[${index}]`);
  for (const [name, value] of Object.entries(env)) {
    if (name === '' || name.includes('=') || name.includes('\0')) {
      throw new InvalidArgumentError(`env: ${JSON.stringify(name)} is not a name (empty, or with "=" or NUL)`);
    }
    checkNoNul(value, `env ${name}`);
  }
  const { executionDefaults, executionCeilings } = session;
  const options = applyDefaults(snippet, executionDefaults, executionCeilings, `session "${sessionId}"`);
  const engine = engineOf(language, options);
  if (engine === 'javascript') requireThreadSignal(options.timeoutSignal, language, 'config.timeout_signal');
  const warnings = checkEnforcement(options, engine === 'javascript' ? 'thread' : engine, node.enforcement);
  const sourceFileName = snippet.sourceFileName || mainNameOf(language, workingDirectory);
  if (/\p{Cc}/u.test(sourceFileName) || sourceFileName.endsWith('/')) {
    throw new InvalidArgumentError(`config.source_file_name ${JSON.stringify(sourceFileName)} is no file name`);
  }
  if (workingDirectory !== undefined) checkAbsolute(workingDirectory, 'config.working_directory');
  if (outputFiles !== undefined) checkOutputFiles(outputFiles);
  const request = {
    sessionId,
    executionId,
    code,
    language,
    env,
    args,
    options,
    warnings,
    workingDirectory,
    sourceFileName,
    stdin,
    ahead: snippet.ahead || undefined,
    outputFiles,
  };
  return { ...request, fingerprint: fingerprint(request) };
}

/** How much the texts of a request take, in bytes. */
export function sizeOf({ code, args, env }: Pick<ExecutionRequest, 'code' | 'args' | 'env'>): number {
  const texts = [code, ...args, ...Object.entries(env).flat()];
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
}

/** In a directory of the client's, code is called what no file is: it must not be taken for one that lies there. */
function mainNameOf(language: string, workingDirectory: string | undefined): string {
  const { mainName } = specOf(language);
  return workingDirectory === undefined ? mainName : `<${mainName}>`;
}

function checkNoNul(value: string, field: string): void {
  if (value.includes('\0')) throw new InvalidArgumentError(`${field} has a NUL character`);
}

function checkAbsolute(path: string, field: string): void {
  if (!isAbsolute(path) || path.includes('\0')) {
    throw new InvalidArgumentError(`${field} ${JSON.stringify(path)} is not an absolute path`);
  }
}

function checkOutputFiles({ stdout, stderr, maxFiles, maxFileBytes }: OutputFiles): void {
  checkCount(maxFiles, 'config.output_files.max_files', MOST_OUTPUT_FILES);
  const leastBytes = maxFiles > 0 ? SMALLEST_FILE_BYTES : 0;
  checkCount(maxFileBytes, 'config.output_files.max_file_bytes', LARGEST_FILE_BYTES, leastBytes);
  for (const [name, path] of Object.entries({ stdout, stderr })) {
    checkNoNul(path, `config.output_files.${name}`);
    checkAbsolute(dirname(path), `config.output_files.${name}`);
  }
}

/** Rejects unless the directories and pipes that a request names are there. */
export async function checkPlaces({ workingDirectory, outputFiles }: ExecutionRequest): Promise<void> {
  if (workingDirectory !== undefined) await checkDirectory(workingDirectory, 'config.working_directory');
  if (outputFiles === undefined) return;
  const { stdout, stderr, maxFiles } = outputFiles;
  for (const [name, path] of Object.entries({ stdout, stderr })) {
    await checkDirectory(dirname(path), `config.output_files.${name}`);
    if (maxFiles === 0) await checkPipe(path, `config.output_files.${name}`);
  }
}

async function checkDirectory(path: string, field: string): Promise<void> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => error.code ?? 'unreadable');
  if (typeof found === 'string') throw new InvalidArgumentError(`${field} ${JSON.stringify(path)}: ${found}`);
  if (!found.isDirectory()) throw new InvalidArgumentError(`${field} ${JSON.stringify(path)} is not a directory`);
}

/** It is not opened for that: to its reader the end of it would be the end of all output. */
async function checkPipe(path: string, field: string): Promise<void> {
  const refuse = ({ code }: NodeJS.ErrnoException): never => {
    throw new InvalidArgumentError(`${field} ${JSON.stringify(path)}: ${code}`);
  };
  const found = await lstat(path).catch(refuse);
  if (!found.isFIFO() && path !== devNull) {
    throw new InvalidArgumentError(`${field} ${JSON.stringify(path)} is no pipe; for files say max_files`);
  }
  await access(path, constants.W_OK).catch(refuse);
}

function fingerprint(request: Omit<ExecutionRequest, 'fingerprint'>): string {
  const { code, env, warnings: _, ...rest } = request;
  const sortedEnv = Object.entries(env).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash('sha256')
    .update(JSON.stringify([rest, sortedEnv]))
    .update('\0')
    .update(code)
    .digest('base64url');
}
