import { afterAll, describe, expect, test, vi } from 'vitest';
import { type Guest, type GuestLimits, type GuestUsage, NO_OUTPUT } from '../../src/cell/engine.ts';
import { Meter } from '../../src/cell/meter.ts';

/** A guest that uses what it is told to use. */
class StandIn implements Guest {
  looks = 0;
  readonly outputBytes = NO_OUTPUT;
  readonly notified: string[] = [];
  readonly #memoryBytes: (look: number) => number;
  readonly #cpuSeconds: (look: number) => number;
  readonly #processes: number;

  constructor(memoryBytes: (look: number) => number, cpuSeconds = (_look: number) => 0, processes = 1) {
    this.#memoryBytes = memoryBytes;
    this.#cpuSeconds = cpuSeconds;
    this.#processes = processes;
  }

  async usage(): Promise<GuestUsage> {
    this.looks += 1;
    const memoryBytes = this.#memoryBytes(this.looks);
    const none = { peakMemoryBytes: 0, heapBytes: 0, externalBytes: 0, wasmBytes: 0, droppedBytes: 0 };
    const userSeconds = this.#cpuSeconds(this.looks);
    return { ...none, memoryBytes, userSeconds, systemSeconds: 0, processes: this.#processes, threads: 1 };
  }

  notify(name: string): boolean {
    this.notified.push(name);
    return true;
  }

  signal(): void {}
  kill(): void {}
  async write(): Promise<void> {}
}

function meter(budgetBytes = 0, guestProcesses = 1) {
  const passed: [executionKey: string, limit: string][] = [];
  const dozed: Map<string, GuestUsage>[] = [];
  const events = {
    passed: (key: string, limit: string) => passed.push([key, limit]),
    dozing: (usages: Map<string, GuestUsage>) => dozed.push(usages),
  };
  return { passed, dozed, meter: new Meter(budgetBytes, guestProcesses, events) };
}

const limits = (own: Partial<GuestLimits>): GuestLimits => ({ outputKill: false, ...own });
const until = (see: () => void) => vi.waitFor(see, 30_000);
const looked = (guest: StandIn, looks: number) => until(() => expect(guest.looks).toBeGreaterThanOrEqual(looks));

test('each limit is told once, however often it is seen to be passed', async () => {
  const { meter: one, passed } = meter();
  const guest = new StandIn(
    (look) => (look < 3 ? 60 : 120),
    () => 1,
  );

  one.add('e', guest, limits({ memoryBytes: 100, memorySoftBytes: 50, cpuTimeMs: 500 }));
  await looked(guest, 8);
  one.remove('e');

  expect(passed).toEqual([
    ['e', 'memory_soft'],
    ['e', 'cpu'],
    ['e', 'memory'],
  ]);
  expect(guest.notified).toEqual(['SIGUSR2']);
});

test('a guest with a limit is looked at ten times a second, and more often past half of it', async () => {
  vi.useFakeTimers();
  try {
    const [far, near] = [meter().meter, meter().meter];
    const [small, large] = [new StandIn(() => 10), new StandIn(() => 60)];

    far.add('e', small, limits({ memoryBytes: 100 }));
    near.add('e', large, limits({ memoryBytes: 100 }));
    await vi.advanceTimersByTimeAsync(1_000);
    for (const one of [far, near]) one.remove('e');

    expect(small.looks).toBeGreaterThanOrEqual(9);
    expect(small.looks).toBeLessThanOrEqual(11);
    expect(large.looks).toBeGreaterThanOrEqual(2 * small.looks);
  } finally {
    vi.useRealTimers();
  }
});

test('a guest without limits is left alone as long as the cell has room', async () => {
  const { meter: one } = meter(2 ** 50);
  const [free, limited] = [new StandIn(() => 10), new StandIn(() => 10)];

  one.add('free', free, limits({}));
  one.add('limited', limited, limits({ memoryBytes: 100 }));
  await looked(limited, 3);
  for (const key of ['free', 'limited']) one.remove(key);

  expect(free.looks).toBe(0);
});

test('a cell beyond its budget ends one guest at a time: that which grew, not that which holds most', async () => {
  const { meter: one, passed } = meter(1);
  const guests = {
    holds: new StandIn(() => 1_000),
    creeps: new StandIn((look) => look),
    grows: new StandIn((look) => 10 * look),
  };

  for (const [key, guest] of Object.entries(guests)) one.add(key, guest, limits({}));
  await until(() => expect(passed).not.toEqual([]));
  // Seen for the first time, what one holds it has grown by since it began.
  expect(passed).toEqual([['holds', 'memory']]);
  await looked(guests.creeps, 4);
  expect(passed).toHaveLength(1);
  one.remove('holds');
  await until(() => expect(passed).toHaveLength(2));
  one.remove('creeps');
  one.remove('grows');

  expect(passed[1]).toEqual(['grows', 'memory']);
});

describe('memory of the process that no guest shows', () => {
  const GROWTH_BYTES = 128 * 2 ** 20;
  /** The process is past half of such a budget, and past all of it when it has grown. */
  const threads = () => meter(process.memoryUsage.rss() + GROWTH_BYTES / 2, 0);
  /** Kept until the last of these tests has ended: what is freed in one would be missing in the next. */
  const held: Buffer[] = [];
  const grow = () => held.push(Buffer.alloc(GROWTH_BYTES, 1));
  afterAll(() => held.splice(0));

  test('ends none of those that have not grown, until one does', async () => {
    const { meter: one, passed } = threads();
    let growing = 0;
    const guests = { idle: new StandIn(() => 2_000), other: new StandIn((look) => 1_000 + growing * look) };
    for (const [key, guest] of Object.entries(guests)) one.add(key, guest, limits({ memoryBytes: 1e9 }));
    await looked(guests.idle, 2);

    grow();
    await looked(guests.idle, guests.idle.looks + 5);
    expect(passed).toEqual([]);
    growing = 1;
    await until(() => expect(passed).not.toEqual([]));
    for (const key of Object.keys(guests)) one.remove(key);

    expect(passed).toEqual([['other', 'memory']]);
  });

  test('is that of a guest that is alone', async () => {
    const { meter: one, passed } = threads();
    const guest = new StandIn(() => 1_000);
    one.add('alone', guest, limits({ memoryBytes: 1e9 }));
    await looked(guest, 2);

    grow();
    await until(() => expect(passed).toEqual([['alone', 'memory']]));
    one.remove('alone');
  });

  test('is not that of a guest that is alone only since', async () => {
    const { meter: one, passed } = threads();
    const guests = { left: new StandIn(() => 1_000), other: new StandIn(() => 1_000) };
    for (const [key, guest] of Object.entries(guests)) one.add(key, guest, limits({ memoryBytes: 1e9 }));
    await looked(guests.left, 2);

    grow();
    await looked(guests.left, guests.left.looks + 2);
    one.remove('other');
    await looked(guests.left, guests.left.looks + 5);
    one.remove('left');

    expect(passed).toEqual([]);
  });
});

test('a cell that is far beyond its budget from one look to the next ends the guest that grew since', async () => {
  // Less of it than now may be there in a moment.
  const before = process.memoryUsage.rss();
  const { meter: one, passed } = meter(before * 2.2);
  const holds = new StandIn(() => 1_000);
  const held: Buffer[] = [];
  const grows = new StandIn(() => 1 + held.length * 500);

  one.add('holds', holds, limits({}));
  one.add('grows', grows, limits({ memoryBytes: 2 ** 50 }));
  await looked(holds, 1);
  held.push(Buffer.alloc(before * 2.2, 1));
  await until(() => expect(passed).not.toEqual([]));
  for (const key of ['holds', 'grows']) one.remove(key);

  expect(passed).toEqual([['grows', 'memory']]);
});

test('a cell whose guests do nothing dozes, and one that is woken looks as often as before', async () => {
  vi.useFakeTimers();
  try {
    const { meter: one, dozed } = meter();
    const guest = new StandIn(() => 60);

    one.mayDoze = true;
    one.add('e', guest, limits({ memoryBytes: 100 }));
    await vi.advanceTimersByTimeAsync(2_500);
    expect(dozed).toHaveLength(1);
    expect([...(dozed[0] as Map<string, GuestUsage>)]).toMatchObject([['e', { memoryBytes: 60 }]]);
    const before = guest.looks;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(guest.looks).toBe(before);

    one.wake();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(guest.looks).toBeGreaterThanOrEqual(before + 10);
    one.remove('e');
  } finally {
    vi.useRealTimers();
  }
});

test.each([
  ['that are processes dozes by itself', 1],
  ['that are threads dozes with all others, or not at all', 0],
])('each of the guests %s', async (_, guestProcesses) => {
  vi.useFakeTimers();
  try {
    const { meter: one, dozed } = meter(0, guestProcesses);
    const computes = new StandIn(
      () => 60,
      (look) => look / 100,
      guestProcesses,
    );
    const [still, free] = [new StandIn(() => 60, undefined, guestProcesses), new StandIn(() => 60)];

    one.mayDoze = true;
    one.add('computes', computes, limits({ memoryBytes: 1_000 }));
    one.add('still', still, limits({ memoryBytes: 1_000 }));
    one.add('free', free, limits({}));
    await vi.advanceTimersByTimeAsync(4_000);
    expect(dozed.map((usages) => [...usages.keys()])).toEqual(guestProcesses === 0 ? [] : [['still']]);
    // Who has no limit of its own is not looked at while others are.
    expect(free.looks).toBe(0);
    if (guestProcesses === 0) {
      expect(still.looks).toBe(computes.looks);
      return;
    }
    const before = { still: still.looks, computes: computes.looks };
    await vi.advanceTimersByTimeAsync(1_000);
    expect(still.looks).toBe(before.still);
    expect(computes.looks).toBeGreaterThanOrEqual(before.computes + 9);
    expect([...(await one.measure()).keys()]).toEqual(['computes', 'free']);
    await vi.advanceTimersByTimeAsync(1);
    expect(dozed.slice(1).map((usages) => [...usages.keys()])).toEqual([['free']]);

    one.wake(['still', 'gone']);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(still.looks).toBeGreaterThanOrEqual(before.still + 9);
    one.remove('computes');
    await vi.advanceTimersByTimeAsync(2_000);
    expect(dozed.slice(2).map((usages) => [...usages.keys()])).toEqual([['still']]);
  } finally {
    vi.useRealTimers();
  }
});

test('a cell that dozes on looks after 5, 10, 20, 40, and then each 60 seconds; woken, it begins anew', async () => {
  vi.useFakeTimers();
  try {
    const { meter: one, dozed } = meter();
    const seen = async (ms: number) => {
      const before = dozed.length;
      await vi.advanceTimersByTimeAsync(ms);
      return dozed.length - before;
    };
    one.mayDoze = true;
    one.add('e', new StandIn(() => 60), limits({ memoryBytes: 100 }));
    for (const round of ['asleep', 'woken']) {
      expect([round, await seen(2_500)]).toEqual([round, 1]);
      expect([round, await seen(5_000)]).toEqual([round, 1]);
      expect([round, await seen(9_000), await seen(1_000)]).toEqual([round, 0, 1]);
      expect([round, await seen(19_000), await seen(1_000)]).toEqual([round, 0, 1]);
      expect([round, await seen(39_000), await seen(1_000)]).toEqual([round, 0, 1]);
      expect([round, await seen(59_000), await seen(1_000)]).toEqual([round, 0, 1]);
      expect([round, await seen(59_000), await seen(1_000)]).toEqual([round, 0, 1]);
      one.wake();
    }
    one.remove('e');
  } finally {
    vi.useRealTimers();
  }
});

test.each<[why: string, guest: StandIn, mayDoze: boolean]>([
  ['nobody would wake it', new StandIn(() => 60), false],
  ['a guest grows', new StandIn((look) => look * 2 ** 20), true],
  [
    'a guest computes',
    new StandIn(
      () => 60,
      (look) => look / 100,
    ),
    true,
  ],
  [
    'a guest has children',
    new StandIn(
      () => 60,
      () => 0,
      2,
    ),
    true,
  ],
])('no cell dozes while %s', async (_, guest, mayDoze) => {
  const { meter: one, dozed } = meter();

  one.mayDoze = mayDoze;
  one.add('e', guest, limits({ memoryBytes: 2 ** 40, cpuTimeMs: 1e9 }));
  // Ten a second: longer than a cell takes to fall asleep.
  await looked(guest, 32);
  one.remove('e');

  expect(dozed).toEqual([]);
});

test.each([
  ['does nothing', new StandIn(() => 60), 1],
  [
    'computes',
    new StandIn(
      () => 60,
      (look) => look / 100,
    ),
    0,
  ],
] as const)(
  'a cell is asked often, and its guest without limits %s: it dozes only where nothing happens',
  async (_, guest, times) => {
    vi.useFakeTimers();
    try {
      const { meter: one, dozed } = meter();

      one.mayDoze = true;
      one.add('e', guest, limits({}));
      for (let asked = 0; asked < 40; asked += 1) {
        await vi.advanceTimersByTimeAsync(100);
        await one.measure();
      }
      one.remove('e');

      expect(dozed).toHaveLength(times);
    } finally {
      vi.useRealTimers();
    }
  },
);

test.each([
  ['dozes all the same where its guests are processes', 1, 1],
  ['does not doze where they may be what grows', 0, 0],
])('a cell that grows %s', async (_, guestProcesses, times) => {
  vi.useFakeTimers();
  try {
    const { meter: one, dozed } = meter(2 ** 50, guestProcesses);
    const held: Buffer[] = [];

    one.mayDoze = true;
    one.add('e', new StandIn(() => 60, undefined, guestProcesses), limits({ memoryBytes: 2 ** 40 }));
    for (let grown = 0; grown < 6; grown += 1) {
      held.push(Buffer.alloc(2 ** 22, 1));
      await vi.advanceTimersByTimeAsync(500);
    }
    one.remove('e');

    expect(dozed).toHaveLength(times);
    expect(held).toHaveLength(6);
  } finally {
    vi.useRealTimers();
  }
});
