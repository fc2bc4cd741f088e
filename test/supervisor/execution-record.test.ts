import { expect, test } from 'vitest';
import { fromCallback } from 'xstate';
import { executionMachine, type GuestCommand, type GuestInput } from '../../machines/execution.ts';
import { ExecutionRecord } from '../../src/supervisor/execution-record.ts';

test('a later event never has an earlier time, whatever the cell says', () => {
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
  const record = new ExecutionRecord({
    accepted: { ...request, number: 1, sessionKey: 's', executionKey: 'e', retention: undefined },
    request,
    machine: executionMachine.provide({ actors: { guest } }) as typeof executionMachine,
    limits: { startLimitMs: 1000, forcedLimitMs: 1000 },
    journal: { append: (_entry, onWritten) => onWritten?.() },
    onReached: () => {},
  });
  record.actor.send({ type: 'execution.dispatch' });
  record.noteStarted(Date.now(), 0);
  record.actor.send({ type: 'guest.started' });
  record.actor.send({ type: 'execution.stop', reason: 'cancelled', signal: 'SIGTERM', graceMs: 1000 });

  record.noteExited(1);
  record.actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  const times = record.events.map(({ atMs }) => atMs);
  expect(record.state).toBe('exited');
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(record.snapshot.times.exitedAtMs).toBe(times.at(-1));
});
