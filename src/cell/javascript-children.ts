import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** How often to look whether killed processes are gone, and how long at most. */
const POLL_MS = 2;
const MAX_WAIT_MS = 1000;

/**
 * Kills the processes of the given ids (0 is skipped) and all below them; resolves when they are gone or the kernel
 * does not let go of them within a second. Ended ones stay as zombies of this process where nobody reaps them.
 */
export async function endProcesses(pids: Iterable<number>): Promise<void> {
  const all: number[] = [];
  for (const pid of pids) if (pid > 0) stopTree(pid, all);
  for (const pid of all) send(pid, 'SIGKILL');
  for (let waitedMs = 0; waitedMs < MAX_WAIT_MS && all.some(isRunning); waitedMs += POLL_MS) await delay(POLL_MS);
}

/** Stops each process before its children are listed, so that it makes no more meanwhile. */
function stopTree(pid: number, into: number[]): void {
  if (into.includes(pid)) return;
  send(pid, 'SIGSTOP');
  into.push(pid);
  for (const child of childrenOf(pid)) stopTree(child, into);
}

function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
      readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
    );
  } catch {
    return [];
  }
}

function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return !'ZX'.includes(stat.charAt(stat.lastIndexOf(')') + 2));
  } catch {
    return false;
  }
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already.
  }
}
