import { execFileSync, spawnSync } from 'node:child_process';

const UNSHARE = ['--pid', '--fork', '--kill-child', '--mount-proc'];

/** More than any of it takes. Only SIGKILL ends `unshare` then. */
const LIMIT_MS = 30_000;

/** Whether {@link runWithOwnIds} can be used. */
export const MAY_REUSE_IDS =
  process.getuid?.() === 0 &&
  spawnSync('unshare', [...UNSHARE, 'test', '-w', '/proc/sys/kernel/ns_last_pid']).status === 0;

/**
 * Runs a script where process ids are its own, so that it can have one used again, and returns what it writes. It sees
 * what is imported below; `sleep()`, which starts a process with a session of its own; and `sleepAs(pid, startTime)`, which starts one that has this
 * id, and began at another time.
 */
export function runWithOwnIds(script: string): string {
  const url = new URL('../../src/processes.ts', import.meta.url).href;
  const text = `import { spawn } from 'node:child_process';
    import { once } from 'node:events';
    import { writeFileSync } from 'node:fs';
    import { isAlive, killSessionUntilGone, killTrees, startTimeOf, untilGone } from ${JSON.stringify(url)};
    const sleep = () => spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
    const sleepAs = async (pid, startTime) => {
      for (;;) {
        writeFileSync('/proc/sys/kernel/ns_last_pid', String(pid - 1));
        const other = sleep();
        if (other.pid === pid && startTimeOf(pid) !== startTime) return other;
        other.kill('SIGKILL');
        await once(other, 'exit');
      }
    };
    ${script}
    process.exit();`;
  const node = [process.execPath, '--input-type=module', '-e', text];
  return execFileSync('unshare', [...UNSHARE, ...node], { encoding: 'utf8', timeout: LIMIT_MS, killSignal: 'SIGKILL' });
}
