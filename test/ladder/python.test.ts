import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isAlive, processesWith, TestDaemon, type TestSession } from '../support/daemon.ts';
import { inTime } from '../support/in-time.ts';

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start({ graceMs: 300 });
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

const ready = (code: string) => session.ready({ language: 'python', code });

test('a program that exits in its SIGTERM handler ends at graceful, with its own exit code', async () => {
  const running = await ready(`
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"bye\\n")  # print may be interrupted in itself
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True: time.sleep(60)`);
  const { pid } = await running.snapshot();

  await running.cancel({ graceMs: 60_000 });
  const ended = await running.end();

  expect(ended.steps).toEqual(['pending', 'running', 'signaled.graceful', 'exited.graceful']);
  expect(ended.result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3, signal: undefined });
  expect(ended.stdout).toBe('ready\nbye\n');
  expect(pid).toBeGreaterThan(1);
  expect(isAlive(pid)).toBe(false);
  expect(ended.snapshot.pid).toBe(0);
});

test('a program that ignores SIGTERM is forced when the grace period ends', async () => {
  const running = await ready(`
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(60)`);

  await running.cancel({ graceMs: 200 });
  const { steps, result, snapshot } = await running.end();

  expect(steps).toEqual(['pending', 'running', 'signaled.graceful', 'signaled.forced', 'exited.forced']);
  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137, signal: 'SIGKILL' });
  const { signaledAtMs = 0, exitedAtMs = 0 } = snapshot.times;
  expect(exitedAtMs - signaledAtMs).toBeGreaterThanOrEqual(195);
});

test.each([
  ['that sleeps', 'time.sleep(600)'],
  ['in a busy loop', 'while True: pass'],
  ['in native code', 'hashlib.pbkdf2_hmac("sha512", b"a", b"b", 2**31 - 1)'],
])('a program without a handler %s ends at once by the signal', async (_, code) => {
  const running = await ready(`import time, hashlib\nprint("ready", flush=True)\n${code}`);

  await running.cancel({ graceMs: 60_000 });

  expect((await running.end()).result).toMatchObject({
    reason: 'cancelled',
    rung: 'graceful',
    exitCode: 143,
    signal: 'SIGTERM',
  });
});

test('a program that swallows every exception is forced, and its neighbours notice nothing', async () => {
  const neighbour = await ready('import time\nprint("ready", flush=True)\ntime.sleep(600)');
  const running = await ready(`
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException: continue`);

  await running.cancel({ graceMs: 200 });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
  expect((await neighbour.snapshot()).state).toBe('running');
  await neighbour.cancel({ graceMs: 0 });
});

test('native code with a handler, which cannot run, is forced without costing the cell', async () => {
  const cells = await session.cellPids();
  const running = await ready(`
import signal, hashlib
signal.signal(signal.SIGTERM, lambda *_: None)
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha512", b"a", b"b", 2**31 - 1)`);

  await running.cancel({ graceMs: 100 });

  expect((await running.end()).result).toMatchObject({ rung: 'forced', exitCode: 137 });
  expect(await session.cellPids()).toEqual(expect.arrayContaining(cells));
});

test.each([
  ['cancelled', 0],
  ['asked', 60_000],
])('a daemon that the program forked into a session of its own is gone when the program is %s', async (_, graceMs) => {
  const running = await ready(`
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.fork() != 0: os._exit(0)
    sys.stdout.write("daemon %d ready\\n" % os.getpid())
    sys.stdout.flush()
    while True: time.sleep(60)
while True: time.sleep(60)`);
  const daemonPid = Number(/daemon (\d+) ready/.exec((await running.output()).stdout)?.[1]);

  expect(isAlive(daemonPid)).toBe(true);
  await running.cancel({ graceMs });
  await running.end();

  expect(isAlive(daemonPid)).toBe(false);
});

test('children are gone when a program has ended by itself', async () => {
  const seconds = `60${Math.floor(Math.random() * 1e9)}`;

  const { result } = await session.run({
    language: 'python',
    code: `import subprocess; subprocess.Popen(["sleep", "${seconds}"], start_new_session=True); print("done")`,
  });

  expect(result).toMatchObject({ reason: 'completed', exitCode: 0 });
  expect(processesWith(`sleep ${seconds}`)).toEqual([]);
});

test('the run limit stops a program as a cancellation would, with reason timed_out', async () => {
  const code =
    'import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint("ready", flush=True)\nwhile True: pass';
  const { result } = await inTime(
    300,
    (timeoutMs) => session.run({ language: 'python', code, timeoutMs, graceMs: 100 }),
    ({ stdout }) => stdout.includes('ready'),
  );

  expect(result).toMatchObject({ reason: 'timed_out', rung: 'forced', exitCode: 137 });
});

test.each([
  ['raises', 'raise ValueError("boom")', { reason: 'failed', exitCode: 1 }],
  ['calls sys.exit', 'import sys; sys.exit(9)', { reason: 'failed', exitCode: 9 }],
  ['kills itself', 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)', { reason: 'signaled', exitCode: 137 }],
  ['aborts', 'import os; os.abort()', { reason: 'signaled', exitCode: 134, signal: 'SIGABRT' }],
  ['reads what is not there', 'import ctypes; ctypes.string_at(0)', { reason: 'signaled', exitCode: 139 }],
  ['kills its group', 'import os, signal; os.killpg(0, signal.SIGTERM)', { reason: 'signaled', exitCode: 143 }],
  ['exits at once', 'import os; os._exit(255)', { reason: 'failed', exitCode: 255 }],
])('a program that %s has that as its result', async (_, code, expected) => {
  expect((await session.run({ language: 'python', code })).result).toMatchObject(expected);
});

test('a stopped process hears its stop, and is forced all the same if it does not obey', async () => {
  const stop = 'import os, signal\nprint("ready", flush=True)\nwhile True: os.kill(os.getpid(), signal.SIGSTOP)';
  const hearing = await ready(stop);
  const deaf = await ready(`import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n${stop}`);

  await hearing.cancel({ graceMs: 60_000 });
  await deaf.cancel({ graceMs: 200 });

  expect((await hearing.end()).result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 143 });
  expect((await deaf.end()).result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
});

test('a program that kills its parent takes only itself along', async () => {
  const neighbour = await ready('import time\nprint("ready", flush=True)\ntime.sleep(600)');

  const { result } = await session.run({
    language: 'python',
    code: 'import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)',
  });

  expect(result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect((await neighbour.snapshot()).state).toBe('running');
  await neighbour.cancel({ graceMs: 0 });
});

test('code without a name shows its own lines, and nothing runs what lies in its directory', async () => {
  const workingDirectory = node.directory();
  writeFileSync(join(workingDirectory, 'main.py'), 'print("foreign")\n'.repeat(20));
  writeFileSync(join(workingDirectory, 'beside.py'), 'word = "beside"');
  const code = `
import beside, multiprocessing, threading
print(beside.word, '__file__' in globals())
for method in 'spawn', 'forkserver':
    child = multiprocessing.get_context(method).Process(target=print, args=(method,))
    child.start()
    child.join()
    print(child.exitcode)
def fail():
    return 1 / 0
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()`;

  const ended = await session.run({ language: 'python', code, workingDirectory });

  expect(ended.stdout).toBe('beside False\nspawn\n0\nforkserver\n0\n');
  expect(ended.stderr).toContain('    return 1 / 0\n');
  expect(ended.stderr).not.toContain('foreign');
  expect(ended.result).toMatchObject({ exitCode: 1 });
});
