import { lies } from './families/lies.ts';
import { loops } from './families/loops.ts';
import { memory } from './families/memory.ts';
import { output } from './families/output.ts';
import { processes } from './families/processes.ts';
import { signals } from './families/signals.ts';
import type { HostileGuest } from './guest.ts';

const TABLE: readonly HostileGuest[] = [loops, memory, processes, signals, output, lies].flatMap(({ family, guests }) =>
  guests.map((guest) => ({ family, ...guest })),
);

/** The same in a process of its own: what takes a cell along from a thread takes only that. */
function asProcess(guest: HostileGuest): HostileGuest {
  return {
    ...guest,
    name: `${guest.name}, in a process`,
    isolation: 'process',
    rungs: guest.rungs.map((rung) => (rung === 'cell' ? 'forced' : rung)),
    neighbours: 'untouched',
    alone: guest.alone ?? guest.neighbours !== 'untouched',
    ...guest.inProcess,
  };
}

/** Every hostile guest there is. */
export const GUESTS: readonly HostileGuest[] = [
  ...TABLE,
  ...TABLE.filter(
    ({ language, isolation, inProcess }) => language === 'javascript' && isolation === undefined && inProcess !== false,
  ).map(asProcess),
];
