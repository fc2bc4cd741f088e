import fc from 'fast-check';
import type { FaultName } from './faults.ts';
import { STEPS } from './steps.ts';

/** Where a fault goes. */
export interface PlannedFault {
  name: FaultName;
  /** Before this step, from 0 on. */
  at: number;
  lastsMs: number;
}

const LONGEST_FAULT_MS = 2_000;

/** Two of these faults, between the steps of the same seed; the same ones for the same seed. */
export function randomFaults(names: readonly FaultName[], seed: number): PlannedFault[] {
  const fault = fc.record({
    name: fc.constantFrom(...names),
    at: fc.integer({ min: 1, max: STEPS - 1 }),
    lastsMs: fc.integer({ min: 50, max: LONGEST_FAULT_MS }),
  });
  const [faults = []] = fc.sample(fc.array(fault, { minLength: 2, maxLength: 2 }), { seed, numRuns: 1 });
  return faults;
}
