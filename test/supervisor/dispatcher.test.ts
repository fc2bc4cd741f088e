import fc from 'fast-check';
import { beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import { Dispatcher, type Waiting } from '../../src/supervisor/dispatcher.ts';

/** Sessions of which an execution was dispatched and has not started, the oldest first. */
let starting: Waiting[] = [];

beforeEach(() => {
  starting = [];
});

/** The one that was dispatched first has started. */
function start(dispatcher: Dispatcher): void {
  dispatcher.started(starting.shift() as Waiting, true);
}

/** A session with so many executions waiting, which notes what is dispatched. */
function queue(name: string, waiting: number, log: string[], weight = 1): Waiting & { left: number } {
  return {
    weight,
    left: waiting,
    dispatchNext() {
      if (this.left === 0) return false;
      this.left -= 1;
      starting.push(this);
      log.push(name);
      return true;
    },
  };
}

test('no more run than may, and each end makes place for one', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 3, maxStarting: 100 });

  dispatcher.offer(queue('a', 5, log));
  expect(log).toHaveLength(3);
  start(dispatcher);
  expect(log).toHaveLength(3);
  dispatcher.exited();
  expect(log).toHaveLength(4);
  expect(dispatcher.active).toBe(3);
});

test('no more start at one time than may', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 100, maxStarting: 2 });

  dispatcher.offer(queue('a', 5, log));
  expect(log).toHaveLength(2);
  start(dispatcher);
  expect(log).toHaveLength(3);
});

/** On a clock that stands still until it is told to go on. */
function dispatcherOf(options: { maxActive: number; maxStarting: number }): Dispatcher {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  return new Dispatcher(options);
}

test('starts that are held up leave places to other sessions, ever more of them', () => {
  const log: string[] = [];
  const dispatcher = dispatcherOf({ maxActive: 100, maxStarting: 2 });
  const [stuck, other] = [queue('stuck', 2, log), queue('other', 50, log)];
  dispatcher.offer(stuck);
  dispatcher.offer(other);

  vi.advanceTimersByTime(400);
  expect(log).toEqual(['stuck', 'stuck']);
  vi.advanceTimersByTime(100);
  expect(log.slice(2)).toEqual(['other']);
  // Its place is for its next one at once.
  dispatcher.started(other, true);
  expect(log).toHaveLength(4);
  vi.advanceTimersByTime(500);
  expect(log).toHaveLength(5);
  vi.advanceTimersByTime(5_000);
  expect(log).toHaveLength(5);

  // They have their places again.
  dispatcher.started(stuck, true);
  expect(log).toHaveLength(5);
  dispatcher.started(other, true);
  dispatcher.started(other, true);
  expect(log).toHaveLength(6);
});

test('a session whose starts are held up tries more of them, and leaves places to others', () => {
  const log: string[] = [];
  const dispatcher = dispatcherOf({ maxActive: 100, maxStarting: 4 });
  dispatcher.offer(queue('stuck', 100, log));

  vi.advanceTimersByTime(60_000);
  expect(log).toHaveLength(5);
  const other = queue('other', 100, log);
  dispatcher.offer(other);
  for (let starts = 0; starts < 20; starts += 1) dispatcher.started(other, true);

  expect(log.filter((name) => name === 'other')).toHaveLength(21);
  expect(log.filter((name) => name === 'stuck')).toHaveLength(5);
});

test('where starts take long for want of a processor no more are added than as many again, however many sessions want it', () => {
  const dispatcher = dispatcherOf({ maxActive: 1_000, maxStarting: 4 });
  let [most, begun] = [0, 0];
  for (let session = 0; session < 100; session += 1) dispatcher.offer(queue(`s${session}`, 1, []));

  for (; starting.length > 0; begun += 1) {
    vi.advanceTimersByTime(2_000);
    most = Math.max(most, starting.length);
    start(dispatcher);
  }

  expect(begun).toBe(100);
  expect(most).toBeLessThanOrEqual(8);
});

test('a session that was held up has no claim to what it did not get meanwhile', () => {
  const log: string[] = [];
  const dispatcher = dispatcherOf({ maxActive: 1_000, maxStarting: 2 });
  const [stuck, other] = [queue('stuck', 100, log), queue('other', 500, log)];
  dispatcher.offer(stuck);
  vi.advanceTimersByTime(500);
  dispatcher.offer(other);
  vi.advanceTimersByTime(2_000);
  for (let starts = 0; starts < 100; starts += 1) dispatcher.started(other, true);
  expect(log.filter((name) => name === 'other').length).toBeGreaterThan(100);

  const from = log.length;
  for (const held of starting.filter((waiting) => waiting === stuck)) dispatcher.started(held, true);
  starting = starting.filter((waiting) => waiting !== stuck).slice(-1);
  for (let starts = 0; starts < 40; starts += 1) {
    const next = starting.shift();
    if (next !== undefined) dispatcher.started(next, true);
  }

  const shares = log.slice(from).filter((name) => name === 'stuck').length / (log.length - from);
  expect(shares).toBeGreaterThan(0.4);
  expect(shares).toBeLessThan(0.6);
});

test('held-up starts that fail one by one are no reason to wait for the others', () => {
  const log: string[] = [];
  const dispatcher = dispatcherOf({ maxActive: 1_000, maxStarting: 4 });
  const [stuck, other] = [queue('stuck', 100, log), queue('other', 100, log)];
  dispatcher.offer(stuck);
  vi.advanceTimersByTime(1_000);

  for (let ends = 0; ends < 5; ends += 1) {
    dispatcher.started(stuck, false);
    vi.advanceTimersByTime(500);
  }
  dispatcher.offer(other);
  vi.advanceTimersByTime(500);

  expect(log.filter((name) => name === 'other').length).toBeGreaterThan(0);
});

test('starts that come to their ends, however slowly, are no more at one time than may be', () => {
  const log: string[] = [];
  const dispatcher = dispatcherOf({ maxActive: 100, maxStarting: 2 });
  const slow = queue('a', 10, log);
  dispatcher.offer(slow);

  for (let starts = 0; starts < 5; starts += 1) {
    vi.advanceTimersByTime(400);
    dispatcher.started(slow, true);
  }

  expect(log).toHaveLength(7);
});

test('sessions take turns, however many one has waiting', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 100 });

  dispatcher.offer(queue('big', 1_000, log));
  dispatcher.offer(queue('b', 3, log));
  dispatcher.offer(queue('c', 3, log));
  for (let ends = 0; ends < 9; ends += 1) {
    start(dispatcher);
    dispatcher.exited();
  }

  expect(log).toEqual(['big', 'b', 'c', 'big', 'b', 'c', 'big', 'b', 'c', 'big']);
});

test('the first execution of a session waits for one end, however long another was alone and whatever it weighs', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 100 });
  const end = () => {
    start(dispatcher);
    dispatcher.exited();
  };
  dispatcher.offer(queue('big', 1_000, log, 1_000));
  for (let ends = 0; ends < 100; ends += 1) end();

  dispatcher.offer(queue('light', 1, log, 1));
  end();

  expect(log.at(-1)).toBe('light');
});

test('sessions that compete get places by their weight', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 100 });
  const weights = { heavy: 300, middle: 200, light: 100 };

  for (const [name, weight] of Object.entries(weights)) dispatcher.offer(queue(name, 1_000, log, weight));
  while (log.length < 600) {
    start(dispatcher);
    dispatcher.exited();
  }

  for (const [name, weight] of Object.entries(weights)) {
    const share = log.filter((dispatched) => dispatched === name).length;
    expect(Math.abs(share - weight)).toBeLessThanOrEqual(2);
  }
});

test('a session that was idle has no claim to what it did not use', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 100 });
  const late = queue('late', 1, log);
  const end = () => {
    start(dispatcher);
    dispatcher.exited();
  };
  dispatcher.offer(late);
  end();
  dispatcher.offer(queue('busy', 1_000, log));
  for (let ends = 0; ends < 100; ends += 1) end();

  late.left = 100;
  dispatcher.offer(late);
  const from = log.length;
  for (let ends = 0; ends < 10; ends += 1) end();

  expect(log.slice(from).filter((name) => name === 'late')).toHaveLength(5);
});

test('an execution that ends while it is dispatched gives its place back at once', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 1 });
  let left = 10_000;

  dispatcher.offer({
    weight: 1,
    dispatchNext() {
      if (left === 0) return false;
      left -= 1;
      dispatcher.started(this, true);
      dispatcher.exited();
      return true;
    },
  });
  dispatcher.offer(queue('after', 1, log));

  expect(left).toBe(0);
  expect(log).toEqual(['after']);
  expect(dispatcher.active).toBe(1);
});

test('a session that fails to dispatch keeps nobody else waiting', () => {
  const log: string[] = [];
  const dispatcher = new Dispatcher({ maxActive: 1, maxStarting: 1 });
  const broken: Waiting = {
    weight: 1,
    dispatchNext() {
      throw new Error('broken');
    },
  };

  expect(() => dispatcher.offer(broken)).toThrow('broken');
  dispatcher.offer(queue('fine', 1, log));

  expect(log).toEqual(['fine']);
});

test('whatever happens in whatever order: the limits hold, and a free place is never kept from one who waits', () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('offer' as const), count: fc.integer({ min: 1, max: 5 }) }),
    fc.record({ kind: fc.constant('started' as const) }),
    fc.record({ kind: fc.constant('exited' as const) }),
  );
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 1, max: 4 }),
      fc.array(step, { maxLength: 60 }),
      (maxActive, maxStarting, steps) => {
        starting = [];
        const log: string[] = [];
        const dispatcher = new Dispatcher({ maxActive, maxStarting });
        const queues: { left: number }[] = [];
        let [begun, running] = [0, 0];
        for (const { kind, ...rest } of steps) {
          const before = log.length;
          if (kind === 'offer') {
            const added = queue('q', (rest as { count: number }).count, log);
            queues.push(added);
            dispatcher.offer(added);
          } else if (kind === 'started' && begun > 0) {
            begun -= 1;
            running += 1;
            start(dispatcher);
          } else if (kind === 'exited' && running > 0) {
            running -= 1;
            dispatcher.exited();
          }
          begun += log.length - before;

          expect(begun).toBeLessThanOrEqual(maxStarting);
          expect(begun + running).toBeLessThanOrEqual(maxActive);
          expect(dispatcher.active).toBe(begun + running);
          const free = begun < maxStarting && begun + running < maxActive;
          if (free) expect(queues.every(({ left }) => left === 0)).toBe(true);
        }
      },
    ),
  );
});
