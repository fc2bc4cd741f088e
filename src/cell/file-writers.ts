import { lstatSync, readdirSync, type Stats, statSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { childrenOf, threadsOf } from '../processes.ts';
import { withDescriptor } from '../spare-descriptor.ts';

/** After so many processes whoever else waits has a turn. */
const AT_ONCE = 16;

/** The mode of a descriptor below /proc/PID/fd that is open for writing. */
const WRITABLE = 0o200;

/**
 * Processes that can write to one of these files, which are open here. Not this one and its children: one that is just
 * being started has for a moment whatever its parent has open.
 */
export async function writersOf(opened: readonly Stats[]): Promise<number[]> {
  const files = new Set(opened.map(identityOf));
  const found: number[] = [];
  const names = withDescriptor(() => readdirSync('/proc')).filter((name) => /^\d+$/.test(name));
  for (const [index, pid] of names.map(Number).entries()) {
    if (index % AT_ONCE === 0) await nextTurn();
    if (descriptorsOf(pid).some((path) => files.has(writtenBy(path)))) found.push(pid);
  }
  const own = new Set([process.pid, ...childrenOf(process.pid)]);
  return found.filter((pid) => !own.has(pid));
}

/** Those of its newest thread: the first one may have ended, and shows none then. */
function descriptorsOf(pid: number): string[] {
  const directory = `/proc/${pid}/task/${threadsOf(pid).at(-1)}/fd`;
  try {
    return withDescriptor(() => readdirSync(directory)).map((fd) => `${directory}/${fd}`);
  } catch {
    return [];
  }
}

/** The file that a descriptor below /proc writes to; of none, as of one that is closed or may not be seen, ''. */
function writtenBy(path: string): string {
  try {
    return (lstatSync(path).mode & WRITABLE) === 0 ? '' : identityOf(statSync(path));
  } catch {
    return '';
  }
}

function identityOf({ dev, ino }: Stats): string {
  return `${dev} ${ino}`;
}
