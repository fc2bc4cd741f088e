import { expect, test } from 'vitest';
import { EXIT_REASONS, type ExecutionResult, type ExitReason } from '../../machines/execution.ts';
import { ExecutionStatus, ExitReason as WireReason } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import { errorOf, resultOf, statusOf } from '../../src/grpc/convert.ts';
import type { ExecutionSnapshot } from '../../src/supervisor/execution-record.ts';

const result = (reason: ExitReason, message?: string): ExecutionResult => ({
  reason,
  rung: undefined,
  exitCode: 1,
  signal: undefined,
  message,
  usage: undefined,
});

const { COMPLETED, FAILED, CANCELLED } = ExecutionStatus;
/** As the table in docs/limits.md has it. */
const TOLD: Record<ExitReason, [status: ExecutionStatus, error: RegExp]> = {
  completed: [COMPLETED, /^$/],
  failed: [FAILED, /^$/],
  cancelled: [CANCELLED, /^$/],
  signaled: [FAILED, /^$/],
  timed_out: [FAILED, /a time limit passed/],
  queue_timed_out: [FAILED, /queue limit passed/],
  memory_exceeded: [FAILED, /memory limit was exceeded/],
  output_exceeded: [FAILED, /output limit was exceeded/],
  start_failed: [FAILED, /could not be started/],
  cell_lost: [FAILED, /cell .* was lost/],
  session_closed: [CANCELLED, /^$/],
  daemon_lost: [FAILED, /daemon was lost/],
};

test.each(EXIT_REASONS)('%s has the status and the error that the first clients know', (reason) => {
  const [status, error] = TOLD[reason];

  expect(statusOf('exited', result(reason))).toBe(status);
  expect(errorOf(result(reason))).toMatch(error);
  if (errorOf(result(reason)) !== '') expect(errorOf(result(reason, 'why'))).toMatch(/: why$/);
});

test.each(EXIT_REASONS)('%s is the same word on the wire, and warnings go along', (reason) => {
  const snapshot = {
    sessionId: 's',
    executionId: 'e',
    warnings: ['careful'],
    times: {},
  } as unknown as ExecutionSnapshot;

  expect(resultOf(result(reason), snapshot)).toMatchObject({
    reason: WireReason[reason.toUpperCase() as keyof typeof WireReason],
    warnings: ['careful'],
  });
});
