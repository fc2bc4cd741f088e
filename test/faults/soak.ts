import { parseArgs } from 'node:util';
import { FAULT_NAMES, type FaultName, LEFT_OUT } from './faults.ts';
import { type PlannedFault, randomFaults } from './plan.ts';
import { Scenario } from './scenario.ts';
import { EVERY_STEP, type Step, stepsOf } from './steps.ts';

/**
 * `npm run soak -- --minutes N --seed S`: first every fault at every step of one fixed list, as far as time allows with
 * `--sweep`; then rounds of random steps with a random pair of faults, each from a seed of its own. `--round SEED` runs
 * one such round again; `--fault NAME` only takes that fault; with `--bursts N` bursts are N times as large.
 */

/** Rounds on one node: then its neighbours are looked at, and the next node begins. */
const ROUNDS_PER_NODE = 12;

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '5' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    round: { type: 'string' },
    fault: { type: 'string' },
    bursts: { type: 'string', default: '1' },
    sweep: { type: 'boolean', default: false },
  },
});
const names = values.fault === undefined ? FAULT_NAMES : FAULT_NAMES.filter((name) => name === values.fault);
if (names.length === 0) throw new TypeError(`no fault "${values.fault}" (there are ${FAULT_NAMES.join(', ')})`);
const [seed, bursts] = [Number(values.seed), Number(values.bursts)];
const endMs = Date.now() + Number(values.minutes) * 60_000;
const counts = { rounds: 0, executions: 0, violations: 0, byFault: new Map<FaultName, number>() };

interface Plan {
  /** What reproduces it. */
  how: string;
  steps: readonly Step[];
  faults: PlannedFault[];
}

/** Two faults, between random steps. */
function randomPlan(roundSeed: number): Plan {
  const faults = randomFaults(names, roundSeed);
  return { how: `--round ${roundSeed} --bursts ${bursts}`, steps: stepsOf(roundSeed, bursts), faults };
}

function* plans(): Generator<Plan> {
  if (values.round !== undefined) {
    yield randomPlan(Number(values.round));
    return;
  }
  if (values.sweep) {
    for (let at = 0; at < EVERY_STEP.length; at += 1) {
      for (const name of names) {
        if (at === 0 && name !== 'daemon killed') continue;
        yield { how: `${name} at step ${at}`, steps: EVERY_STEP, faults: [{ name, at, lastsMs: 600 }] };
      }
    }
  }
  for (let number = 0; ; number += 1) yield randomPlan(seed * 100_000 + number);
}

function summary(): string {
  return `${counts.rounds} rounds, ${counts.executions} executions, ${counts.violations} violations`;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

say(`seed ${seed}`);
if (LEFT_OUT.length > 0) say(`left out, as only root can cause them: ${LEFT_OUT.join(', ')}`);
const all = plans();
let nodes = 0;
for (let done = false; !done && Date.now() < endMs; ) {
  // Control groups end what else must be found.
  nodes += 1;
  const controlGroups = nodes % 2 === (values.round === undefined ? 0 : 1);
  await using scenario = await Scenario.start({ controlGroups }, bursts);
  const hows: string[] = [];
  for (let round = 0; round < ROUNDS_PER_NODE && Date.now() < endMs; round += 1) {
    const next = all.next();
    done = next.done === true;
    if (next.done) break;
    const { how, steps, faults } = next.value;
    hows.push(how);
    const { executions, violations } = await scenario
      .round(`round-${counts.rounds}`, steps, faults)
      .catch((cause) => Promise.reject(new Error(`${how}\n${scenario.node.log.slice(-4_000)}`, { cause })));
    counts.rounds += 1;
    counts.executions += executions;
    counts.violations += violations.length;
    for (const { name } of faults) counts.byFault.set(name, (counts.byFault.get(name) ?? 0) + 1);
    if (violations.length > 0) {
      say(`${how}: ${faults.map(({ name, at, lastsMs }) => `${name} at ${at} for ${lastsMs} ms`).join(', ')}`);
      for (const violation of violations) say(`  ${violation}`);
      say(scenario.node.log.slice(-4_000));
    }
  }
  const { executions, violations } = await scenario.end();
  counts.executions += executions;
  counts.violations += violations.length;
  for (const violation of violations) say(`after ${hows.join(', ')}: ${violation}`);
  if (violations.length > 0) say(scenario.node.log.slice(-4_000));
  say(summary());
}
say(summary());
for (const [name, count] of [...counts.byFault].sort()) say(`  ${name}: ${count}`);
process.exitCode = counts.violations === 0 ? 0 : 1;
