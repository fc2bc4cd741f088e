import { expect, test } from 'vitest';
import { FAULT_NAMES, type FaultName, LEFT_OUT } from './faults.ts';
import { type PlannedFault, randomFaults } from './plan.ts';
import { Scenario } from './scenario.ts';
import { EVERY_STEP, type Step, stepsOf } from './steps.ts';

/** The quick form of `npm run soak`: every fault once, the worst one at more places, and some pairs. */

const LASTS_MS = 500;
const FAULTS_PER_NODE = 6;
const PAIRS = 6;
const LIMIT_MS = 900_000;

if (LEFT_OUT.length > 0) console.info(`left out, as only root can cause them: ${LEFT_OUT.join(', ')}`);

/** Each round on the same node, one after another; what all of them found wrong. */
async function violationsOf(rounds: { steps: readonly Step[]; faults: PlannedFault[] }[]): Promise<string[]> {
  await using scenario = await Scenario.start();
  const violations: string[] = [];
  let executions = 0;
  for (const [index, { steps, faults }] of rounds.entries()) {
    const found = await scenario.round(`round-${index}`, steps, faults);
    executions += found.executions;
    const what = faults.map(({ name, at, lastsMs }) => `${name} at ${at} for ${lastsMs} ms`).join(', ');
    violations.push(...found.violations.map((violation) => `${what}: ${violation}`));
  }
  const found = await scenario.end();
  console.info(`${rounds.length} rounds, ${executions + found.executions} executions`);
  return [...violations, ...found.violations];
}

/** With all of them in what is told first: the rest of a failure may be cut off. */
function expectNone(violations: string[]): void {
  expect(violations, violations.join('\n')).toEqual([]);
}

/** Each at another step, spread over the list. */
const planned = FAULT_NAMES.map((name, index) => ({
  name,
  at: 1 + ((index * 7) % (EVERY_STEP.length - 1)),
  lastsMs: LASTS_MS,
}));
const groups = Array.from({ length: Math.ceil(planned.length / FAULTS_PER_NODE) }, (_, index) =>
  planned.slice(index * FAULTS_PER_NODE, (index + 1) * FAULTS_PER_NODE),
);

test.each(groups.map((group) => [group.map(({ name }) => name).join(', '), group] as const))(
  'nothing is lost, doubled or left behind by: %s',
  { timeout: LIMIT_MS },
  async (_, group) => {
    expectNone(await violationsOf(group.map((fault) => ({ steps: EVERY_STEP, faults: [fault] }))));
  },
);

test('a daemon can be killed at any step', { timeout: LIMIT_MS }, async () => {
  const rounds = [];
  for (let at = 3; at < EVERY_STEP.length; at += 4) {
    rounds.push({ steps: EVERY_STEP, faults: [{ name: 'daemon killed' as FaultName, at, lastsMs: 0 }] });
  }

  expectNone(await violationsOf(rounds));
});

test('nothing is lost, doubled or left behind by two faults at once', { timeout: LIMIT_MS }, async () => {
  const first = Date.now() % 1_000_000_000;
  console.info(`again: npm run soak -- --round ${first}, and up to ${first + PAIRS - 1}`);
  const rounds = Array.from({ length: PAIRS }, (_, index) => ({
    steps: stepsOf(first + index),
    faults: randomFaults(FAULT_NAMES, first + index),
  }));

  expectNone(await violationsOf(rounds));
});
