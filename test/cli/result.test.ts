import { expect, test } from 'vitest';
import type { ExitReason } from '../../machines/execution.ts';
import { exitCodeOf } from '../../src/cli/result.ts';
import type { ExecutionSummary } from '../../src/client/convert.ts';

const LIMITS: [ExitReason, number][] = [
  ['timed_out', 124],
  ['memory_exceeded', 137],
  ['output_exceeded', 137],
];

test.each(LIMITS)('a guest that ends with 0 by itself after it was %s is no success: %i', (reason, exitCode) => {
  expect(exitCodeOf({ result: { reason, exitCode: 0 } } as ExecutionSummary)).toBe(exitCode);
});

test.each([0, 7])('of a guest that nothing has ended the exit code is its own: %i', (exitCode) => {
  expect(exitCodeOf({ result: { reason: 'failed', exitCode } } as ExecutionSummary)).toBe(exitCode);
});
