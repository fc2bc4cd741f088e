import { expect, test } from 'vitest';
import { type Actor, createActor, fromCallback, SimulatedClock } from 'xstate';
import { getShortestPaths } from 'xstate/graph';
import {
  type ExecutionsCommand,
  type SessionEvent,
  type SessionInput,
  sessionMachine,
} from '../../machines/session.ts';

const input = {
  sessionKey: 's',
  graceMs: 5000,
  slackMs: 500,
  exited: 0,
  idleTtlMs: undefined,
  idleLeftMs: undefined,
  totalLeftMs: undefined,
};
const exited: SessionEvent = { type: 'execution.exited', dispatched: true, agoMs: 0 };

function start(ttls: Partial<SessionInput> = {}) {
  const clock = new SimulatedClock();
  const told: ExecutionsCommand[] = [];
  const executions = fromCallback<ExecutionsCommand, { sessionKey: string }>(({ receive }) =>
    receive((command) => told.push(command)),
  );
  const actor: Actor<typeof sessionMachine> = createActor(sessionMachine.provide({ actors: { executions } }), {
    clock,
    input: { ...input, ...ttls },
  });
  actor.start();
  actor.send({ type: 'session.open' });
  return { actor, clock, told };
}

const stateOf = (actor: Actor<typeof sessionMachine>) => actor.getSnapshot().value;

test('the top-level states are exactly the four of the lifecycle', () => {
  expect(Object.keys(sessionMachine.states)).toEqual(['pending', 'running', 'signaled', 'exited']);
  expect(Object.keys(sessionMachine.states.signaled?.states ?? {})).toEqual(['graceful', 'forced']);
});

test('every state can be reached', () => {
  const events: SessionEvent[] = [
    { type: 'session.open' },
    { type: 'session.close', graceMs: 5000 },
    { type: 'execution.admitted' },
    { type: 'execution.exited', dispatched: false, agoMs: 0 },
  ];
  const machine = sessionMachine.provide({ actors: { executions: fromCallback(() => {}) } });

  const reached = getShortestPaths(machine, {
    input: { ...input, idleTtlMs: 100, idleLeftMs: 100, totalLeftMs: 1000 },
    limit: 400,
    stopWhen: ({ context }) => context.queued > 1 || context.exited > 1,
    events: (snapshot) => [
      ...events,
      ...(snapshot as { _nodes: { after: { eventType: string }[] }[] })._nodes.flatMap(({ after }) =>
        after.map(({ eventType }) => ({ type: eventType }) as unknown as SessionEvent),
      ),
    ],
  }).map(({ state }) => JSON.stringify(state.value));

  expect(new Set(reached)).toEqual(
    new Set(
      [
        'pending',
        { running: { lifetime: 'limited', activity: 'busy' } },
        { running: { lifetime: 'limited', activity: 'idle' } },
        { signaled: 'graceful' },
        { signaled: 'forced' },
        'exited',
      ].map((value) => JSON.stringify(value)),
    ),
  );
});

test('a session counts its executions through admission, dispatch and end', () => {
  const { actor } = start();

  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.dispatched' });
  expect(actor.getSnapshot().context).toMatchObject({ queued: 1, active: 1, exited: 0 });
  actor.send(exited);
  actor.send({ ...exited, dispatched: false });

  expect(actor.getSnapshot().context).toMatchObject({ queued: 0, active: 0, exited: 2 });
});

test('an empty session that is closed exits at once', () => {
  const { actor } = start();

  actor.send({ type: 'session.close', graceMs: 5000 });

  expect(actor.getSnapshot().status).toBe('done');
});

test('a closed session exits when its last execution has, and not before', () => {
  const { actor, told } = start();
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.dispatched' });

  actor.send({ type: 'session.close', graceMs: 700 });
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  actor.send(exited);

  expect(stateOf(actor)).toBe('exited');
  expect(told).toEqual([{ type: 'executions.stop', graceMs: 700 }]);
});

test('what the executions’ own ladders do not end in time is forced, which they see through themselves', () => {
  const { actor, clock, told } = start();
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'session.close', graceMs: 700 });

  clock.increment(1199);
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  clock.increment(1);
  expect(stateOf(actor)).toEqual({ signaled: 'forced' });
  clock.increment(1e9);

  expect(stateOf(actor)).toEqual({ signaled: 'forced' });
  expect(told.map(({ type }) => type)).toEqual(['executions.stop', 'executions.force']);
});

test('closing without grace forces, also a session that is closing already', () => {
  for (const before of [[], [{ type: 'session.close', graceMs: 5000 }]] as SessionEvent[][]) {
    const { actor, told } = start();
    actor.send({ type: 'execution.admitted' });
    for (const event of before) actor.send(event);

    actor.send({ type: 'session.close', graceMs: 0 });

    expect(stateOf(actor)).toEqual({ signaled: 'forced' });
    expect(told.at(-1)).toEqual({ type: 'executions.force' });
  }
});

test('of a session that is closed again the grace period that has passed first counts', () => {
  for (const [graceMs, leftMs] of [
    [1_000, 1_500],
    [600_000, 300_500],
    [3_600_000, 300_500],
  ] as const) {
    const { actor, clock, told } = start();
    actor.send({ type: 'execution.admitted' });
    actor.send({ type: 'session.close', graceMs: 3_600_000 });
    clock.increment(3_300_000);

    actor.send({ type: 'session.close', graceMs });
    clock.increment(leftMs - 1);
    expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
    clock.increment(1);

    expect(stateOf(actor)).toEqual({ signaled: 'forced' });
    clock.increment(1e9);
    expect(told.map(({ type }) => type)).toEqual(['executions.stop', 'executions.force']);
  }
});

test('a closing session admits nothing', () => {
  const { actor } = start();
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'session.close', graceMs: 5000 });

  actor.send({ type: 'execution.admitted' });

  expect(actor.getSnapshot().context.queued).toBe(1);
});

test('a session without a TTL stays for ever', () => {
  const { actor, clock } = start();

  clock.increment(1e12);

  expect(stateOf(actor)).toEqual({ running: { lifetime: 'unlimited', activity: 'busy' } });
});

test('the idle TTL counts from the last end, and an execution that waits or runs stops it', () => {
  const { actor, clock, told } = start({ idleTtlMs: 1000, idleLeftMs: 1000 });
  clock.increment(999);

  actor.send({ type: 'execution.admitted' });
  clock.increment(5000);
  actor.send({ type: 'execution.dispatched' });
  clock.increment(5000);
  actor.send(exited);
  clock.increment(999);
  expect(stateOf(actor)).toEqual({ running: { lifetime: 'unlimited', activity: 'idle' } });
  clock.increment(1);

  expect(actor.getSnapshot()).toMatchObject({ status: 'done', context: { expired: 'idle', exited: 1 } });
  expect(told).toEqual([{ type: 'executions.stop', graceMs: 5000 }]);
});

test('an end that nobody saw at once counts from when it was', () => {
  const { actor, clock } = start({ idleTtlMs: 1000, idleLeftMs: 1000 });
  actor.send({ type: 'execution.admitted' });
  actor.send({ ...exited, dispatched: false, agoMs: 700 });

  clock.increment(299);
  expect(actor.getSnapshot().status).toBe('active');
  clock.increment(1);

  expect(actor.getSnapshot()).toMatchObject({ status: 'done', context: { expired: 'idle' } });
});

test('a session that was idle before this actor began has what is left, and then all of it', () => {
  const { actor, clock } = start({ idleTtlMs: 1000, idleLeftMs: 200 });
  clock.increment(199);
  actor.send({ type: 'execution.admitted' });
  actor.send({ ...exited, dispatched: false });
  clock.increment(999);
  expect(actor.getSnapshot().status).toBe('active');
  expect(start({ idleTtlMs: 1000, idleLeftMs: 0 }).actor.getSnapshot().status).toBe('active');

  clock.increment(1);

  expect(actor.getSnapshot().status).toBe('done');
});

test('the total TTL ends what runs, with the ladder', () => {
  const { actor, clock, told } = start({ totalLeftMs: 1000, graceMs: 300 });
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.dispatched' });

  clock.increment(999);
  expect(told).toEqual([]);
  clock.increment(1);

  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  expect(actor.getSnapshot().context.expired).toBe('total');
  clock.increment(800);
  expect(told).toEqual([{ type: 'executions.stop', graceMs: 300 }, { type: 'executions.force' }]);
});
