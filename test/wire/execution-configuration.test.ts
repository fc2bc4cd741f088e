import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  ExecutionConfiguration,
  ExecutionMetrics as WireMetrics,
} from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import type { ExecutionMetrics } from '../../src/supervisor/execution-metrics.ts';
import {
  type ExecutionDefaults,
  ISOLATIONS,
  LIMITS,
  OUTPUT_POLICIES,
  TIMEOUT_ACTIONS,
} from '../../src/supervisor/limits.ts';
import {
  configurationOf,
  metricsFrom,
  metricsOf,
  millisecondsOf,
  optionsOf,
} from '../../src/wire/execution-configuration.ts';

const limits = Object.entries(LIMITS).map(
  ([name, { least, most }]) => [name, fc.integer({ min: least, max: Math.min(most, 2 ** 31 - 1) })] as const,
);
const options = fc.record(
  {
    ...Object.fromEntries(limits),
    graceMs: fc.nat(),
    onTimeout: fc.constantFrom(...TIMEOUT_ACTIONS),
    timeoutSignal: fc.constantFrom('SIGTERM', 'SIGUSR1'),
    outputPolicy: fc.constantFrom(...OUTPUT_POLICIES),
    isolation: fc.constantFrom(...ISOLATIONS),
    signalTree: fc.boolean(),
    requireEnforcement: fc.boolean(),
  },
  { requiredKeys: [] },
) as fc.Arbitrary<ExecutionDefaults>;

const withoutUndefined = (object: object) => JSON.parse(JSON.stringify(object));

test('whatever an execution runs under is the same on the other side of the wire', () => {
  fc.assert(
    fc.property(options, (sent) => {
      const bytes = ExecutionConfiguration.encode(configurationOf(sent, 'config')).finish();

      expect(withoutUndefined(optionsOf(ExecutionConfiguration.decode(bytes), 'config'))).toEqual(sent);
    }),
  );
});

test('every figure is the same on the other side of the wire', () => {
  const count = fc.nat();
  const share = fc.double({ min: 0, max: 1e6, noNaN: true, noDefaultInfinity: true }).filter((n) => !Object.is(n, -0));
  const metrics: fc.Arbitrary<ExecutionMetrics> = fc.record({
    sessionId: fc.string(),
    executionId: fc.string(),
    atMs: count,
    cpuPercent: share,
    complete: fc.boolean(),
    userSeconds: share,
    systemSeconds: share,
    memoryBytes: count,
    peakMemoryBytes: count,
    heapBytes: count,
    externalBytes: count,
    wasmBytes: count,
    processes: count,
    threads: count,
    stdoutBytes: count,
    stderrBytes: count,
    droppedBytes: count,
  });
  fc.assert(
    fc.property(metrics, (sent) => {
      const bytes = WireMetrics.encode(metricsOf(sent)).finish();

      expect(metricsFrom(WireMetrics.decode(bytes))).toEqual(sent);
    }),
  );
});

test('of a duration in ms and in seconds the ms win, and what no number holds is refused by name', () => {
  expect(millisecondsOf(1_500n, 7, 'timeout')).toBe(1_500);
  expect(millisecondsOf(undefined, 7, 'timeout')).toBe(7_000);
  expect(millisecondsOf(undefined, undefined, 'timeout')).toBeUndefined();
  expect(() => millisecondsOf(2n ** 63n - 1n, undefined, 'timeout')).toThrow('timeout is 9223372036854775807');
});
