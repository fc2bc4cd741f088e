import { Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { leavingOf, pump } from '../../src/wire/calls.ts';

/** Endless messages, and how many of them have been made. */
function source() {
  const made = { count: 0 };
  const messages = async function* () {
    for (;;) {
      made.count += 1;
      yield made.count;
    }
  };
  return { made, messages: messages() };
}

test('of a call that takes nothing one message goes out and one waits, until its caller leaves', async () => {
  const call = new Writable({ objectMode: true, write: () => {} });
  const { made, messages } = source();

  const pumped = pump(call, messages, leavingOf(call));
  for (let turns = 0; turns < 100; turns += 1) await new Promise(setImmediate);
  const held = made.count;
  call.emit('cancelled');
  await pumped;

  expect(held).toBe(2);
  expect(made.count).toBe(2);
  expect(await messages.next()).toEqual({ done: true, value: undefined });
});
