import { expect, test } from 'vitest';
import { type Actor, createActor, fromCallback, SimulatedClock } from 'xstate';
import { getShortestPaths } from 'xstate/graph';
import { type ExecutionsCommand, type SessionEvent, sessionMachine } from '../../machines/session.ts';

const input = { sessionKey: 's', graceMs: 5000, slackMs: 500, forcedLimitMs: 250, exited: 0 };

function start() {
  const clock = new SimulatedClock();
  const told: ExecutionsCommand[] = [];
  const executions = fromCallback<ExecutionsCommand, { sessionKey: string }>(({ receive }) =>
    receive((command) => told.push(command)),
  );
  const actor: Actor<typeof sessionMachine> = createActor(sessionMachine.provide({ actors: { executions } }), {
    clock,
    input,
  });
  actor.start();
  actor.send({ type: 'session.open' });
  return { actor, clock, told };
}

const stateOf = (actor: Actor<typeof sessionMachine>) => actor.getSnapshot().value;

test('the top-level states are exactly the four of the lifecycle', () => {
  expect(Object.keys(sessionMachine.states)).toEqual(['pending', 'running', 'signaled', 'exited']);
  expect(Object.keys(sessionMachine.states.signaled?.states ?? {})).toEqual(['graceful', 'forced', 'cell']);
});

test('every state can be reached', () => {
  const events: SessionEvent[] = [
    { type: 'session.open' },
    { type: 'session.close', graceMs: 5000 },
    { type: 'execution.admitted' },
    { type: 'execution.exited', dispatched: false },
  ];
  const machine = sessionMachine.provide({ actors: { executions: fromCallback(() => {}) } });

  const reached = getShortestPaths(machine, {
    input,
    limit: 200,
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
      ['pending', 'running', { signaled: 'graceful' }, { signaled: 'forced' }, { signaled: 'cell' }, 'exited'].map(
        (value) => JSON.stringify(value),
      ),
    ),
  );
});

test('a session counts its executions through admission, dispatch and end', () => {
  const { actor } = start();

  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'execution.dispatched' });
  expect(actor.getSnapshot().context).toMatchObject({ queued: 1, active: 1, exited: 0 });
  actor.send({ type: 'execution.exited', dispatched: true });
  actor.send({ type: 'execution.exited', dispatched: false });

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
  actor.send({ type: 'execution.exited', dispatched: true });

  expect(stateOf(actor)).toBe('exited');
  expect(told).toEqual([{ type: 'executions.stop', graceMs: 700 }]);
});

test('what the executions’ own ladders do not end in time is forced, and then their cells are killed', () => {
  const { actor, clock, told } = start();
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'session.close', graceMs: 700 });

  clock.increment(1199);
  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  clock.increment(1);
  expect(stateOf(actor)).toEqual({ signaled: 'forced' });
  clock.increment(250);
  expect(stateOf(actor)).toEqual({ signaled: 'cell' });
  clock.increment(1000);

  expect(told.map(({ type }) => type)).toEqual([
    'executions.stop',
    'executions.force',
    'executions.killCells',
    'executions.killCells',
  ]);
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

test('a closing session admits nothing', () => {
  const { actor } = start();
  actor.send({ type: 'execution.admitted' });
  actor.send({ type: 'session.close', graceMs: 5000 });

  actor.send({ type: 'execution.admitted' });

  expect(actor.getSnapshot().context.queued).toBe(1);
});
