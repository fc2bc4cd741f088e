import { lies } from './families/lies.ts';
import { loops } from './families/loops.ts';
import { memory } from './families/memory.ts';
import { output } from './families/output.ts';
import { processes } from './families/processes.ts';
import { signals } from './families/signals.ts';
import type { HostileGuest } from './guest.ts';

/** Every hostile guest there is. */
export const GUESTS: readonly HostileGuest[] = [loops, memory, processes, signals, output, lies].flatMap(
  ({ family, guests }) => guests.map((guest) => ({ family, ...guest })),
);
