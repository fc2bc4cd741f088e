import { expect, test } from 'vitest';
import { type Actor, createActor, fromCallback, SimulatedClock } from 'xstate';
import { getShortestPaths } from 'xstate/graph';
import { type CellEvent, cellMachine, type ProcessCommand } from '../../machines/cell.ts';

const input = { cellKey: 'c', startLimitMs: 3000, idleMs: 60_000, graceMs: 2000 };

function start() {
  const clock = new SimulatedClock();
  const told: string[] = [];
  const process = fromCallback<ProcessCommand, { cellKey: string }>(({ receive }) =>
    receive((command) => told.push(command.type)),
  );
  const actor: Actor<typeof cellMachine> = createActor(cellMachine.provide({ actors: { process } }), { clock, input });
  actor.start();
  return { actor, clock, told };
}

const stateOf = (actor: Actor<typeof cellMachine>) => actor.getSnapshot().value;

test('every state can be reached', () => {
  const events: CellEvent[] = [
    { type: 'cell.acquire' },
    { type: 'cell.release' },
    { type: 'cell.stop' },
    { type: 'cell.kill' },
    { type: 'process.spawned', pid: 7 },
    { type: 'process.ready' },
    { type: 'process.exited', message: 'gone' },
  ];
  const machine = cellMachine.provide({ actors: { process: fromCallback(() => {}) } });

  const reached = getShortestPaths(machine, {
    input,
    stopWhen: ({ context }) => Math.abs(context.guests) > 1,
    events: (snapshot) => [
      ...events,
      ...(snapshot as { _nodes: { after: { eventType: string }[] }[] })._nodes.flatMap(({ after }) =>
        after.map(({ eventType }) => ({ type: eventType }) as unknown as CellEvent),
      ),
    ],
  }).map(({ state }) => JSON.stringify(state.value));

  expect(new Set(reached)).toEqual(
    new Set(
      [
        'pending',
        { running: 'busy' },
        { running: 'idle' },
        { signaled: 'graceful' },
        { signaled: 'forced' },
        'exited',
      ].map((value) => JSON.stringify(value)),
    ),
  );
});

test('a cell without guests is let go when it has been idle long enough', () => {
  const { actor, clock, told } = start();
  actor.send({ type: 'cell.acquire' });
  actor.send({ type: 'process.ready' });
  clock.increment(100_000);
  expect(stateOf(actor)).toEqual({ running: 'busy' });

  actor.send({ type: 'cell.release' });
  clock.increment(59_999);
  expect(stateOf(actor)).toEqual({ running: 'idle' });
  clock.increment(1);

  expect(stateOf(actor)).toEqual({ signaled: 'graceful' });
  expect(told).toEqual(['process.shutdown']);
});

test('an idle cell that is taken again starts its idle time anew', () => {
  const { actor, clock } = start();
  actor.send({ type: 'process.ready' });
  clock.increment(59_000);

  actor.send({ type: 'cell.acquire' });
  actor.send({ type: 'cell.release' });
  clock.increment(59_000);

  expect(stateOf(actor)).toEqual({ running: 'idle' });
});

test('a cell that does not get ready in time is killed, and has failed for that', () => {
  const { actor, clock, told } = start();

  clock.increment(3000);

  expect(stateOf(actor)).toEqual({ signaled: 'forced' });
  expect(told).toEqual(['process.kill']);
  actor.send({ type: 'process.exited', message: 'ended by SIGKILL' });
  expect(actor.getSnapshot().context.failure).toBe('the cell was not ready within 3000 ms (startLimitMs)');
});

test('a cell that is asked to end and does not is killed, again and again until it is gone', () => {
  const { actor, clock, told } = start();
  actor.send({ type: 'process.ready' });
  actor.send({ type: 'cell.stop' });

  clock.increment(2000);
  clock.increment(1000);
  expect(told).toEqual(['process.shutdown', 'process.kill', 'process.kill']);
  actor.send({ type: 'process.exited', message: 'killed' });

  expect(actor.getSnapshot().status).toBe('done');
  expect(actor.getSnapshot().context.failure).toBeUndefined();
});

test('a process that ends unasked is a failure with its reason', () => {
  const { actor } = start();
  actor.send({ type: 'process.ready' });

  actor.send({ type: 'process.exited', message: 'ended by SIGSEGV' });

  expect(actor.getSnapshot().context.failure).toBe('ended by SIGSEGV');
});
