import { readFile } from 'node:fs/promises';
import { availableParallelism, homedir, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { closest, distance } from 'fastest-levenshtein';
import * as v from 'valibot';
import { StartupError } from './errors.ts';
import { DURABILITIES } from './journal/entries.ts';
import {
  checkCeilings,
  checkDefaults,
  checkLimits,
  checkSoft,
  ISOLATIONS,
  LARGEST_CODE_BYTES,
  LONGEST_MS,
  OUTPUT_POLICIES,
  TIMEOUT_ACTIONS,
} from './supervisor/limits.ts';
import { LARGEST_BUDGET_BYTES, MOST_RETAINED } from './supervisor/requests.ts';

/** What one JavaScript context needs, generously, in bytes: the default limit of running executions counts with it. */
const CONTEXT_BYTES = 16 * 1024 * 1024;
/** What a stop of the daemon does. */
export const ON_STOP = ['stop', 'detach'] as const;
/** Nearly three times what force takes at 99.9 %; with the kill of a cell, which takes 50 to 100 ms, below 250 ms in all. */
const FORCED_LIMIT_MS = 120;
const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;

/** The memory of this machine, or of the control group that confines this process. */
function availableBytes(): number {
  return Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
}

const count = (least: number, most: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(most));
const duration = (leastMs: number) => count(leastMs, LONGEST_MS);

const limit = v.optional(v.number());
const limits = {
  timeoutMs: limit,
  queueTimeoutMs: limit,
  cpuTimeLimitMs: limit,
  memoryLimitMb: limit,
  memorySoftLimitMb: limit,
  outputLimitBytes: limit,
  processLimit: limit,
  openFileLimit: limit,
};
const defaults = {
  ...limits,
  onTimeout: v.optional(v.picklist(TIMEOUT_ACTIONS)),
  timeoutSignal: v.optional(v.string()),
  outputPolicy: v.optional(v.picklist(OUTPUT_POLICIES)),
  isolation: v.optional(v.picklist(ISOLATIONS)),
  signalTree: v.optional(v.boolean()),
  requireEnforcement: v.optional(v.boolean()),
};

const filled = v.pipe(v.string(), v.nonEmpty());
const tls = { certFile: filled, keyFile: filled, clientCaFile: v.optional(filled) };

const schema = v.strictObject({
  /** Path of the unix socket clients speak to; false: none. Default: `$ELIDE_DAEMON_SOCKET` or `/tmp/elide-daemon.sock`. */
  socket: v.optional(v.union([filled, v.literal(false)])),
  /** `HOST:PORT` to serve beside the socket. Beyond loopback it needs `tokenFile` or `tls.clientCaFile`. Default: none. */
  tcp: v.optional(filled),
  /** PEM files for `tcp`: certificate and key of the daemon; with `clientCaFile`, whose certificates clients must have. */
  tls: v.optional(v.strictObject(tls)),
  /** File with the bearer token that every call over `tcp` must carry. The socket needs none. */
  tokenFile: v.optional(filled),
  /**
   * How often a client's connection is asked whether anybody is still there, and how long the answer may take, in ms. One
   * that does not answer is dropped, with its calls.
   */
  keepaliveMs: v.optional(duration(1), 60_000),
  /** Default: `/var/lib/elide` as root, else `$XDG_STATE_HOME/elide`. */
  stateDir: v.optional(filled),
  logLevel: v.optional(v.picklist(LOG_LEVELS), 'info'),
  /** Grace period of a stop that does not say, in ms. */
  graceMs: v.optional(duration(0), 5_000),
  /** How long a dispatched execution may take until guest code starts, in ms. */
  startLimitMs: v.optional(duration(1), 30_000),
  /** How long force may take to be confirmed before the cell is killed, in ms. */
  forcedLimitMs: v.optional(duration(1), FORCED_LIMIT_MS),
  /** How many guests are forced at one time. Default: for each processor 3 that are threads, and 16 that are processes. */
  maxForcing: v.optional(count(1, 1_000_000)),
  /** How many executions run at most on this node, over all sessions. Default: by memory. */
  maxRunning: v.optional(
    count(1, 1_000_000),
    Math.min(10_000, Math.max(16, Math.floor((availableBytes() * 0.75) / CONTEXT_BYTES))),
  ),
  /** How many of them may be starting at one time. Default: 8 for each processor. */
  maxStarting: v.optional(count(1, 1_000_000), 8 * availableParallelism()),
  /** How many sessions there are at most. */
  maxSessions: v.optional(count(1, 1_000_000), 1_000),
  /** How many executions may wait in a session that does not say, and in all sessions together. */
  maxQueued: v.optional(count(1, 10_000_000), 10_000),
  maxQueuedInAll: v.optional(count(1, 10_000_000), 100_000),
  /** What an execution has that does not say, and whose session does not. */
  executionDefaults: v.optional(v.strictObject(defaults), {}),
  /** The most that a session, or an execution, may ask for. */
  executionCeilings: v.optional(v.strictObject(limits), {}),
  /**
   * Whether control groups (cgroups) are used where the system lets them be. A path, from the root of the hierarchy: they
   * lie in that group, not in the daemon's own.
   */
  controlGroups: v.optional(v.union([v.boolean(), v.pipe(v.string(), v.startsWith('/'))]), true),
  /** What one cell may hold before the guest that grew is ended, in MiB. Default: half of the memory there is. */
  cellMemoryMb: v.optional(count(64, 1_048_576), Math.max(64, Math.floor(availableBytes() / 2 / 2 ** 20))),
  /** The largest code of one execution, in bytes. */
  maxCodeBytes: v.optional(count(1, LARGEST_CODE_BYTES), LARGEST_CODE_BYTES),
  /** Contexts a session keeps warm at most when it does not say. */
  contextPoolSize: v.optional(count(1, 1000), 10),
  /** How many JavaScript contexts share one cell: the blast radius of a crash. */
  contextsPerCell: v.optional(count(1, 1000), 16),
  /** How many process guests share one cell. */
  processesPerCell: v.optional(count(1, 10_000), 256),
  /** How long a cell without guests is kept, in ms. */
  cellIdleMs: v.optional(duration(0), 60_000),
  /** How many crashes of a session's cells within the period are answered with a restart at once. */
  restartIntensity: v.optional(count(0, 1_000_000), 10),
  restartPeriodMs: v.optional(duration(1), 5_000),
  /** How long a cell lives on without its daemon, in ms. */
  orphanGraceMs: v.optional(duration(0), 3_600_000),
  /** How far what is acknowledged is on disk: `full` survives the machine, `normal` the daemon, `off` waits for nothing. */
  durability: v.optional(v.picklist(DURABILITIES), 'normal'),
  /** What a stop of the daemon does: end everything, or leave it to the next daemon. */
  onStop: v.optional(v.picklist(ON_STOP), 'stop'),
  /** How long after its end an execution stays queryable, in ms. Default: as long as there is room. */
  retainedAgeMs: v.optional(duration(1)),
  /** How many finished executions stay queryable. */
  retainedExecutions: v.optional(count(1, MOST_RETAINED), 10_000),
  /** Bytes of output of all executions: beyond, that of the oldest finished ones is removed. */
  outputBudgetBytes: v.optional(count(1, LARGEST_BUDGET_BYTES), 10 * 1024 ** 3),
  /** Name or path of the Python interpreter, 3.9 or later. */
  python: v.optional(filled, 'python3'),
});

/** Of what belongs together a file may have a part: flags have the rest. */
const fileSchema = v.strictObject({ ...schema.entries, tls: v.optional(v.partial(v.strictObject(tls))) });

/** Everything a daemon can be told. All of it has a default; see the fields of the configuration file in the README. */
export type DaemonConfig = v.InferInput<typeof schema>;
/** A configuration with every default filled in. */
export type CheckedConfig = v.InferOutput<typeof schema> & { socket: string | false; stateDir: string };

/** Fills in the defaults. Throws a {@link StartupError} that names the first wrong key. */
export function checkConfig(config: DaemonConfig): CheckedConfig {
  const parsed = parse(config, schema);
  requireCredentials(parsed);
  return {
    ...parsed,
    socket: parsed.socket ?? (process.env.ELIDE_DAEMON_SOCKET || '/tmp/elide-daemon.sock'),
    // Cells are at home elsewhere.
    stateDir: resolve(parsed.stateDir ?? defaultStateDir()),
  };
}

/** Checks each key for itself. */
function parse<Schema extends typeof schema | typeof fileSchema>(
  config: DaemonConfig,
  by: Schema,
): v.InferOutput<Schema> {
  const parsed = v.safeParse(by, config);
  if (!parsed.success) throw new StartupError(describe(parsed.issues[0], config));
  const { output } = parsed;
  // Throws when it is no address.
  if (output.tcp !== undefined) isLoopback(output.tcp);
  try {
    checkLimits(output.executionCeilings, 'executionCeilings');
    const executionDefaults = checkDefaults(output.executionDefaults, 'executionDefaults');
    checkCeilings(executionDefaults, output.executionCeilings, 'executionDefaults', 'executionCeilings');
    const { memorySoftLimitMb } = executionDefaults;
    checkSoft({ ...output.executionCeilings, ...executionDefaults, memorySoftLimitMb }, 'executionDefaults');
    return { ...output, executionDefaults };
  } catch (error) {
    throw new StartupError((error as Error).message, { cause: error });
  }
}

/** Whoever reaches the daemon runs code as its user. */
function requireCredentials({ tcp, tls, tokenFile }: v.InferOutput<typeof schema>): void {
  if (tcp === undefined || isLoopback(tcp) || tokenFile !== undefined || tls?.clientCaFile !== undefined) return;
  throw new StartupError(`tcp "${tcp}" is not a loopback address: it needs tokenFile or tls.clientCaFile`);
}

/** Reads a configuration file: one JSON object with the keys of {@link DaemonConfig}. */
export async function readConfigFile(path: string): Promise<DaemonConfig> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new StartupError(`configuration file ${path}: ${(error as Error).message}`, { cause: error });
  }
  try {
    const config: unknown = JSON.parse(text);
    if (typeof config !== 'object' || config === null || Array.isArray(config)) throw new Error('not a JSON object');
    parse(config as DaemonConfig, fileSchema);
    return config as DaemonConfig;
  } catch (error) {
    throw new StartupError(`configuration file ${path}: ${(error as Error).message}`, { cause: error });
  }
}

/** Whether only this machine reaches a `HOST:PORT`. Throws a {@link StartupError} when it is none. */
export function isLoopback(tcp: string): boolean {
  const match = /^(\[[0-9a-f:]+\]|[^:]+):(\d{1,5})$/i.exec(tcp);
  if (match === null || Number(match[2]) > 65_535) throw new StartupError(`tcp "${tcp}" is not HOST:PORT`);
  const host = (match[1] as string).replace(/^\[|\]$/g, '');
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}

/** Where a daemon keeps its state that is not told. Throws a {@link StartupError} for a user without a home directory. */
export function defaultStateDir(): string {
  if (process.getuid?.() === 0) return '/var/lib/elide';
  return join(process.env.XDG_STATE_HOME || join(homeDirectory(), '.local', 'state'), 'elide');
}

function homeDirectory(): string {
  try {
    return homedir();
  } catch (cause) {
    throw new StartupError('this user has no home directory: name a state directory (--state-dir)', { cause });
  }
}

function describe(issue: v.BaseIssue<unknown>, config: object): string {
  const [key = '', inner] = (issue.path ?? []).map((item) => String(item.key));
  if (!Object.hasOwn(schema.entries, key)) return unknownKey(config, schema.entries, '');
  const nested = { executionDefaults: defaults, executionCeilings: limits, tls }[key];
  const value = (config as Record<string, object>)[key];
  if (nested === undefined || inner === undefined || value === undefined) {
    return `${key} is ${JSON.stringify(issue.input)}: ${issue.message}`;
  }
  if (!Object.hasOwn(nested, inner)) return unknownKey(value, nested, `${key}.`);
  if (issue.input === undefined) return `${key}.${inner} is missing`;
  return `${key}.${inner} is ${JSON.stringify(issue.input)}: ${issue.message}`;
}

function unknownKey(config: object, known: object, prefix: string): string {
  const unknown = Object.keys(config).find((name) => !Object.hasOwn(known, name)) ?? '';
  const nearest = closest(unknown, Object.keys(known));
  const hint =
    distance(unknown, nearest) <= Math.max(2, unknown.length / 2) ? ` (did you mean "${prefix}${nearest}"?)` : '';
  return `unknown key "${prefix}${unknown}"${hint}`;
}
