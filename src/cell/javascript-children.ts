import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** How often to look whether killed processes are gone, and how long at most. */
const POLL_MS = 2;
const MAX_WAIT_MS = 1000;

/**
 * Kills the processes of the given ids (0 is skipped) and all below them; resolves when they are gone or the kernel
 * does not let go of them within a second. Ended ones stay as zombies of this process where nobody reaps them.
 */
export async function endProcesses(roots: Int32Array): Promise<void> {
  const all = new Set(roots);
  all.delete(0);
  if (all.size === 0) return;
  // Each is stopped before its children are looked for, so that it makes no more meanwhile.
  for (let found = [...all]; found.length > 0; found = childrenOf(all)) {
    for (const pid of found) {
      all.add(pid);
      send(pid, 'SIGSTOP');
    }
  }
  for (const pid of all) send(pid, 'SIGKILL');
  for (let waitedMs = 0; waitedMs < MAX_WAIT_MS && [...all].some(isRunning); waitedMs += POLL_MS) await delay(POLL_MS);
}

/** Processes with a parent among `pids` that are not among them. Not every kernel has `/proc/PID/task/TID/children`. */
function childrenOf(pids: Set<number>): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && !pids.has(pid) && pids.has(Number(statusOf(pid)?.[1])));
}

/** State and parent. */
function statusOf(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ', 2);
  } catch {
    return undefined;
  }
}

function isRunning(pid: number): boolean {
  return !['Z', 'X', undefined].includes(statusOf(pid)?.[0]);
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already.
  }
}
