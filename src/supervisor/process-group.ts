import { readFileSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';

/** How often a killed process is looked at until it is gone, in ms. */
const LOOK_MS = 2;

/**
 * Kills a process group and resolves when its leader is gone (or only a zombie is left of it). Never gives up: what the
 * kernel holds in an uninterruptible wait is still there, and saying otherwise would be untrue.
 */
export async function killGroupUntilGone(leader: number): Promise<void> {
  while (isAlive(leader)) {
    try {
      process.kill(-leader, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ESRCH') return;
      throw error;
    }
    await wait(LOOK_MS);
  }
}

/** True while the process exists and has not ended; a zombie has ended. Linux only: reads /proc. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in parentheses may hold anything, spaces and parentheses too; the state follows the last one.
    const state = stat.charAt(stat.lastIndexOf(')') + 2);
    return state !== 'Z' && state !== 'X';
  } catch {
    return false;
  }
}
