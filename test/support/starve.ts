import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { onTestFinished } from 'vitest';
import { sendSignal } from '../../src/processes.ts';

const HOGS = 6;

/** Each has a session of its own: where the kernel shares by sessions, all of one would count as one. */
const STARVER = `
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

/** Traced, not stopped by a signal, where that is allowed: who kills a guest has its cell go on, and again and again may be late. */
const HOLDER = `
import ctypes, os, signal, sys, time
SEIZE, INTERRUPT = 0x4206, 0x4207
pid = int(sys.argv[1])
trace = ctypes.CDLL(None).ptrace
held = all(trace(request, pid, None, None) == 0 for request in (SEIZE, INTERRUPT))
status = 0
while not os.WIFSIGNALED(status):
    # Its parent learns of its end only once its tracer has.
    if held: status = os.waitpid(pid, os.WNOHANG)[1]
    else: os.kill(pid, signal.SIGSTOP)
    print('held', flush=True)
    time.sleep(0.0005)`;

/** Leaves one processor to all of a process, where others never stop and its first thread goes last. Returns what ends that. */
export async function starve(pid: number): Promise<() => void> {
  const child = spawn('python3', ['-c', STARVER, String(pid), String(HOGS)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const end = () => void child.stdin.end();
  onTestFinished(end);
  await once(child.stdout, 'data');
  return end;
}

/** Keeps the first thread of a process from running, or another one where that may be traced. Returns what ends that. */
export async function holdUp(pid: number): Promise<() => void> {
  const child = spawn('python3', ['-c', HOLDER, String(pid)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const end = () => void child.kill('SIGKILL');
  onTestFinished(end);
  child.once('exit', () => sendSignal(pid, 'SIGCONT'));
  await once(child.stdout, 'data');
  child.stdout.resume();
  return end;
}
