import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, type RunnerTask, test } from 'vitest';
import { closedAgain, eventually, openDescriptors } from '../support/daemon.ts';
import { Arena, type Outcome } from './arena.ts';
import type { HostileGuest } from './guest.ts';
import { GUESTS } from './guests.ts';

/** What the heap may grow by over a whole table: the records of executions stay, code is compiled. */
const HEAP_GROWTH_BYTES = 16 * 1024 * 1024;

/** Eight lanes run ahead of the tests that tell of them; one at a time, a test waits for its own row only. */
const ROW_LIMIT_MS = 60_000;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

/** Run before anything is counted: what is opened and compiled once stays. */
const ORDINARY: Omit<HostileGuest, 'language'> = {
  name: 'an ordinary program',
  family: 'ordinary',
  code: '0',
  stop: { by: 'itself' },
  reasons: ['completed'],
  rungs: [undefined],
  endsWithinMs: 10_000,
  neighbours: 'untouched',
};

/**
 * How long force may take before a cell is killed, by how many run at a time. Not the daemon's default of 120 ms, which
 * the tests of the ladder look at: two cores full of hostile guests tell of an end later than that, and rows next to each
 * other would lose their cell. And how much longer that is where the cell, and the daemon, have to wait for a processor
 * most of the time, which does not count.
 */
const FORCED: Record<number, { limitMs: number; waits: number }> = {
  1: { limitMs: 500, waits: 1 },
  8: { limitMs: 1_000, waits: 4 },
};

/** What each of those that run beside one may take of a processor before that has started, in ms. */
const START_MS = 300;

describe.each([1, 8])('%i at a time', (width) => {
  const { limitMs: forcedLimitMs } = FORCED[width] as (typeof FORCED)[number];
  let arena: Arena;
  let before: { descriptors: string[]; heapBytes: number };
  let outcomes: Map<HostileGuest, Promise<Outcome>>;
  let beganMs: number;

  beforeAll(async () => {
    beganMs = performance.now();
    arena = await Arena.open(forcedLimitMs);
    for (const language of ['javascript', 'python'] as const) await arena.run({ ...ORDINARY, language });
    await arena.clear();
    collectGarbage();
    before = { descriptors: openDescriptors(), heapBytes: process.memoryUsage().heapUsed };
  });
  afterAll(() => arena[Symbol.asyncDispose]());

  for (const guest of GUESTS) {
    test(title(guest), { timeout: ROW_LIMIT_MS }, async ({ task }) => {
      outcomes ??= runAll(arena, width, namesOf(task.suite?.tasks));
      const isAgain = (task.result?.retryCount ?? 0) > 0;

      const outcome = await (isAgain ? arena.run(guest) : (outcomes.get(guest) as Promise<Outcome>));

      expectAsTold(guest, outcome, width);
    });
  }

  test('nothing is left of any of them', async () => {
    await arena.clear();

    // Of bystanders, each in a session of its own: two cells, one of them with a zygote, and a shepherd with its guest twice,
    // for one is kept warm.
    const { daemon } = arena.node;
    const onlyBystanders = () => arena.processes().length <= 2 + 1 + 2 * 2 && arena.directories().work.length === 2;
    await eventually('only bystanders are left', onlyBystanders).catch(() => {});
    expect(arena.processes().length, arena.processes().join('\n')).toBeLessThanOrEqual(2 + 1 + 2 * 2);
    expect(arena.directories().work).toHaveLength(2);
    // A socket, a token, a log, its unacknowledged ends, its process and those of its guests of each cell.
    expect(arena.directories().cells).toHaveLength(2 * 6);
    // Output stays as long as its execution can be asked for, and in files only where it is large or spoilt.
    const executions = await daemon.listExecutions();
    expect(arena.directories().output.length).toBeLessThanOrEqual(executions.length);
    await closedAgain(before.descriptors);
    collectGarbage();
    expect(process.memoryUsage().heapUsed - before.heapBytes).toBeLessThan(HEAP_GROWTH_BYTES);
    console.info(
      `${width} at a time: ${executions.length} executions, ${((performance.now() - beganMs) / 1000).toFixed(1)} s`,
    );
  }, 60_000);
});

/** The tests that run: those of a filter, or all. */
function namesOf(tasks: RunnerTask[] = []): Set<string> {
  return new Set(tasks.filter(({ mode }) => mode !== 'skip').map(({ name }) => name));
}

function expectAsTold(guest: HostileGuest, outcome: Outcome, width: number): void {
  const { result, next, stdout } = outcome;
  const { userSeconds = 0, systemSeconds = 0 } = result?.usage ?? {};
  const about =
    `${result?.reason} at ${result?.rung}, code ${result?.exitCode}, ${result?.message ?? 'no message'}, ` +
    `${(userSeconds + systemSeconds).toFixed(2)} s of CPU time`;
  expect(result?.reason, about).toBeOneOf([...guest.reasons]);
  // Among others its cell may be ended for one of them, while it is being forced itself.
  const goesWithCell = width > 1 && guest.rungs.includes('cell');
  expect(result?.rung, about).toBeOneOf(goesWithCell ? [...guest.rungs, 'forced'] : [...guest.rungs]);
  if (guest.exitCode !== undefined) expect(result?.exitCode, about).toBe(guest.exitCode);
  const { stop, rungs } = guest;
  const mayBeForced = rungs.includes('forced') || rungs.includes('cell');
  const { limitMs, waits } = FORCED[width] as (typeof FORCED)[number];
  const forceMs = stop.by !== 'itself' && mayBeForced ? stop.graceMs + limitMs * waits : 0;
  const besideMs = START_MS * (width - 1) + (guest.worksMs ?? 0) * width;
  expect(outcome.tookMs, about).toBeLessThan(guest.endsWithinMs + besideMs + forceMs);
  if (guest.leaves === undefined) expect(outcome.left, 'processes of it that are left').toEqual([]);
  expect(outcome.bystanders, 'bystanders in other sessions').toEqual(['untouched', 'untouched']);
  const fates = guest.neighbours === 'untouched' ? ['untouched'] : ['untouched', 'cell_lost'];
  expect(outcome.neighbour, 'the neighbour in its cell').toBeOneOf(fates);
  if (next !== undefined) expect(next, 'the next execution of its session').toBe('completed');
  const { stdout: holds = (bytes: Buffer) => bytes.includes('ready\n') } = guest;
  expect(holds(stdout), `its output: ${JSON.stringify(stdout.toString('latin1').slice(0, 300))}`).toBe(true);
}

function title({ family, name, language }: HostileGuest): string {
  return `${family}: ${name} (${language})`;
}

/** Runs all that are wanted, so many at a time, in the order of the table. */
function runAll(arena: Arena, width: number, wanted: ReadonlySet<string>): Map<HostileGuest, Promise<Outcome>> {
  const waiting = GUESTS.filter((guest) => wanted.has(title(guest))).map((guest) => ({
    guest,
    outcome: Promise.withResolvers<Outcome>(),
  }));
  const outcomes = new Map(waiting.map(({ guest, outcome }) => [guest, outcome.promise]));
  for (const promise of outcomes.values()) promise.catch(() => {});
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      await arena.run(next.guest).then(next.outcome.resolve, next.outcome.reject);
    }
  };
  for (let worker = 0; worker < width; worker += 1) void work();
  return outcomes;
}
