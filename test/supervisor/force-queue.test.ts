import { expect, test, vi } from 'vitest';
import { ForceQueue } from '../../src/supervisor/force-queue.ts';

/** Enters guests `NAME1`, `NAME2`, ... of one owner; says who is forced, and lets them leave by name. */
function entering(queue: ForceQueue, forced: string[]) {
  const leave = new Map<string, () => void>();
  return {
    enter(name: string, count: number, owner: object = {}) {
      for (let each = 1; each <= count; each += 1) {
        leave.set(
          `${name}${each}`,
          queue.enter(owner, () => forced.push(`${name}${each}`)),
        );
      }
    },
    leave: (name: string) => leave.get(name)?.(),
  };
}

test('as many are forced at once as there are places, the next when one is gone', () => {
  const forced: string[] = [];
  const guests = entering(new ForceQueue('thread', 3), forced);

  guests.enter('a', 5);
  expect(forced).toEqual(['a1', 'a2', 'a3']);
  guests.leave('a2');
  expect(forced).toEqual(['a1', 'a2', 'a3', 'a4']);
  // Gone is gone, however often it is said.
  guests.leave('a2');
  expect(forced).toEqual(['a1', 'a2', 'a3', 'a4']);
  guests.leave('a1');
  expect(forced).toEqual(['a1', 'a2', 'a3', 'a4', 'a5']);
});

test('one that is gone before its turn is passed over', () => {
  const forced: string[] = [];
  const guests = entering(new ForceQueue('thread', 3), forced);

  guests.enter('a', 5);
  guests.leave('a4');
  guests.leave('a1');

  expect(forced).toEqual(['a1', 'a2', 'a3', 'a5']);
});

test('the owners have their turns one after the other, however many wait', () => {
  const forced: string[] = [];
  const guests = entering(new ForceQueue('thread', 3), forced);

  guests.enter('a', 6);
  guests.enter('b', 2);
  guests.enter('c', 1);
  for (const name of ['a1', 'a2', 'a3', 'a4', 'b1', 'c1']) guests.leave(name);

  expect(forced).toEqual(['a1', 'a2', 'a3', 'a4', 'b1', 'c1', 'a5', 'b2', 'a6']);
});

test('one that does not end keeps its place for a while only', () => {
  vi.useFakeTimers();
  try {
    const forced: string[] = [];
    const guests = entering(new ForceQueue('process', 32), forced);

    guests.enter('a', 40);
    expect(forced).toHaveLength(32);
    vi.advanceTimersByTime(499);
    expect(forced).toHaveLength(32);
    vi.advanceTimersByTime(1);
    expect(forced).toHaveLength(40);
    // Late: its place is another one's by now.
    guests.leave('a1');
    guests.enter('b', 30);
    expect(forced).toHaveLength(64);
  } finally {
    vi.useRealTimers();
  }
});
