import { Option } from 'commander';
import { type ExecutionDefaults, type ExecutionLimits, ISOLATIONS, OUTPUT_POLICIES } from '../supervisor/limits.ts';
import { parseBytes, parseCount, parseDuration, parseSize } from './values.ts';

/** One flag for each limit; also, with `max-` before the name, of its ceiling in a session. */
const LIMIT_FLAGS: { limit: keyof ExecutionLimits; flag: string; value: string; help: string; parse: Parse }[] = [
  {
    limit: 'timeoutMs',
    flag: 'timeout',
    value: 'duration',
    help: 'run limit, for example 1500ms or 1m30s',
    parse: parseDuration,
  },
  {
    limit: 'queueTimeoutMs',
    flag: 'queue-timeout',
    value: 'duration',
    help: 'longest wait for a place',
    parse: parseDuration,
  },
  {
    limit: 'cpuTimeLimitMs',
    flag: 'cpu',
    value: 'duration',
    help: 'CPU time, child processes included',
    parse: parseDuration,
  },
  { limit: 'memoryLimitMb', flag: 'memory', value: 'size', help: 'memory, in MiB or with a unit', parse: parseSize },
  {
    limit: 'memorySoftLimitMb',
    flag: 'memory-soft',
    value: 'size',
    help: 'memory beyond which there is a warning',
    parse: parseSize,
  },
  {
    limit: 'outputLimitBytes',
    flag: 'output',
    value: 'size',
    help: 'stdout and stderr together, in MiB or with a unit',
    parse: parseBytes,
  },
  {
    limit: 'processLimit',
    flag: 'processes',
    value: 'count',
    help: 'processes at one time; threads of Python count too, those of JavaScript do not',
    parse: parseCount,
  },
  { limit: 'openFileLimit', flag: 'open-files', value: 'count', help: 'open files of each process', parse: parseCount },
];
type Parse = (text: string) => number;

/** What commander makes of the flags of {@link limitOptions}, by their names in camel case. */
export type LimitFlags = Record<string, unknown>;

/** The flags that say what an execution runs under. */
export function limitOptions(): Option[] {
  return [
    ...LIMIT_FLAGS.map(({ flag, value, help, parse }) =>
      new Option(`--${flag} <${value}>`, `${help} (default: the session's)`).argParser(parse),
    ),
    new Option(
      '--on-timeout <what>',
      'at the run limit: cancel (the ladder), kill, or a signal to begin the ladder with',
    ),
    new Option('--output-policy <what>', 'beyond --output: drop the rest, or end the execution').choices(
      OUTPUT_POLICIES,
    ),
    new Option('--isolation <what>', 'of JavaScript: a thread of a shared process, or a process of its own').choices(
      ISOLATIONS,
    ),
    new Option('--signal-tree', 'signals reach its child processes too'),
    new Option('--require-enforcement', 'refuse it when this node cannot hold one of its limits'),
  ];
}

/** The flags of a session's ceilings: the most that its executions may ask for. */
export function ceilingOptions(): Option[] {
  return LIMIT_FLAGS.map(({ flag, value, help, parse }) =>
    new Option(`--max-${flag} <${value}>`, `the most that an execution may ask for: ${help}`).argParser(parse),
  );
}

export function limitsOf(flags: LimitFlags): ExecutionDefaults {
  const onTimeout = flags.onTimeout as string | undefined;
  const action = onTimeout === undefined || onTimeout === 'cancel' || onTimeout === 'kill' ? onTimeout : 'signal';
  return {
    ...numbersOf(flags, ''),
    onTimeout: action,
    timeoutSignal: action === 'signal' ? onTimeout : undefined,
    outputPolicy: flags.outputPolicy as ExecutionDefaults['outputPolicy'],
    isolation: flags.isolation as ExecutionDefaults['isolation'],
    signalTree: flags.signalTree as boolean | undefined,
    requireEnforcement: flags.requireEnforcement as boolean | undefined,
  };
}

export function ceilingsOf(flags: LimitFlags): ExecutionLimits {
  return numbersOf(flags, 'max-');
}

function numbersOf(flags: LimitFlags, prefix: string): ExecutionLimits {
  const set = LIMIT_FLAGS.flatMap(({ limit, flag }) => {
    const value = flags[camelCase(prefix + flag)];
    return value === undefined ? [] : [[limit, value] as const];
  });
  return Object.fromEntries(set) as ExecutionLimits;
}

function camelCase(flag: string): string {
  return flag.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}
