import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { onTestFinished } from 'vitest';

const HOGS = 6;

/** Each has a session of its own: where the kernel shares by sessions, all of one would count as one. */
const PROGRAM = `
import os, signal, sys
pid, count = map(int, sys.argv[1:])
processor = {max(os.sched_getaffinity(0))}
for thread in os.listdir('/proc/%d/task' % pid):
    os.sched_setaffinity(int(thread), processor)
os.setpriority(os.PRIO_PROCESS, pid, 19)
hogs = []
for _ in range(count):
    hogs.append(os.fork())
    if hogs[-1] == 0:
        os.setsid()
        os.sched_setaffinity(0, processor)
        while True: pass
print('ready', flush=True)
sys.stdin.read()
for hog in hogs: os.kill(hog, signal.SIGKILL)`;

/** Leaves one processor to all of a process, where others never stop and its first thread goes last. Returns what ends that. */
export async function starve(pid: number): Promise<() => void> {
  const child = spawn('python3', ['-c', PROGRAM, String(pid), String(HOGS)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const end = () => void child.stdin.end();
  onTestFinished(end);
  await once(child.stdout, 'data');
  return end;
}
