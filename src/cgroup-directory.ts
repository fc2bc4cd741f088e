import { rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { readKernelFile } from './proc-file.ts';
import { sendSignal } from './processes.ts';

/** Process ids of what is in a control group's directory, 0 for each of another pid namespace; empty where there is none. */
export function processesOf(directory: string): number[] {
  const text = readKernelFile(join(directory, 'cgroup.procs')) ?? '';
  return text.split('\n').filter(Boolean).map(Number);
}

/** Kills what is in it, but for this process. */
export function killAll(directory: string): void {
  for (const pid of processesOf(directory)) if (pid > 0 && pid !== process.pid) sendSignal(pid, 'SIGKILL');
}

/** True when it is gone: one that has a process or a group in it stays. */
export function tryRemove(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
}
