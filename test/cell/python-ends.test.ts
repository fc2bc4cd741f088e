import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { Guest } from '../../src/cell/engine.ts';
import { isAlive } from '../../src/processes.ts';
import { eventually } from '../support/eventually.ts';
import { soonest } from '../support/in-time.ts';
import { MAY_TRACE, trace } from '../support/tracer.ts';
import { DAEMON, Host, MB, OPTIONS, parentOf, type Run, stateOf } from './python-harness.ts';

const host = new Host();
const start = host.start.bind(host);

afterAll(() => host[Symbol.asyncDispose]());

test('a signal reaches the handler the program installed', async () => {
  const run = start(
    'import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint("ready")\ntime.sleep(1000)',
  );
  await eventually('the handler', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGTERM');

  expect(await run.exited).toMatchObject({ exitCode: 3 });
});

test('SIGTERM and SIGINT end a program that does not handle them', async () => {
  const terminated = start('import time\nprint("ready")\ntime.sleep(1000)');
  const interrupted = start('import time\nprint("ready")\ntime.sleep(1000)');
  await eventually('both', () => terminated.stdout() + interrupted.stdout() === 'ready\nready\n');

  terminated.guest.signal('SIGTERM');
  interrupted.guest.signal('SIGINT');

  expect(await terminated.exited).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
  expect(await interrupted.exited).toMatchObject({ exitCode: 130, signal: 'SIGINT' });
  expect(interrupted.stderr()).toMatch(/KeyboardInterrupt\n$/);
  expect(interrupted.stderr()).not.toContain('zygote');
});

test('a signal is for the program alone, which decides about its children', async () => {
  const code = `
import signal, subprocess, sys
script = 'trap "exit 7" TERM; echo ready; read line; exit 5'
child = subprocess.Popen(['sh', '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
def stop(*_):
    child.communicate(b'\\n')
    sys.exit(child.returncode)
signal.signal(15, stop)
print('ready')
while True: signal.pause()`;
  const run = start(code, { env: { PATH: '/usr/bin:/bin' } });
  await eventually('the child', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGTERM');

  expect(await run.exited).toMatchObject({ exitCode: 5 });
});

test('a program that catches everything is killed', async () => {
  const run = start(
    'print("ready")\nwhile True:\n    try:\n        while True: pass\n    except BaseException: continue',
  );
  await eventually('the loop', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGINT');
  run.guest.kill();

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test('kill and signal before the start are not lost', async () => {
  const killed = start('import time; time.sleep(1000)');
  killed.guest.kill();
  const terminated = start('import time; time.sleep(1000)');
  terminated.guest.signal('SIGTERM');
  await using cold = new Host();
  const killedCold = cold.start('import time; time.sleep(1000)');
  killedCold.guest.kill();

  expect(await killed.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect(await terminated.exited).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
  expect(await killedCold.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  await cold.engine.close();
});

test('an interrupt before the first line ends a program, and shows nothing of what started it', async () => {
  // The start is told before all code has arrived, and so much does not arrive at once.
  const run = start(`#${'x'.repeat(8 * MB)}\nprint("never")`);
  run.guest.signal('SIGINT');

  expect(await run.exited).toMatchObject({ exitCode: 130, signal: 'SIGINT' });

  expect(run.stderr()).toBe('KeyboardInterrupt\n');
  expect(run.stdout()).toBe('');
});

test('methods after the end do no harm', async () => {
  const run = start('pass');
  await run.exited;

  run.guest.signal('SIGTERM');
  run.guest.kill();

  await run.guest.write(Buffer.from('x'), true);
});

test.each(['ends', 'is killed'])('a daemon of its own session dies when the program %s', async (how) => {
  const run = start(`${DAEMON}${how === 'ends' ? '' : 'time.sleep(1000)'}`);
  if (how === 'is killed') {
    await eventually('the daemon', () => run.stdout() === 'ready\n');
    run.guest.kill();
  }

  await run.exited;

  const daemon = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));
  expect(daemon).toBeGreaterThan(1);
  expect(existsSync(`/proc/${daemon}`)).toBe(false);
});

/** Leaves shared memory, of which it tells the name, and a child that holds what its keeper waits for. */
const SHARING = `
import os, signal, sys, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=1000)
if os.fork() == 0: time.sleep(1000)
print(memory._name)
`;

test.each<[string, string, (guest: Guest) => void]>([
  ['ends', '', () => {}],
  ['is stopped', 'time.sleep(1000)', (guest) => guest.signal('SIGTERM')],
  ['stops itself', 'signal.signal(15, lambda *_: sys.exit(0))\nos.kill(os.getpid(), 15)', () => {}],
])('shared memory that a program leaves is gone when it %s', async (_, rest, stop) => {
  const run = start(SHARING + rest);
  await eventually('the memory', () => run.stdout().endsWith('\n'));

  stop(run.guest);
  await run.exited;

  const path = join('/dev/shm', run.stdout().trim());
  const isThere = existsSync(path);
  rmSync(path, { force: true });
  expect(isThere).toBe(false);
});

/** A child that looks as if it kept the program's shared memory, and lives on. */
const KEEPER = `
import os, signal, time
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.setsid()
    os.close(1), os.close(2)
    for number in (2, 15): signal.signal(number, signal.SIG_IGN)
    os.write(writer, b'.')
    time.sleep(1000)
os.read(reader, 1)
print(child)
`;

test('a child that only looks as if it kept shared memory delays the end of its program a little, and ends with it', async () => {
  const run = start(`${KEEPER}os._exit(3)`);

  expect(await run.exited).toMatchObject({ exitCode: 3 });

  expect(isAlive(Number(run.stdout()))).toBe(false);
});

test('a program that is killed while its end waits for what keeps shared memory ends at once', async () => {
  const tookMs = await soonest(1_000, 5, async () => {
    const run = start(`${KEEPER}os._exit(3)`);
    const pid = await run.started;
    await eventually('the end of its process', () => !isAlive(pid));

    const killedAtMs = performance.now();
    run.guest.kill();
    expect(await run.exited).toMatchObject({ exitCode: 3 });

    expect(isAlive(Number(run.stdout()))).toBe(false);
    return performance.now() - killedAtMs;
  });

  expect(tookMs).toBeLessThan(1_000);
});

test('processes that fork and end for ever, in sessions of their own, do not survive', async () => {
  const code = `
import os, time
os.close(1), os.close(2)
for chain in range(8):
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
            os.setsid()
            open('chain-%d' % chain, 'w').close()
time.sleep(1000)
`;
  const run = start(code);
  await eventually('all chains', () =>
    [0, 1, 2, 3, 4, 5, 6, 7].every((i) => existsSync(join(run.dir, 'work', `chain-${i}`))),
  );
  // One look may come while all of them are between two.
  await eventually('a chain is seen', () => descendants(run) > 1);

  run.guest.kill();
  await run.exited;

  expect(descendants(run)).toBe(0);
});

test('daemons that ended do not stay as zombies while the program runs', async () => {
  const code = `
import os, time
for i in range(20):
    if os.fork() == 0:
        if os.fork() == 0: os.setsid()
        os._exit(0)
    os.wait()
print('ready')
time.sleep(1000)`;
  const run = start(code);
  const shepherd = parentOf(await run.started);
  await eventually('the daemons', () => run.stdout() === 'ready\n');

  await eventually(
    'the reaping',
    () => readFileSync(`/proc/${shepherd}/task/${shepherd}/children`, 'utf8').trim().split(' ').length === 1,
  );
  run.guest.kill();
  await run.exited;
});

test('a program that ends just when one of its daemons is reaped keeps its status', () => {
  const script = `
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location('zygote', sys.argv[1])
zygote = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zygote)
reader, writer = os.pipe()
guest = os.fork()
if guest == 0:
    os.read(reader, 1)
    os._exit(7)
daemon = os.fork()
if daemon == 0:
    os._exit(0)
waitid = os.waitid
waitid(os.P_PID, daemon, os.WEXITED | os.WNOWAIT)
def waitid_and_then(*which):
    seen = waitid(*which)
    if seen and seen.si_pid == daemon:
        os.write(writer, b'.')
        waitid(os.P_PID, guest, os.WEXITED | os.WNOWAIT)
    return seen
os.waitid = waitid_and_then
print(zygote.Usage().reap_all_but(guest), os.waitstatus_to_exitcode(os.waitpid(guest, 0)[1]))`;

  const result = spawnSync('python3', ['-B', '-c', script, OPTIONS.zygotePath], { encoding: 'utf8' });

  expect(result.stderr).toBe('');
  expect(result.stdout).toBe('True 7\n');
});

/** How many processes work in the directory of `run`. */
function descendants(run: Run): number {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readlinkSync(`/proc/${pid}/cwd`) === join(run.dir, 'work');
    } catch {
      return false;
    }
  }).length;
}

test.skipIf(!MAY_TRACE)('a program of threads that somebody else traces is over when it was killed', async () => {
  const run = start(`
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
while sum(time.process_time() for _ in range(1000)) < 200: pass
print("ready", flush=True)`);
  await eventually('the program', () => run.stdout() === 'ready\n');
  const pid = await run.started;
  await using _tracer = await trace(pid);

  run.guest.kill();
  const exit = await run.exited;

  expect(exit).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  const { userSeconds = 0, systemSeconds = 0 } = exit.usage ?? {};
  expect(userSeconds + systemSeconds).toBeGreaterThan(0.15);
  expect(stateOf(pid)).toBe('Z');
});

test.each([
  ['a shepherd', 'zygote.sweep(first, zygote.Usage(), os.pipe()[0])'],
  ['a zygote', 'shepherds = zygote.Zygote()\nshepherds.lost.append(1)\nwhile shepherds.lost: shepherds.reap()'],
])('%s misses no child of a traced process that ends just when it is looked at', (_, look) => {
  const script = `
import ctypes, importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location('zygote', sys.argv[1])
zygote = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zygote)
(made, chain_writer), (traced, traced_writer) = os.pipe(), os.pipe()
looker = os.fork()
if looker > 0:
    with open(made) as lines: chain = [int(lines.readline()) for _ in range(3)]
    for pid in chain[:2]:
        assert ctypes.CDLL(None).ptrace(0x4206, pid, None, None) == 0  # PTRACE_SEIZE
    os.write(traced_writer, b'%d %d %d' % tuple(chain))
    os.waitpid(looker, 0)
    sys.exit()
zygote.prctl(zygote.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
depth = 0
while depth < 3 and os.fork() == 0:
    depth += 1
    os.write(chain_writer, b'%d\\n' % os.getpid())
while depth > 0: signal.pause()
chain = [int(pid) for pid in os.read(traced, 100).split()]
first, _, last = chain
is_over = zygote.is_over
def is_over_by_now(pid):
    if pid == first:
        os.kill(pid, signal.SIGKILL)
        while not is_over(pid): pass
    return is_over(pid)
zygote.is_over = is_over_by_now
os.dup2(os.open(os.devnull, os.O_WRONLY), zygote.CONTROL)
${look}
is_left = zygote.parent_of(last) is not None and not is_over(last)
for pid in chain: zygote.kill(pid, signal.SIGKILL)
print(is_left)`;

  const result = spawnSync('python3', ['-B', '-c', script, OPTIONS.zygotePath], { encoding: 'utf8', timeout: 30_000 });

  expect(result.stderr).toBe('');
  expect(result.stdout).toBe('False\n');
});
