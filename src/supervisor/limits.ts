import { FailedPreconditionError, InvalidArgumentError } from '../errors.ts';
import { parseSignal } from './signals.ts';

/** The longest duration anybody may ask for, in ms: 24 days, the most a timer of the runtime can hold. */
export const LONGEST_MS = 2_073_600_000;

/**
 * The most code an execution may have, in bytes. In the journal a byte of a request takes six characters at worst, and no
 * string has more than 2^29: with what belongs to a request beside its code that is enough for a quarter more.
 */
export const LARGEST_CODE_BYTES = 64 * 1024 * 1024;

/** What happens when the run limit passes: the ladder with SIGTERM, the ladder with a named signal, or force at once. */
export const TIMEOUT_ACTIONS = ['cancel', 'signal', 'kill'] as const;
export type TimeoutAction = (typeof TIMEOUT_ACTIONS)[number];

/** What happens to output beyond its limit: the rest is counted and dropped, or the execution ends. */
export const OUTPUT_POLICIES = ['truncate', 'kill'] as const;
export type OutputPolicy = (typeof OUTPUT_POLICIES)[number];

/** What a JavaScript execution runs in: a thread of a process that it shares with others of its session, or a process of its own. */
export const ISOLATIONS = ['thread', 'process'] as const;
export type Isolation = (typeof ISOLATIONS)[number];

/** The limits of an execution. Absent: the session's, else none. */
export interface ExecutionLimits {
  /** Run limit in ms from the start of guest code, 1 to {@link LONGEST_MS}. */
  timeoutMs?: number | undefined;
  /** How long it may wait for a place, in ms, 1 to {@link LONGEST_MS}. */
  queueTimeoutMs?: number | undefined;
  /** User and system time, child processes included, in ms, 1 to {@link LONGEST_MS}. */
  cpuTimeLimitMs?: number | undefined;
  /** Heap, buffers, WebAssembly and child processes together, in MiB, 8 to 1048576. */
  memoryLimitMb?: number | undefined;
  /** Below the memory limit, in MiB: a warning, and SIGUSR2 for a guest that listens for it. */
  memorySoftLimitMb?: number | undefined;
  /** Standard output and standard error together, in bytes, 1 to 2^50. */
  outputLimitBytes?: number | undefined;
  /**
   * Processes of the guest at one time, itself included, threads of Python too, those of JavaScript not, 1 to 1000000; one
   * more fails to start, inside the guest.
   */
  processLimit?: number | undefined;
  /** Open files of each process of the guest, 16 to 1048576. */
  openFileLimit?: number | undefined;
}

/** What a session gives those of its executions that do not say. */
export interface ExecutionDefaults extends ExecutionLimits {
  /** How long a stop waits between signal and force, in ms, 0 to {@link LONGEST_MS}. */
  graceMs?: number | undefined;
  onTimeout?: TimeoutAction | undefined;
  /** The signal of `onTimeout: 'signal'`, by name. */
  timeoutSignal?: string | undefined;
  outputPolicy?: OutputPolicy | undefined;
  isolation?: Isolation | undefined;
  /** Signals reach the guest's child processes too. */
  signalTree?: boolean | undefined;
  /** A limit that this node cannot hold is refused, instead of noted as a warning. */
  requireEnforcement?: boolean | undefined;
}

/** What an execution runs under: every default applied. */
export interface CheckedOptions extends ExecutionLimits {
  graceMs: number;
  /** What the guest is sent at the run limit; `SIGKILL` forces at once. */
  timeoutSignal: NodeJS.Signals;
  outputPolicy: OutputPolicy;
  isolation: Isolation;
  signalTree: boolean;
  requireEnforcement: boolean;
}

/** A limit's name on the wire, its unit for messages, and the figures it may have. */
interface LimitSpec {
  field: string;
  unit: string;
  least: number;
  most: number;
}

const MS = { unit: ' ms', least: 1, most: LONGEST_MS };

/** Every numeric limit. The one list: checks, ceilings and messages go by it. */
export const LIMITS: Record<keyof ExecutionLimits, LimitSpec> = {
  timeoutMs: { field: 'timeout', ...MS },
  queueTimeoutMs: { field: 'queue_timeout_ms', ...MS },
  cpuTimeLimitMs: { field: 'cpu_time_limit_ms', ...MS },
  memoryLimitMb: { field: 'memory_limit_mb', unit: ' MiB', least: 8, most: 1_048_576 },
  memorySoftLimitMb: { field: 'memory_soft_limit_mb', unit: ' MiB', least: 1, most: 1_048_576 },
  outputLimitBytes: { field: 'output_limit_bytes', unit: ' bytes', least: 1, most: 2 ** 50 },
  processLimit: { field: 'process_limit', unit: '', least: 1, most: 1_000_000 },
  openFileLimit: { field: 'open_file_limit', unit: '', least: 16, most: 1_048_576 },
};
const LIMIT_NAMES = Object.keys(LIMITS) as (keyof ExecutionLimits)[];

/** Only the limits of `options` that are set. Throws when one is out of range; `prefix` names where it was said. */
export function checkLimits(options: ExecutionLimits, prefix: string): ExecutionLimits {
  const checked: ExecutionLimits = {};
  for (const name of LIMIT_NAMES) {
    const value = options[name];
    if (value === undefined) continue;
    const { field, unit, least, most } = LIMITS[name];
    if (!Number.isInteger(value) || value < least || value > most) {
      const days = unit === MS.unit ? ' (24 days)' : '';
      throw new InvalidArgumentError(
        `${prefix}.${field} is ${value}${unit}; it must be ${least} to ${most}${unit}${days}`,
      );
    }
    checked[name] = value;
  }
  return checked;
}

/** Throws when a limit is above its ceiling, naming both figures. */
export function checkCeilings(limits: ExecutionLimits, ceilings: ExecutionLimits, prefix: string, whose: string): void {
  for (const name of LIMIT_NAMES) {
    const [value, ceiling] = [limits[name], ceilings[name]];
    if (value === undefined || ceiling === undefined || value <= ceiling) continue;
    const { field, unit } = LIMITS[name];
    throw new InvalidArgumentError(
      `${prefix}.${field} is ${value}${unit}; the ceiling of ${whose} is ${ceiling}${unit}`,
    );
  }
}

/** Checks what a session or the daemon gives to executions that do not say. */
export function checkDefaults(defaults: ExecutionDefaults, prefix: string): ExecutionDefaults {
  const { onTimeout, timeoutSignal, outputPolicy, isolation, graceMs, signalTree, requireEnforcement } = defaults;
  const limits = checkLimits(defaults, prefix);
  if (graceMs !== undefined) checkDuration(graceMs, `${prefix}.grace`, 0);
  checkWord(onTimeout, TIMEOUT_ACTIONS, `${prefix}.on_timeout`);
  checkWord(outputPolicy, OUTPUT_POLICIES, `${prefix}.output_policy`);
  checkWord(isolation, ISOLATIONS, `${prefix}.isolation`);
  const signal = timeoutSignal ? parseSignal(timeoutSignal, `${prefix}.timeout_signal`) : undefined;
  if (onTimeout === 'signal' && signal === undefined) {
    throw new InvalidArgumentError(`${prefix}.on_timeout is "signal" and ${prefix}.timeout_signal is empty`);
  }
  if (signal !== undefined && onTimeout !== 'signal') {
    throw new InvalidArgumentError(`${prefix}.timeout_signal is ${signal}, but ${prefix}.on_timeout is not "signal"`);
  }
  checkSoft(limits, prefix);
  const given = { onTimeout, timeoutSignal: signal, outputPolicy, isolation, graceMs, signalTree, requireEnforcement };
  return { ...limits, ...withoutUndefined(given) };
}

/** What is said, over what is so where nothing is. A signal belongs to the action it was said with. */
export function overDefaults(said: ExecutionDefaults, defaults: ExecutionDefaults): ExecutionDefaults {
  const merged = { ...defaults, ...said };
  if (said.onTimeout !== undefined && said.onTimeout !== 'signal') delete merged.timeoutSignal;
  return merged;
}

/**
 * What an execution runs under: its own options, else the session's defaults, inside the ceilings. A limit with a ceiling
 * and no figure has the ceiling's.
 */
export function applyDefaults(
  own: ExecutionDefaults,
  defaults: ExecutionDefaults,
  ceilings: ExecutionLimits,
  whose: string,
): CheckedOptions {
  const checked = checkDefaults(own, 'config');
  checkCeilings(checked, ceilings, 'config', whose);
  const merged = { ...ceilings, ...overDefaults(checked, defaults) };
  // A soft limit that the execution did not ask for gives way to its own hard one.
  const { memorySoftLimitMb: soft, memoryLimitMb: hard } = merged;
  if (checked.memorySoftLimitMb === undefined && soft !== undefined && hard !== undefined && soft >= hard) {
    delete merged.memorySoftLimitMb;
  }
  checkSoft(merged, 'config');
  const { onTimeout, timeoutSignal, outputPolicy, isolation, signalTree, requireEnforcement, graceMs, ...limits } =
    merged;
  return {
    ...limits,
    graceMs: graceMs ?? 0,
    timeoutSignal: onTimeout === 'kill' ? 'SIGKILL' : ((timeoutSignal ?? 'SIGTERM') as NodeJS.Signals),
    outputPolicy: outputPolicy ?? 'truncate',
    isolation: isolation ?? 'thread',
    signalTree: signalTree ?? false,
    requireEnforcement: requireEnforcement ?? false,
  };
}

/** Throws unless `value` is a whole number of ms within the bounds, both included. */
export function checkDuration(value: number, field: string, leastMs: number): number {
  if (!Number.isInteger(value) || value < leastMs || value > LONGEST_MS) {
    throw new InvalidArgumentError(`${field} is ${value} ms; it must be ${leastMs} to ${LONGEST_MS} ms (24 days)`);
  }
  return value;
}

/** How one limit is held for the guests of one engine on this node. */
export interface Enforcement {
  /** As on the wire, for example `memory_limit_mb`. */
  limit: string;
  /** `thread` or an engine of processes, for example `python`. */
  engine: string;
  /** For example `cgroup v2`, `rlimit`, `sampling`; `none` when it is not held. */
  mechanism: string;
  enforced: boolean;
  /** What escapes it, or what is missing here; one line for people. */
  note: string;
}

/** Limit by limit: `python: cgroup v1, thread: sampling`. */
export function summaryOf(enforcement: Enforcement[]): Record<string, string> {
  const summary: Record<string, string> = {};
  for (const { limit, engine, mechanism } of enforcement) {
    summary[limit] = [summary[limit], `${engine}: ${mechanism}`].filter(Boolean).join(', ');
  }
  return summary;
}

/** One line for each limit of `options` that this node cannot hold for that engine. Throws when they are required. */
export function checkEnforcement(options: CheckedOptions, engine: string, known: Enforcement[]): string[] {
  const lacking = LIMIT_NAMES.filter((name) => options[name] !== undefined).flatMap((name) => {
    const { field } = LIMITS[name];
    return known.filter((entry) => entry.engine === engine && entry.limit === field && !entry.enforced);
  });
  const warnings = lacking.map(({ limit, note }) => `config.${limit} is not enforced on this node: ${note}`);
  if (options.requireEnforcement && warnings.length > 0) throw new FailedPreconditionError(warnings.join('; '));
  return warnings;
}

/** Throws when the soft memory limit is not below the hard one, naming both figures. */
export function checkSoft({ memorySoftLimitMb: soft, memoryLimitMb: hard }: ExecutionLimits, prefix: string): void {
  if (soft === undefined || hard === undefined || soft < hard) return;
  throw new InvalidArgumentError(
    `${prefix}.memory_soft_limit_mb is ${soft} MiB; it must be below memory_limit_mb, ${hard} MiB`,
  );
}

function checkWord(word: string | undefined, words: readonly string[], field: string): void {
  if (word !== undefined && !words.includes(word)) {
    throw new InvalidArgumentError(`${field} is "${word}"; it must be one of ${words.join(', ')}`);
  }
}

/** A copy in which no key stands for nothing: spread over another object it would take that one's away. */
export function withoutUndefined<T extends object>(object: T): Partial<T> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as Partial<T>;
}
