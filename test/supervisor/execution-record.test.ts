import { expect, test } from 'vitest';
import { fromCallback } from 'xstate';
import { executionMachine, type GuestCommand, type GuestInput } from '../../machines/execution.ts';
import { now } from '../../src/clock.ts';
import { ExecutionRecord } from '../../src/supervisor/execution-record.ts';

/** A record whose guest has started and is being stopped, and the monotonic time of each of its events. */
function stoppedRecord(): { record: ExecutionRecord; monotonic: number[] } {
  const guest = fromCallback<GuestCommand, GuestInput>(() => {});
  const request = {
    sessionId: 's',
    executionId: 'e',
    code: '1',
    language: 'javascript',
    env: {},
    args: [],
    options: {
      graceMs: 1000,
      timeoutSignal: 'SIGTERM' as const,
      outputPolicy: 'truncate' as const,
      isolation: 'thread' as const,
      signalTree: false,
      requireEnforcement: false,
    },
    warnings: [],
    workingDirectory: undefined,
    sourceFileName: 'main.js',
    stdin: false,
    fingerprint: 'f',
  };
  const monotonic: number[] = [];
  const record = new ExecutionRecord({
    accepted: { ...request, number: 1, sessionKey: 's', executionKey: 'e', retention: undefined },
    request,
    machine: executionMachine.provide({ actors: { guest } }) as typeof executionMachine,
    limits: { startLimitMs: 1000, forcedLimitMs: 1000 },
    journal: {
      append: (entry, onWritten) => {
        if ('event' in entry) monotonic.push(entry.event.monotonicMs);
        onWritten?.();
      },
    },
    onReached: () => {},
  });
  record.actor.send({ type: 'execution.dispatch' });
  record.noteStarted(now(), 0, undefined);
  record.actor.send({ type: 'guest.started' });
  record.actor.send({ type: 'execution.stop', reason: 'cancelled', signal: 'SIGTERM', graceMs: 1000 });
  return { record, monotonic };
}

test.each([
  ['long before', 1],
  ['long after', 1e15],
])('a later event never has an earlier time, by neither clock, though the cell says that it was %s', (_, ms) => {
  const { record, monotonic } = stoppedRecord();

  record.noteExited({ atMs: ms, monotonicMs: ms });
  record.actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  const times = record.events.map(({ atMs }) => atMs);
  expect(record.state).toBe('exited');
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(monotonic).toHaveLength(4);
  expect(monotonic).toEqual(monotonic.toSorted((a, b) => a - b));
  expect(monotonic.at(-1)).toBeLessThanOrEqual(now().monotonicMs);
  expect(record.snapshot.times.exitedAtMs).toBe(times.at(-1));
});

test('an end counts from when it was by the clock that nobody sets, wherever the other one was set to', () => {
  const { record, monotonic } = stoppedRecord();
  const { atMs, monotonicMs: endedMs } = now();

  record.noteExited({ atMs: atMs - 3_600_000, monotonicMs: endedMs });
  record.actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  expect(monotonic.at(-1)).toBe(endedMs);
  expect(record.newestAt.monotonicMs).toBe(endedMs);
});
