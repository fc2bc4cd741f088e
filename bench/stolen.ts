import { readFileSync } from 'node:fs';
import { setTimeout as settle } from 'node:timers/promises';

/** How long after it was taken this machine may be told of time that its host took, in ms: its next tick. */
const TOLD_AFTER_MS = 15;

/** CPU time, of all processors, that this machine wanted and its host gave to others: proc_stat(5), in ms since it started. */
export function stolenMs(): number {
  const [total = ''] = readFileSync('/proc/stat', 'latin1').split('\n', 1);
  return Number(total.trim().split(/ +/)[8]) * 10;
}

/** Whether the host took nothing meanwhile, to 10 ms: then how long `step` took is this machine's own doing. */
export async function undisturbed(step: () => Promise<void>): Promise<boolean> {
  const beforeMs = stolenMs();
  await step();
  await settle(TOLD_AFTER_MS);
  return stolenMs() === beforeMs;
}
