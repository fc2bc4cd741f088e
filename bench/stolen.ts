import { readFileSync } from 'node:fs';

/** CPU time, of all processors, that this machine wanted and its host gave to others: proc_stat(5), in ms since it started. */
export function stolenMs(): number {
  const [total = ''] = readFileSync('/proc/stat', 'latin1').split('\n', 1);
  return Number(total.trim().split(/ +/)[8]) * 10;
}
