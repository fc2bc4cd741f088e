import { readdirSync, readFileSync } from 'node:fs';
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

/**
 * Kills processes and everything below them, and says what that was. All are stopped first, so that none makes another
 * one, or runs away from its parent, while the rest is looked for.
 */
export function killTrees(roots: Iterable<number>): Set<number> {
  const tree = new Set(roots);
  for (let found = [...tree]; found.length > 0; ) {
    for (const pid of found) send(pid, 'SIGSTOP');
    found = processes(({ pid, parent }) => tree.has(parent) && !tree.has(pid));
    for (const pid of found) tree.add(pid);
  }
  for (const pid of tree) send(pid, 'SIGKILL');
  return tree;
}

/** Resolves when all of these processes, which were killed, are gone, or when the limit has passed. */
export async function untilGone(pids: Iterable<number>, limitMs = Number.POSITIVE_INFINITY): Promise<void> {
  const endMs = performance.now() + limitMs;
  for (const pid of pids) while (isAlive(pid) && performance.now() < endMs) await wait(LOOK_MS);
}

/** The children that one thread of this process has started; they are the process's as well. */
export function childrenOfThread(threadId: number): number[] {
  try {
    return readFileSync(`/proc/self/task/${threadId}/children`, 'latin1').split(' ').filter(Boolean).map(Number);
  } catch {
    // The thread is gone, or the kernel does not keep this list.
    return [];
  }
}

/** Kills what is left of a session (of processes: `setsid`) and resolves when nothing is. */
export async function killSessionUntilGone(leader: number): Promise<void> {
  for (;;) {
    const left = processes(({ session, ended }) => session === leader && !ended);
    if (left.length === 0) return;
    for (const pid of left) send(pid, 'SIGKILL');
    await wait(LOOK_MS);
  }
}

/** True while the process exists and has not ended; a zombie has ended. Linux only: reads /proc. */
export function isAlive(pid: number): boolean {
  return statOf(pid)?.ended === false;
}

interface ProcessStat {
  pid: number;
  parent: number;
  session: number;
  /** Only a zombie is left. */
  ended: boolean;
}

function processes(wanted: (stat: ProcessStat) => boolean): number[] {
  const found: number[] = [];
  for (const name of readdirSync('/proc')) {
    const stat = /^\d+$/.test(name) ? statOf(Number(name)) : undefined;
    if (stat !== undefined && wanted(stat)) found.push(stat.pid);
  }
  return found;
}

function statOf(pid: number): ProcessStat | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The name in parentheses may hold anything, spaces and parentheses too; the state follows the last one.
    const [state, parent, , session] = stat.slice(stat.lastIndexOf(')') + 2).split(' ', 4);
    return { pid, parent: Number(parent), session: Number(session), ended: state === 'Z' || state === 'X' };
  } catch {
    return undefined;
  }
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already, or another user's.
  }
}
