import { expect, test } from 'vitest';
import { type Actor, createActor, fromCallback, SimulatedClock } from 'xstate';
import { getShortestPaths } from 'xstate/graph';
import {
  EXIT_REASONS,
  type ExecutionEvent,
  type ExecutionInput,
  executionMachine,
  type GuestCommand,
  type GuestInput,
} from '../../machines/execution.ts';

const input: ExecutionInput = {
  sessionKey: 's',
  executionKey: 'k',
  queueTimeoutMs: undefined,
  timeoutMs: 1000,
  timeoutSignal: 'SIGTERM',
  graceMs: 500,
  startLimitMs: 3000,
  forcedLimitMs: 250,
};
const cancel = { type: 'execution.stop', reason: 'cancelled', signal: 'SIGTERM', graceMs: 500 } as const;
const killed = { type: 'guest.exited', exit: { exitCode: 137, signal: 'SIGKILL' } } as const;

/** An execution under a clock of its own, and what its guest was told. It is killed when that is said, unless `busy`. */
function start(overrides: Partial<ExecutionInput> = {}, { busy = false } = {}) {
  const clock = new SimulatedClock();
  const told: string[] = [];
  const guest = fromCallback<GuestCommand, GuestInput>(({ receive, sendBack }) => {
    receive((command) => {
      told.push(command.type === 'guest.signal' ? command.signal : command.type);
      if (command.type === 'guest.kill' && !busy) sendBack({ type: 'guest.killed' });
    });
  });
  const machine = executionMachine.provide({ actors: { guest } });
  const actor: Actor<typeof executionMachine> = createActor(machine, { clock, input: { ...input, ...overrides } });
  actor.start();
  return { actor, clock, told };
}

function running(overrides: Partial<ExecutionInput> = {}, options = {}) {
  const started = start(overrides, options);
  started.actor.send({ type: 'execution.dispatch' });
  started.actor.send({ type: 'guest.started' });
  return started;
}

const stateOf = (actor: Actor<typeof executionMachine>) => actor.getSnapshot().value;
const resultOf = (actor: Actor<typeof executionMachine>) => actor.getSnapshot().context.result;
/** The state of one whose stop has reached a rung, when nobody else is being killed. */
const stateAt = (rung: 'graceful' | 'forced') => ({ signaled: rung === 'forced' ? { forced: 'killed' } : rung });

test('the top-level states are exactly the four of the lifecycle', () => {
  expect(Object.keys(executionMachine.states)).toEqual(['pending', 'running', 'signaled', 'exited']);
  expect(Object.keys(executionMachine.states.signaled?.states ?? {})).toEqual(['graceful', 'forced', 'cell']);
});

test('every state can be reached', () => {
  const events: ExecutionEvent[] = [
    { type: 'execution.dispatch' },
    cancel,
    { ...cancel, signal: 'SIGKILL' },
    { type: 'execution.signal', signal: 'SIGHUP' },
    { type: 'execution.signal', signal: 'SIGKILL' },
    { type: 'guest.placed' },
    { type: 'guest.started' },
    { type: 'guest.killed' },
    { type: 'guest.stuck' },
    { type: 'guest.limitReached', limit: 'cpu', message: 'too much' },
    { type: 'guest.limitReached', limit: 'memory', message: 'too much' },
    killed,
    { type: 'guest.lost', reason: 'cell_lost', message: 'gone' },
  ];
  const machine = executionMachine.provide({ actors: { guest: fromCallback(() => {}) } });

  const reached = [undefined, 1000].flatMap((limitMs) =>
    getShortestPaths(machine, {
      input: { ...input, timeoutMs: limitMs, queueTimeoutMs: limitMs },
      stopWhen: ({ status }) => status === 'done',
      events: (snapshot) => [
        ...events,
        // Timer events are named by their delay and the state that armed them.
        ...(snapshot as { _nodes: { after: { eventType: string }[] }[] })._nodes.flatMap(({ after }) =>
          after.map(({ eventType }) => ({ type: eventType }) as unknown as ExecutionEvent),
        ),
      ],
    }).map(({ state }) => JSON.stringify(state.value)),
  );

  expect(new Set(reached)).toEqual(
    new Set(
      [
        { pending: { queued: 'unlimited' } },
        { pending: { queued: 'limited' } },
        { pending: { starting: 'placing' } },
        { pending: { starting: 'placed' } },
        { running: 'limited' },
        { running: 'unlimited' },
        { signaled: 'graceful' },
        { signaled: { forced: 'waiting' } },
        { signaled: { forced: 'killed' } },
        { signaled: 'cell' },
        'exited',
      ].map((value) => JSON.stringify(value)),
    ),
  );
});

test('a guest that exits with 0 has completed, with another code has failed', () => {
  for (const [exitCode, reason] of [
    [0, 'completed'],
    [7, 'failed'],
  ] as const) {
    const { actor } = running();

    actor.send({ type: 'guest.exited', exit: { exitCode } });

    expect(resultOf(actor)).toMatchObject({ reason, exitCode, rung: undefined });
    expect(actor.getSnapshot().status).toBe('done');
  }
});

test('a cancelled guest has its grace period, then is killed, then its cell is', () => {
  const { actor, clock, told } = running({ timeoutMs: undefined });

  actor.send(cancel);
  clock.increment(499);
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  clock.increment(1);
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  clock.increment(250);
  expect(stateOf(actor)).toEqual({ signaled: 'cell' });
  actor.send({ type: 'guest.lost', reason: 'cell_lost', message: 'killed' });

  expect(told).toEqual(['SIGTERM', 'guest.kill', 'guest.killCell']);
  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled', rung: 'cell', exitCode: 137, signal: 'SIGKILL' });
});

test('the cell of a guest that is known to be stuck is killed before the limit of its force', () => {
  const { actor, told } = running({ timeoutMs: undefined });

  actor.send({ type: 'guest.stuck' });
  expect(stateOf(actor)).toEqual({ running: 'unlimited' });
  actor.send({ ...cancel, graceMs: 0 });
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  actor.send({ type: 'guest.stuck' });
  expect(stateOf(actor)).toEqual({ signaled: 'cell' });

  expect(told).toEqual(['guest.kill', 'guest.killCell']);
});

test('while others are killed a guest waits for its turn, and so does the limit of its force', () => {
  const { actor, clock, told } = running({ timeoutMs: undefined }, { busy: true });

  actor.send({ ...cancel, graceMs: 0 });
  clock.increment(10_000);
  expect(stateOf(actor)).toEqual({ signaled: { forced: 'waiting' } });
  actor.send({ type: 'guest.killed' });
  clock.increment(249);
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  clock.increment(1);
  expect(stateOf(actor)).toEqual({ signaled: 'cell' });
  expect(told).toEqual(['guest.kill', 'guest.killCell']);
});

test('a guest that ends before its turn has ended', () => {
  const { actor } = running({ timeoutMs: undefined }, { busy: true });

  actor.send({ ...cancel, graceMs: 0 });
  actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });

  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 0 });
});

test('a kill that is not confirmed is repeated, and never taken for the end', () => {
  const { actor, clock, told } = running({ timeoutMs: undefined });
  actor.send({ ...cancel, graceMs: 0 });

  clock.increment(250);
  clock.increment(1000);
  clock.increment(1000);

  expect(stateOf(actor)).toEqual({ signaled: 'cell' });
  expect(told.filter((what) => what === 'guest.killCell')).toHaveLength(3);
});

test('a guest that exits in its grace period keeps its own exit code', () => {
  const { actor } = running();
  actor.send(cancel);

  actor.send({ type: 'guest.exited', exit: { exitCode: 3 } });

  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3 });
});

test('force that a daemon used and could not write down is the rung that ended a guest; one that overtakes it is not', () => {
  const stop = (rung: 'graceful' | 'forced') => ({ reason: 'cancelled', rung }) as const;
  const { actor: behind } = running();
  const { actor: ahead } = running();
  behind.send(cancel);
  ahead.send({ ...cancel, graceMs: 0 });

  behind.send({ type: 'guest.exited', exit: { exitCode: 137, signal: 'SIGKILL', stop: stop('forced') } });
  ahead.send({ type: 'guest.exited', exit: { exitCode: 0, stop: stop('graceful') } });

  expect(resultOf(behind)).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect(resultOf(ahead)).toMatchObject({ reason: 'cancelled', rung: 'forced' });
});

test('the run limit starts the ladder when it passes, and not before', () => {
  const { actor, clock, told } = running();

  clock.increment(999);
  expect(stateOf(actor)).toEqual({ running: 'limited' });
  clock.increment(1);
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  actor.send({ type: 'guest.exited', exit: { exitCode: 143, signal: 'SIGTERM' } });

  expect(told).toEqual(['SIGTERM']);
  expect(resultOf(actor)).toMatchObject({ reason: 'timed_out', rung: 'graceful', exitCode: 143 });
});

test('the queue limit ends an execution that waits, and no guest is ever started', () => {
  const { actor, clock, told } = start({ queueTimeoutMs: 300 });

  clock.increment(299);
  expect(stateOf(actor)).toEqual({ pending: { queued: 'limited' } });
  clock.increment(1);

  expect(resultOf(actor)).toMatchObject({ reason: 'queue_timed_out', rung: undefined, exitCode: -1 });
  expect(told).toEqual([]);
});

test('the queue limit is over with the dispatch, and the run limit begins with the guest', () => {
  const { actor, clock } = start({ queueTimeoutMs: 300 });
  clock.increment(299);
  actor.send({ type: 'execution.dispatch' });

  clock.increment(2000);
  expect(stateOf(actor)).toEqual({ pending: { starting: 'placing' } });
  actor.send({ type: 'guest.started' });
  clock.increment(999);

  expect(stateOf(actor)).toEqual({ running: 'limited' });
});

test('at the run limit the guest gets the signal that was asked for, or is forced', () => {
  for (const [overrides, rung, expected] of [
    [{ timeoutSignal: 'SIGUSR1' }, 'graceful', ['SIGUSR1']],
    [{ timeoutSignal: 'SIGKILL' }, 'forced', ['guest.kill']],
    [{ graceMs: 0 }, 'forced', ['guest.kill']],
  ] as const) {
    const { actor, clock, told } = running(overrides);

    clock.increment(1000);

    expect(stateOf(actor)).toEqual(stateAt(rung));
    expect(told).toEqual(expected);
    actor.send(killed);
    expect(resultOf(actor)).toMatchObject({ reason: 'timed_out', rung });
  }
});

test('too much memory or output is forced, too much CPU time has its grace period', () => {
  for (const [limit, rung, reason] of [
    ['memory', 'forced', 'memory_exceeded'],
    ['output', 'forced', 'output_exceeded'],
    ['cpu', 'graceful', 'timed_out'],
  ] as const) {
    const { actor } = running();

    actor.send({ type: 'guest.limitReached', limit, message: 'too much' });
    expect(stateOf(actor)).toEqual(stateAt(rung));
    actor.send(killed);

    expect(resultOf(actor)).toMatchObject({ reason, rung, message: 'too much' });
  }
});

test('too much CPU time is forced when there is no grace period', () => {
  const { actor, told } = running({ graceMs: 0 });

  actor.send({ type: 'guest.limitReached', limit: 'cpu', message: 'too much' });

  expect(stateOf(actor)).toEqual(stateAt('forced'));
  expect(told).toEqual(['guest.kill']);
});

test('a limit that is passed during a stop forces it, and the stop stays the reason', () => {
  const { actor } = running();
  actor.send(cancel);

  actor.send({ type: 'guest.limitReached', limit: 'cpu', message: 'too much' });
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  actor.send({ type: 'guest.limitReached', limit: 'memory', message: 'too much' });
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  actor.send(killed);

  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled', rung: 'forced' });
});

test('stopping twice is one stop', () => {
  const { actor, told } = running();
  actor.send(cancel);

  actor.send({ ...cancel, reason: 'session_closed' });
  actor.send(killed);

  expect(told).toEqual(['SIGTERM']);
  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled' });
});

test('a harder stop during grace takes effect at once', () => {
  for (const harder of [
    { ...cancel, signal: 'SIGKILL' },
    { ...cancel, graceMs: 0 },
    { type: 'execution.signal', signal: 'SIGKILL' } as const,
  ]) {
    const { actor, told } = running();
    actor.send(cancel);

    actor.send(harder);

    expect(stateOf(actor)).toEqual(stateAt('forced'));
    expect(told).toEqual(['SIGTERM', 'guest.kill']);
  }
});

test('a shorter grace period, given later, counts from then on, and the reason stays', () => {
  const { actor, clock, told } = running();
  actor.send({ type: 'guest.limitReached', limit: 'cpu', message: 'too much' });
  clock.increment(100);

  actor.send({ ...cancel, graceMs: 200 });
  clock.increment(199);
  expect(stateOf(actor)).toEqual(stateAt('graceful'));
  clock.increment(1);
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  actor.send(killed);

  expect(told).toEqual(['SIGTERM', 'guest.kill']);
  expect(resultOf(actor)).toMatchObject({ reason: 'timed_out', rung: 'forced', message: 'too much' });
});

test('a later grace period that ends after what is left of the first changes nothing', () => {
  const { actor, clock } = running();
  actor.send(cancel);
  clock.increment(400);

  actor.send({ ...cancel, graceMs: 300 });
  clock.increment(99);
  expect(stateOf(actor)).toEqual(stateAt('graceful'));
  clock.increment(1);

  expect(stateOf(actor)).toEqual(stateAt('forced'));
});

test('another signal during grace is delivered, and takes no more force', () => {
  const { actor, told } = running();
  actor.send(cancel);

  actor.send({ ...cancel, signal: 'SIGINT' });
  actor.send({ ...cancel, signal: 'SIGUSR1', graceMs: 400 });
  actor.send({ type: 'execution.signal', signal: 'SIGHUP' });

  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  expect(told).toEqual(['SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP']);
});

test('a signal is no stop, SIGKILL is', () => {
  const { actor, told } = running();

  actor.send({ type: 'execution.signal', signal: 'SIGUSR1' });
  expect(stateOf(actor)).toEqual({ running: 'limited' });
  actor.send({ type: 'execution.signal', signal: 'SIGKILL' });
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  actor.send(killed);

  expect(told).toEqual(['SIGUSR1', 'guest.kill']);
  expect(resultOf(actor)).toMatchObject({ reason: 'signaled', rung: 'forced', exitCode: 137 });
});

test('a guest that dies by a signal of its own was signaled', () => {
  const { actor } = running();

  actor.send({ type: 'guest.exited', exit: { exitCode: 139, signal: 'SIGSEGV' } });

  expect(resultOf(actor)).toMatchObject({ reason: 'signaled', rung: undefined, exitCode: 139, signal: 'SIGSEGV' });
});

test('an execution that is stopped while it waits ends at once, and no guest is ever started', () => {
  const { actor, told } = start();

  actor.send(cancel);

  expect(resultOf(actor)).toMatchObject({ reason: 'cancelled', exitCode: -1 });
  expect(actor.getSnapshot().children.guest).toBeUndefined();
  expect(told).toEqual([]);
});

test('an execution that is stopped while it starts climbs the ladder', () => {
  const { actor, told } = start();
  actor.send({ type: 'execution.dispatch' });

  actor.send(cancel);
  actor.send({ type: 'guest.started' });

  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  expect(told).toEqual(['SIGTERM']);
});

test('a guest that does not start in time is forced, and failed to start', () => {
  const { actor, clock } = start();
  actor.send({ type: 'execution.dispatch' });
  actor.send({ type: 'guest.placed' });

  clock.increment(3000);
  expect(stateOf(actor)).toEqual(stateAt('forced'));
  actor.send({ type: 'guest.exited', exit: { exitCode: -1 } });

  const message = 'no guest code had begun 3000 ms after its dispatch';
  expect(resultOf(actor)).toMatchObject({ reason: 'start_failed', message });
});

test('the start limit begins with its place in a cell, however long that took', () => {
  const { actor, clock } = start();
  actor.send({ type: 'execution.dispatch' });

  clock.increment(1e9);
  expect(stateOf(actor)).toEqual({ pending: { starting: 'placing' } });
  actor.send({ type: 'guest.placed' });
  clock.increment(2999);

  expect(stateOf(actor)).toEqual({ pending: { starting: 'placed' } });
});

test('what the engine knows of an end decides the reason', () => {
  for (const [cause, reason] of [
    ['heap_limit', 'memory_exceeded'],
    ['memory_limit', 'memory_exceeded'],
    ['start_failed', 'start_failed'],
  ] as const) {
    const { actor } = running();

    actor.send({ type: 'guest.exited', exit: { exitCode: 137, cause, message: 'why' } });

    expect(resultOf(actor)).toMatchObject({ reason, message: 'why' });
  }
});

test('a lost cell is said honestly, and is a stop’s own work only once force was used', () => {
  const lost = { type: 'guest.lost', reason: 'cell_lost', message: 'the cell ended' } as const;
  const cases = [
    { before: [], expected: { reason: 'cell_lost', rung: undefined } },
    { before: [cancel], expected: { reason: 'cell_lost', rung: 'graceful' } },
    { before: [{ ...cancel, graceMs: 0 }], expected: { reason: 'cancelled', rung: 'forced' } },
  ] as const;
  for (const { before, expected } of cases) {
    const { actor } = running();
    for (const event of before) actor.send(event);

    actor.send(lost);

    expect(resultOf(actor)).toMatchObject(expected);
  }
});

test('an exited execution never changes', () => {
  const { actor } = running();
  actor.send({ type: 'guest.exited', exit: { exitCode: 0 } });
  const before = actor.getSnapshot();

  actor.send(cancel);
  actor.send(killed);

  expect(actor.getSnapshot().context).toEqual(before.context);
});

test('the reasons are one closed list', () => {
  expect(new Set(EXIT_REASONS).size).toBe(12);
});
