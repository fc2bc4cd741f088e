import { readdirSync } from 'node:fs';
import { basename, dirname } from 'node:path';

/** The numbers of the rotated files that are there of a path, in no order. */
export function numbersOf(path: string): number[] {
  const prefix = `${basename(path)}.`;
  return readdirSync(dirname(path))
    .filter((name) => name.startsWith(prefix) && /^\d{1,9}$/.test(name.slice(prefix.length)))
    .map((name) => Number(name.slice(prefix.length)));
}
