import fc from 'fast-check';
import { ENGINES, type GuestEngine } from '../support/engines.ts';
import { GUEST_NAMES, type GuestName } from './guests.ts';

/** One thing a client does. `of` chooses among the executions there are, the newest first. */
export type Step =
  | { type: 'execute'; guest: GuestName; engine: GuestEngine }
  /** Many short ones at once. */
  | { type: 'burst'; engine: GuestEngine; count: number }
  | { type: 'cancel'; of: number; graceMs: number }
  | { type: 'signal'; of: number; signal: 'SIGKILL' | 'SIGUSR1' }
  | { type: 'input'; of: number }
  | { type: 'watch'; of: number }
  | { type: 'stream'; of: number }
  | { type: 'wait'; of: number }
  | { type: 'status'; of: number }
  /** The same request again, and the same id for another. */
  | { type: 'repeat'; of: number }
  /** Deletes the session, whatever runs in it, and goes on in the next one. */
  | { type: 'delete' };

const of = fc.nat({ max: 5 });
const execute = fc.record({
  type: fc.constant('execute' as const),
  guest: fc.constantFrom(...GUEST_NAMES),
  engine: fc.constantFrom(...ENGINES),
});
const other = (type: 'input' | 'watch' | 'stream' | 'wait' | 'status' | 'repeat') =>
  fc.record({ type: fc.constant(type), of });

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: execute },
  {
    weight: 2,
    arbitrary: fc.record({
      type: fc.constant('burst' as const),
      engine: fc.constantFrom(...ENGINES),
      count: fc.integer({ min: 5, max: 40 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ type: fc.constant('cancel' as const), of, graceMs: fc.constantFrom(0, 50, 400) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      type: fc.constant('signal' as const),
      of,
      signal: fc.constantFrom('SIGKILL' as const, 'SIGUSR1' as const),
    }),
  },
  { weight: 2, arbitrary: other('input') },
  { weight: 1, arbitrary: other('watch') },
  { weight: 1, arbitrary: other('stream') },
  { weight: 1, arbitrary: other('wait') },
  { weight: 1, arbitrary: other('status') },
  { weight: 1, arbitrary: other('repeat') },
  { weight: 1, arbitrary: fc.constant({ type: 'delete' as const }) },
);

/** How many a random round has. */
export const STEPS = 16;

/** Random ones; the same for the same seed, but for their bursts, which are so many times as large. The first makes an execution. */
export function stepsOf(seed: number, bursts = 1): Step[] {
  const [first] = fc.sample(execute, { seed, numRuns: 1 });
  const others = fc.sample(step, { seed, numRuns: STEPS - 1 });
  return [first as Step, ...others].map((each) =>
    each.type === 'burst' ? { ...each, count: each.count * bursts } : each,
  );
}

/** One of each kind, every kind of guest among them: what a single fault is injected into, step after step. */
export const EVERY_STEP: readonly Step[] = [
  { type: 'execute', guest: 'ticks', engine: 'javascript' },
  { type: 'execute', guest: 'ticks', engine: 'python' },
  { type: 'execute', guest: 'child', engine: 'python' },
  { type: 'watch', of: 1 },
  { type: 'execute', guest: 'stubborn', engine: 'javascript' },
  { type: 'stream', of: 0 },
  { type: 'cancel', of: 0, graceMs: 400 },
  { type: 'burst', engine: 'python', count: 5 },
  { type: 'execute', guest: 'slow', engine: 'process' },
  { type: 'repeat', of: 0 },
  { type: 'execute', guest: 'floods', engine: 'python' },
  { type: 'wait', of: 0 },
  { type: 'execute', guest: 'busy', engine: 'python' },
  { type: 'execute', guest: 'child', engine: 'process' },
  { type: 'signal', of: 1, signal: 'SIGKILL' },
  { type: 'status', of: 0 },
  { type: 'execute', guest: 'fails', engine: 'javascript' },
  { type: 'delete' },
  { type: 'execute', guest: 'stubborn', engine: 'python' },
  { type: 'execute', guest: 'ticks', engine: 'python' },
  { type: 'signal', of: 0, signal: 'SIGUSR1' },
  { type: 'execute', guest: 'ticks', engine: 'process' },
  { type: 'input', of: 0 },
];
