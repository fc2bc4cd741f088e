import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import type { Guest } from '../../src/cell/engine.ts';
import { ProcessEngine } from '../../src/cell/process-engine.ts';
import { TreeMeter } from '../../src/cell/process-tree.ts';
import { readKernelFile } from '../../src/proc-file.ts';
import { treeOf } from '../../src/processes.ts';
import { ENGINES } from '../support/engines.ts';
import { EngineHarness, Harness } from './javascript-harness.ts';
import { Host, MB } from './python-harness.ts';

const HOLD = `
import ctypes, mmap, os, signal, time
prctl = ctypes.CDLL(None).prctl
prctl(41, 1, 0, 0, 0)
def hold(mib):
    area = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(area), 4096): area[at] = 1
    return area
first = os.getpid()
def wait_below_first():
    prctl(1, signal.SIGKILL, 0, 0, 0)
    # It may be gone already, and the test with it.
    if os.getppid() == first: signal.pause()
    os._exit(0)`;

/**
 * Holds so many MiB of its own, in pages of the small kind, and does what it is told to: `grow` by 32 MiB, `shrink` by the
 * newest of those, or `fork`, which has a child share all that it holds.
 */
const HOLDER = `${HOLD}
import sys
held = [hold(int(sys.argv[1]))]
print('ready', flush=True)
for line in sys.stdin:
    if line == 'grow\\n': held.append(hold(32))
    if line == 'shrink\\n': held.pop().close()
    if line == 'fork\\n' and os.fork() == 0: wait_below_first()
    print('done', flush=True)`;

async function startHolder(mib: number): Promise<{ pid: number; tell(what: string): Promise<unknown> }> {
  const child = spawn('python3', ['-c', HOLDER, String(mib)], { stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  const lines = createInterface(child.stdout);
  await once(lines, 'line');
  const tell = (what: string) => {
    child.stdin.write(`${what}\n`);
    return once(lines, 'line');
  };
  return { pid: child.pid as number, tell };
}

function startMeter(): TreeMeter {
  const meter = new TreeMeter();
  onTestFinished(() => meter.close());
  return meter;
}

/** What they hold, added up by the kernel. */
function heldBytes(pids: Iterable<number>): number {
  const rollups = [...pids].map((pid) => readKernelFile(`/proc/${pid}/smaps_rollup`) as string);
  return rollups.reduce((sum, rollup) => sum + Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1]) * 1024, 0);
}

test('what a large process holds that grows and shrinks is told right, at a fraction of what adding it up takes', async () => {
  const { pid, tell } = await startHolder(256);
  const meter = startMeter();
  let [lookMs, addMs] = [0, 0];

  for (let round = 0; round < 100; round += 1) {
    await tell(round % 2 === 0 ? 'grow' : 'shrink');
    const beganMs = performance.now();
    const { memoryBytes } = meter.usage([pid]);
    lookMs += performance.now() - beganMs;
    const addedMs = performance.now();
    const bytes = heldBytes([pid]);
    addMs += performance.now() - addedMs;
    expect(Math.abs(memoryBytes - bytes)).toBeLessThan(0.02 * bytes);
  }

  expect(lookMs).toBeLessThan(addMs / 2);
});

test('no more than may be held is told before all of it has been added up', async () => {
  const { pid, tell } = await startHolder(256);
  const meter = startMeter();
  // Until no more time may go to adding up for a while.
  for (let round = 0; round < 40; round += 1) {
    await tell(round % 2 === 0 ? 'grow' : 'shrink');
    meter.usage([pid]);
  }
  const limitBytes = 1.25 * heldBytes([pid]);
  await tell('fork');

  const { memoryBytes, processes } = meter.usage([pid], true, limitBytes);

  // Half of it is the child's, and no longer the first one's.
  expect(processes).toBe(2);
  const bytes = heldBytes(treeOf([pid]));
  expect(Math.abs(memoryBytes - bytes)).toBeLessThan(0.02 * bytes);
});

/** Holds 100 MiB that only root may look at (PR_SET_DUMPABLE), with two threads. */
const HIDER = `${HOLD}
import sys, threading
prctl(4, 0, 0, 0, 0)
held = hold(100)
threading.Thread(target=sys.stdin.read).start()
print('ready', flush=True)`;

test.for([
  ['', ''],
  [', whose first thread has ended', '\nctypes.CDLL(None).pthread_exit(None)'],
])('a process that shows its memory to root only is not told to hold none%s', async ([, end]) => {
  const code = `
    import { spawn } from 'node:child_process';
    import { once } from 'node:events';
    import { readFileSync } from 'node:fs';
    import { TreeMeter } from ${JSON.stringify(new URL('../../src/cell/process-tree.ts', import.meta.url).href)};
    const child = spawn('python3', ['-c', ${JSON.stringify(HIDER + end)}], { stdio: ['pipe', 'pipe', 'inherit'] });
    await once(child.stdout, 'data');
    while (${end !== ''} && !readFileSync('/proc/' + child.pid + '/stat', 'latin1').includes(') Z '));
    const meter = new TreeMeter();
    console.log(meter.usage([child.pid]).memoryBytes);
    meter.close();
    child.kill('SIGKILL');`;
  const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  const options = { ...user, env: { PATH: process.env.PATH }, timeout: 60_000 };

  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', code], options);

  expect(Number(stdout) / 2 ** 20).toBeGreaterThan(100);
  expect(Number(stdout) / 2 ** 20).toBeLessThan(150);
});

/** Holds 192 MiB, and now and then 32 more, for as long as it takes to have no more time go to that for a while; then forks. */
const FORKER = `${HOLD}
held = hold(192)
end = time.monotonic() + 1
while time.monotonic() < end:
    more = hold(32)
    time.sleep(0.005)
    more.close()
    time.sleep(0.005)
if os.fork() == 0: wait_below_first()
print('forked', flush=True)
signal.pause()`;

/** Starts it as a guest, or as the child of one. */
function startForker(engine: (typeof ENGINES)[number], memoryBytes: number): { guest: Guest; out(): string } {
  const limits = { memoryBytes, outputKill: false };
  if (engine === 'python') {
    const host = new Host();
    onTestFinished(() => host[Symbol.asyncDispose]());
    const { guest, stdout } = host.start(FORKER, { limits });
    return { guest, out: stdout };
  }
  const programPath = fileURLToPath(new URL('../../dist/workers/process.cjs', import.meta.url));
  const harness = engine === 'process' ? new EngineHarness(new ProcessEngine({ programPath })) : new Harness();
  onTestFinished(() => harness[Symbol.asyncDispose]());
  const options = "{ stdio: ['ignore', 'inherit', 'inherit'] }";
  const code = `require('node:child_process').spawn('python3', ['-c', ${JSON.stringify(FORKER)}], ${options})`;
  return harness.start(code, { limits, env: { PATH: process.env.PATH as string } });
}

test.for(ENGINES)(
  'a guest that shares what it holds with its child is not told to hold it twice (%s)',
  async (engine) => {
    // What Node itself holds is a process's.
    const limitBytes = (engine === 'process' ? 290 : 260) * MB;
    const { guest, out } = startForker(engine, limitBytes);
    let mostBytes = 0;

    // As whoever watches its limits does; some more times once it has forked.
    for (let left = 20; left > 0; left -= out() === '' ? 0 : 1) {
      const { memoryBytes } = await guest.usage();
      mostBytes = Math.max(mostBytes, memoryBytes);
      await new Promise(setImmediate);
    }

    expect(mostBytes).toBeGreaterThan(192 * MB);
    expect(mostBytes).toBeLessThan(limitBytes);
  },
);
