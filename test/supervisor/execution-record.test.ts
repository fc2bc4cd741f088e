import { expect, test, vi } from 'vitest';
import { fromCallback } from 'xstate';
import { executionMachine, type GuestCommand, type GuestInput } from '../../machines/execution.ts';
import { monotonicMs, now } from '../../src/clock.ts';
import type { JournaledEvent } from '../../src/journal/entries.ts';
import { ExecutionRecord, stopUnderWay } from '../../src/supervisor/execution-record.ts';

/** A record whose guest has started and is being stopped, and its events as they are journaled. */
function stoppedRecord(graceMs = 1000): { record: ExecutionRecord; journaled: JournaledEvent[] } {
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
  const journaled: JournaledEvent[] = [];
  const record = new ExecutionRecord({
    accepted: { ...request, number: 1, sessionKey: 's', executionKey: 'e', retention: undefined },
    request,
    machine: executionMachine.provide({ actors: { guest } }) as typeof executionMachine,
    limits: { startLimitMs: 1000, forcedLimitMs: 1000 },
    journal: {
      append: (entry, onWritten) => {
        if ('event' in entry) journaled.push(entry.event);
        onWritten?.();
      },
    },
    onReached: () => {},
  });
  record.actor.send({ type: 'execution.dispatch' });
  record.noteStarted(now(), 0, undefined);
  record.actor.send({ type: 'guest.started' });
  record.actor.send({ type: 'execution.stop', reason: 'cancelled', signal: 'SIGTERM', graceMs });
  return { record, journaled };
}

test.each([
  ['long before', 1],
  ['long after', 1e15],
])('a later event never has an earlier time, by neither clock, though the cell says that it was %s', (_, ms) => {
  const { record, journaled } = stoppedRecord();

  record.noteExited({ atMs: ms, monotonicMs: ms });
  record.actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  const times = record.events.map(({ atMs }) => atMs);
  const monotonic = journaled.map((event) => event.monotonicMs);
  expect(record.state).toBe('exited');
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(monotonic).toHaveLength(4);
  expect(monotonic).toEqual(monotonic.toSorted((a, b) => a - b));
  expect(monotonic.at(-1)).toBeLessThanOrEqual(now().monotonicMs);
  expect(record.snapshot.times.exitedAtMs).toBe(times.at(-1));
});

test('an end counts from when it was by the clock that nobody sets, wherever the other one was set to', () => {
  const { record, journaled } = stoppedRecord();
  const { atMs, monotonicMs: endedMs } = now();

  record.noteExited({ atMs: atMs - 3_600_000, monotonicMs: endedMs });
  record.actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  expect(journaled.at(-1)?.monotonicMs).toBe(endedMs);
  expect(record.newestAt.monotonicMs).toBe(endedMs);
});

test('a stop is still under way, and its grace period runs on, when something was said meanwhile', async () => {
  const { record, journaled } = stoppedRecord();
  const stoppedMs = journaled.at(-1)?.monotonicMs as number;
  await vi.waitFor(() => expect(monotonicMs()).toBeGreaterThan(stoppedMs + 5));

  record.warn('64 MiB held; the soft memory limit is 32 MiB', now());

  expect(journaled.at(-1)).toMatchObject({ state: 'signaled', rung: 'graceful', warning: expect.any(String) });
  const stop = stopUnderWay(journaled);
  expect(stop).toMatchObject({ reason: 'cancelled', signal: 'SIGTERM' });
  expect(stop?.graceMs).toBeLessThan(995);
  record.actor.stop();
});

test('a stop that is given less time is journaled with that, and tells nobody anything new', async () => {
  const { record, journaled } = stoppedRecord(1_000_000);
  const stoppedMs = journaled.at(-1)?.monotonicMs as number;
  await vi.waitFor(() => expect(monotonicMs()).toBeGreaterThan(stoppedMs + 5));
  const told = record.events.length;
  const stop = { type: 'execution.stop', reason: 'session_closed', signal: 'SIGTERM' } as const;

  // More than is left.
  record.actor.send({ ...stop, graceMs: 999_999 });
  expect(journaled).toHaveLength(told);
  record.actor.send({ ...stop, graceMs: 100 });

  const left = stopUnderWay(journaled);
  expect(left).toMatchObject({ reason: 'cancelled', signal: 'SIGTERM' });
  expect(left?.graceMs).toBeLessThanOrEqual(100);
  expect(journaled.map(({ sequence }) => sequence)).toEqual([1, 2, 3, 3]);
  expect(journaled.at(-1)).toMatchObject({ monotonicMs: stoppedMs, stop: { graceMs: expect.any(Number) } });
  expect(journaled.at(-1)?.stop?.graceMs).toBeGreaterThan(105);
  expect(record.events).toHaveLength(told);
  record.actor.stop();
});
