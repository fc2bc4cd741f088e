import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';

const YAMA = '/proc/sys/kernel/yama/ptrace_scope';

/** Whether a process may trace one that is not below it. */
export const MAY_TRACE = process.getuid?.() === 0 ? !isYama('3') : !existsSync(YAMA) || isYama('0');

/** Takes hold of all threads of a process, says so, and waits for none of them until its input ends. */
const TRACER = `
import ctypes, os, sys
pid = sys.argv[1]
for thread in os.listdir("/proc/%s/task" % pid):
    assert ctypes.CDLL(None).ptrace(0x4206, int(thread), None, None) == 0, thread  # PTRACE_SEIZE
print("traced", flush=True)
sys.stdin.read()`;

/** Has a process traced, as a debugger does that its user has left alone, until it is disposed of. */
export async function trace(pid: number): Promise<AsyncDisposable> {
  const tracer = spawn('python3', ['-c', TRACER, String(pid)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const closed = once(tracer, 'close');
  const said = await Promise.race([once(tracer.stdout, 'data').then(String), closed.then(() => 'nothing')]);
  if (!said.startsWith('traced')) throw new Error(`process ${pid} cannot be traced`);
  return {
    async [Symbol.asyncDispose]() {
      tracer.stdin.end();
      await closed;
    },
  };
}

function isYama(scope: string): boolean {
  return existsSync(YAMA) && readFileSync(YAMA, 'utf8').trim() === scope;
}
