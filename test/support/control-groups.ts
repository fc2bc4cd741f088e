import { rmdirSync } from 'node:fs';
import { join } from 'node:path';

/** Where hierarchies with a use for daemons are mounted, whichever version they are of. */
const MOUNTS = ['.', 'unified', 'memory', 'pids', 'cpu', 'cpuacct'].map((name) => join('/sys/fs/cgroup', name));

/** Removes the group that daemons were told to have theirs in, unless there still are some in it. */
export function removePlace(place: string): void {
  for (const mount of MOUNTS) {
    try {
      rmdirSync(join(mount, place));
    } catch {
      // not there, or not empty
    }
  }
}
