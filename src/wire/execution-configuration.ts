import type { Usage } from '../../machines/execution.ts';
import { InvalidArgumentError } from '../errors.ts';
import * as Api from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionMetrics } from '../supervisor/execution-metrics.ts';
import type { ExecutionDefaults, Isolation, OutputPolicy, TimeoutAction } from '../supervisor/limits.ts';

// What an execution runs under, between the library's words and the wire's. Used by server and client alike.

/** The word of an enum's value: `timed_out` for `TIMED_OUT`; undefined for none, and for one that this side is too old to know. */
export function wordOf<Word extends string>(words: Record<string, number>, value: number): Word | undefined {
  const name = Object.keys(words).find((key) => words[key] === value);
  return name === undefined || value === 0 ? undefined : (name.toLowerCase() as Word);
}

/** The value of a word that the enum is known to have. */
export function enumValueOf<Word extends string, Value>(words: Record<Uppercase<Word>, Value>, word: Word): Value {
  return words[word.toUpperCase() as Uppercase<Word>];
}

/** The value of an enum's word; 0 (unspecified) for none. Throws for a word that it has not, which would pass for none. */
function enumOf<Value extends number>(words: Record<string, Value>, word: string | undefined, field: string): Value {
  if (word === undefined) return words.UNSPECIFIED as Value;
  const known = Object.values(words).flatMap((value) => wordOf(words, value) ?? []);
  if (!known.includes(word)) {
    throw new InvalidArgumentError(`${field} is "${word}"; it must be one of ${known.join(', ')}`);
  }
  return words[word.toUpperCase()] as Value;
}

/** A 64-bit integer that is small enough to count with. */
export function numberOf(value: bigint, field: string): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw new InvalidArgumentError(`${field} is ${value}: out of range`);
  return number;
}

const LARGEST_UINT32 = 2 ** 32 - 1;

/** A whole number that fits into its field. Throws for what is none, or is negative: `field` is what that is called. */
function checkWhole(value: number, field: string, most = Number.MAX_SAFE_INTEGER): void {
  if (Number.isInteger(value) && value >= 0 && value <= most) return;
  throw new InvalidArgumentError(`${field} is ${value}; it must be a whole number from 0 to ${most}`);
}

export function uint32Of<T extends number | undefined>(value: T, field: string): T {
  if (value !== undefined) checkWhole(value, field, LARGEST_UINT32);
  return value;
}

export function bigintOf(value: number, field: string): bigint;
export function bigintOf(value: number | undefined, field: string): bigint | undefined;
export function bigintOf(value: number | undefined, field: string): bigint | undefined {
  if (value === undefined) return undefined;
  checkWhole(value, field);
  return BigInt(value);
}

/** A duration that may be given in ms or in whole seconds; ms win. */
export function millisecondsOf(ms: bigint | undefined, seconds: number | undefined, field: string): number | undefined {
  if (ms !== undefined) return numberOf(ms, field);
  return seconds === undefined ? undefined : seconds * 1000;
}

/** Throws for figures that no number holds; whether they are allowed is for others to say. */
export function optionsOf(config: Api.ExecutionConfiguration, prefix: string): ExecutionDefaults {
  const number = (value: bigint | undefined, field: string) =>
    value === undefined ? undefined : numberOf(value, `${prefix}.${field}`);
  return {
    timeoutMs: millisecondsOf(config.timeoutMs, config.timeoutSeconds, `${prefix}.timeout`),
    graceMs: number(config.graceMs, 'grace_ms'),
    queueTimeoutMs: number(config.queueTimeoutMs, 'queue_timeout_ms'),
    cpuTimeLimitMs: number(config.cpuTimeLimitMs, 'cpu_time_limit_ms'),
    memoryLimitMb: number(config.memoryLimitMb, 'memory_limit_mb'),
    memorySoftLimitMb: number(config.memorySoftLimitMb, 'memory_soft_limit_mb'),
    outputLimitBytes: number(config.outputLimitBytes, 'output_limit_bytes'),
    processLimit: config.processLimit,
    openFileLimit: config.openFileLimit,
    onTimeout: wordOf<TimeoutAction>(Api.TimeoutAction, config.onTimeout),
    timeoutSignal: config.timeoutSignal || undefined,
    outputPolicy: wordOf<OutputPolicy>(Api.OutputPolicy, config.outputPolicy),
    isolation: wordOf<Isolation>(Api.Isolation, config.isolation),
    signalTree: config.signalTree,
    requireEnforcement: config.requireEnforcement,
  };
}

/** Throws for words that there are not, and figures that no message can hold; whether those are allowed is for others to say. */
export function configurationOf(options: ExecutionDefaults, prefix: string): Api.ExecutionConfiguration {
  return Api.ExecutionConfiguration.fromPartial({
    timeoutMs: bigintOf(options.timeoutMs, `${prefix}.timeout`),
    graceMs: bigintOf(options.graceMs, `${prefix}.grace`),
    queueTimeoutMs: bigintOf(options.queueTimeoutMs, `${prefix}.queue_timeout_ms`),
    cpuTimeLimitMs: bigintOf(options.cpuTimeLimitMs, `${prefix}.cpu_time_limit_ms`),
    memoryLimitMb: bigintOf(options.memoryLimitMb, `${prefix}.memory_limit_mb`),
    memorySoftLimitMb: bigintOf(options.memorySoftLimitMb, `${prefix}.memory_soft_limit_mb`),
    outputLimitBytes: bigintOf(options.outputLimitBytes, `${prefix}.output_limit_bytes`),
    processLimit: uint32Of(options.processLimit, `${prefix}.process_limit`),
    openFileLimit: uint32Of(options.openFileLimit, `${prefix}.open_file_limit`),
    onTimeout: enumOf(Api.TimeoutAction, options.onTimeout, `${prefix}.on_timeout`),
    timeoutSignal: options.timeoutSignal ?? '',
    outputPolicy: enumOf(Api.OutputPolicy, options.outputPolicy, `${prefix}.output_policy`),
    isolation: enumOf(Api.Isolation, options.isolation, `${prefix}.isolation`),
    signalTree: options.signalTree,
    requireEnforcement: options.requireEnforcement,
  });
}

export function metricsOf(metrics: ExecutionMetrics): Api.ExecutionMetrics {
  const { sessionId, executionId, atMs, complete, processes, threads } = metrics;
  const whole = (value: number) => BigInt(Math.round(value));
  return {
    cpu: { userSeconds: metrics.userSeconds, systemSeconds: metrics.systemSeconds, percent: metrics.cpuPercent },
    memory: {
      bytes: whole(metrics.memoryBytes),
      peakBytes: whole(metrics.peakMemoryBytes),
      heapBytes: whole(metrics.heapBytes),
      externalBytes: whole(metrics.externalBytes),
      wasmBytes: whole(metrics.wasmBytes),
    },
    timestamp: whole(atMs),
    sessionId,
    executionId,
    stdoutBytes: whole(metrics.stdoutBytes),
    stderrBytes: whole(metrics.stderrBytes),
    droppedBytes: whole(metrics.droppedBytes),
    processes,
    threads,
    complete,
  };
}

export function metricsFrom(metrics: Api.ExecutionMetrics): ExecutionMetrics {
  const { cpu, sessionId, executionId, timestamp, complete } = metrics;
  return {
    sessionId,
    executionId,
    atMs: Number(timestamp),
    cpuPercent: cpu?.percent ?? 0,
    complete,
    ...usageFrom(metrics),
  };
}

/** The usage alone, as in a result, which knows no percentage. */
export function usageFrom(metrics: Api.ExecutionMetrics): Usage {
  const { cpu, memory, processes, threads, stdoutBytes, stderrBytes, droppedBytes } = metrics;
  return {
    userSeconds: cpu?.userSeconds ?? 0,
    systemSeconds: cpu?.systemSeconds ?? 0,
    memoryBytes: Number(memory?.bytes ?? 0n),
    peakMemoryBytes: Number(memory?.peakBytes ?? 0n),
    heapBytes: Number(memory?.heapBytes ?? 0n),
    externalBytes: Number(memory?.externalBytes ?? 0n),
    wasmBytes: Number(memory?.wasmBytes ?? 0n),
    processes,
    threads,
    stdoutBytes: Number(stdoutBytes),
    stderrBytes: Number(stderrBytes),
    droppedBytes: Number(droppedBytes),
  };
}
