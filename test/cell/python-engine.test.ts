import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, expect, test } from 'vitest';
import { isAlive } from '../../src/processes.ts';
import { eventually } from '../support/eventually.ts';
import { soonest } from '../support/in-time.ts';
import { childrenOf } from '../support/processes.ts';
import { DAEMON, Host, MB, OPTIONS, parentOf, requestIn } from './python-harness.ts';

/** What a program needs to find others. */
const PATHS = { PATH: process.env.PATH ?? '/usr/bin:/bin' };
const host = new Host();
const start = host.start.bind(host);

afterAll(() => host[Symbol.asyncDispose]());

test('a running program outlives the zygote, and the next start has a new one', async () => {
  await using own = new Host();
  const run = own.start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")');
  const zygote = parentOf(parentOf(await run.started));
  await eventually('the start', () => run.stdout() === 'ready\n');

  process.kill(zygote, 'SIGKILL');
  const many = Array.from({ length: 10 }, () => own.start('print("next")'));

  expect((await Promise.all(many.map((next) => next.exited))).map((exit) => exit.exitCode)).toEqual(Array(10).fill(0));
  expect(run.isOver()).toBe(false);
  await run.guest.write(Buffer.alloc(0), true);
  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\n');
  expect(isAlive(zygote)).toBe(false);
});

test('who is not root has the next zygote too, where one is killed as more is started', async () => {
  const imported = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
  const code = `
    import { readFileSync } from 'node:fs';
    import { Host, parentOf } from ${imported('./python-harness.ts')};
    await using own = new Host();
    const run = own.start('import sys; sys.stdin.read()');
    const zygote = parentOf(parentOf(await run.started));
    const memory = () => readFileSync('/proc/' + zygote + '/statm', 'latin1');
    process.kill(zygote, 'SIGKILL');
    // It ends, and its exit has not been told yet.
    while (!memory().startsWith('0 '));
    const next = Array.from({ length: 10 }, () => own.start(''));
    console.log(JSON.stringify((await Promise.all(next.map(({ exited }) => exited))).map(({ exitCode }) => exitCode)));`;
  const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};

  const run = promisify(execFile)(process.execPath, ['--input-type=module', '-e', code], { ...user, env: PATHS });

  expect(JSON.parse((await run).stdout)).toEqual(Array(10).fill(0));
});

test('a program can neither hold up what comes after it by stopping the zygote, nor by stopping what waits for its start', async () => {
  await using stopped = new Host();
  await using spoiled = new Host();
  const sleep = 'import time; time.sleep(1000)';
  const zygote = parentOf(parentOf(await stopped.start(sleep).started));
  const shepherd = parentOf(await spoiled.start(sleep).started);
  const spares = () =>
    childrenOf(parentOf(shepherd))
      .filter((pid) => pid !== shepherd)
      .flatMap(childrenOf);
  await eventually('two spare guests', () => spares().length === 2);

  process.kill(zygote, 'SIGSTOP');
  for (const spare of spares()) process.kill(spare, 'SIGSTOP');
  const many = Array.from({ length: 5 }, () => stopped.start('print("next")'));
  const victim = spoiled.start('print("next")');

  expect(await victim.exited).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('10 s') });
  expect((await Promise.all(many.map((next) => next.exited))).map((exit) => exit.exitCode)).toEqual(Array(5).fill(0));
  await Promise.all([stopped.engine.close(), spoiled.engine.close()]);
}, 120_000);

test('a running program outlives all of the process group that the zygote leads', async () => {
  await using own = new Host();
  const run = own.start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")');
  const zygote = parentOf(parentOf(await run.started));
  await eventually('the start', () => run.stdout() === 'ready\n');

  process.kill(-zygote, 'SIGKILL');
  await eventually('the end of the zygote', () => !isAlive(zygote));

  await run.guest.write(Buffer.alloc(0), true);
  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\n');
});

test('a program that kills its shepherd dies with all it started', async () => {
  const run = start(
    `${DAEMON}\nimport ctypes\nctypes.CDLL(None).prctl(1, 0)\nos.kill(os.getppid(), 9)\ntime.sleep(1000)`,
  );
  const pid = await run.started;

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });

  const daemon = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));
  expect([isAlive(pid), isAlive(daemon)]).toEqual([false, false]);
});

test('the end of a program that killed its shepherd is told as soon as all it started is gone, not before', async () => {
  // It holds no stream of the program, and what it has takes a while to free.
  const code = `
import os, time
if os.fork() == 0:
    os.setsid()
    os.close(1), os.close(2)
    kept = b'x' * (300 << 20)
    with open('daemon.tmp', 'w') as file: file.write(str(os.getpid()))
    os.rename('daemon.tmp', 'daemon')
    time.sleep(1000)
while not os.path.exists('daemon'): time.sleep(0.001)
print('ready')
time.sleep(1000)`;
  // After a second it would be told without the zygote's word.
  const tookMs = await soonest(1_000, 5, async () => {
    const run = start(code);
    const shepherd = parentOf(await run.started);
    await eventually('the daemon', () => run.stdout() === 'ready\n');
    const pid = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));

    const killedAtMs = performance.now();
    process.kill(shepherd, 'SIGKILL');
    await run.exited;

    expect(isAlive(pid)).toBe(false);
    return performance.now() - killedAtMs;
  });

  expect(tookMs).toBeLessThan(1_000);
});

test('a program that kills its shepherd after the zygote, or stops its shepherd, ends', async () => {
  await using own = new Host();
  const stopped = own.start('import os, time\nos.kill(os.getppid(), 19)\nprint("ready")\ntime.sleep(1000)');
  await eventually('the stop', () => stopped.stdout() === 'ready\n');
  stopped.guest.kill();
  expect(await stopped.exited).toMatchObject({ exitCode: 137 });

  const code = `
import os, time
zygote = open('/proc/%d/stat' % os.getppid()).read().rpartition(')')[2].split()[1]
os.kill(int(zygote), 9)
os.kill(os.getppid(), 9)
time.sleep(1000)`;
  const orphan = own.start(code);

  expect(await orphan.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test("a program that kills its shepherd's word in the bud, or drowns it, ends as it ended", async () => {
  const code = (harm: string) => `
import os, sys
report = os.open('/proc/%d/fd/3' % os.getppid(), os.O_WRONLY)
${harm}
sys.exit(3)`;
  const flood = (text: string) => code(`for _ in range(1000): os.write(report, ${text} * (65536 // len(${text})))`);
  const before = process.cpuUsage();

  const runs = [code(`os.write(report, b'{"exited": ')`), flood("b'x'"), flood("b'1\\n'")].map((each) => start(each));
  const exits = await Promise.all(runs.map((run) => run.exited));

  expect(exits.map((exit) => exit.exitCode)).toEqual([3, 3, 3]);
  const { user, system } = process.cpuUsage(before);
  expect((user + system) / 1_000_000).toBeLessThan(8);
});

test('a spare guest that was killed is not handed out', async () => {
  await using own = new Host();
  const shepherd = parentOf(await own.start('import time; time.sleep(1000)').started);
  const zygote = parentOf(shepherd);
  const spares = () =>
    childrenOf(zygote)
      .filter((pid) => pid !== shepherd)
      .flatMap(childrenOf);
  await eventually('two spare guests', () => spares().length === 2);

  const killed = spares();
  for (const pid of killed) process.kill(pid, 'SIGKILL');
  await eventually('two others', () => spares().filter((pid) => !killed.includes(pid)).length === 2);

  expect(await own.start('pass').exited).toMatchObject({ exitCode: 0 });
});

test('a guest that was killed before it started, unseen, is told as a failed start', async () => {
  await using own = new Host();
  const shepherd = parentOf(await own.start('import time; time.sleep(1000)').started);
  const zygote = parentOf(shepherd);
  const shepherds = () => childrenOf(zygote).filter((pid) => pid !== shepherd);
  await eventually('two spare guests', () => shepherds().flatMap(childrenOf).length === 2);
  process.kill(zygote, 'SIGSTOP');
  for (const pid of shepherds().flatMap(childrenOf)) process.kill(pid, 'SIGKILL');
  await eventually('the end of both', () => !shepherds().some(isAlive));

  const exit = await own.start('pass').exited;

  expect(exit).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('before it started') });
});

/** An engine in a process of its own, which runs `code` and, once that has started, `onStarted` with its `pid`. */
async function startEngine(code: string, onStarted = '') {
  const dir = mkdtempSync(join(host.root, 'engine-'));
  const request = requestIn(dir, 'e', code);
  const script = `
    import { readFileSync, writeSync } from 'node:fs';
    import { PythonEngine } from ${JSON.stringify(new URL('../../src/cell/python-engine.ts', import.meta.url).href)};
    const engine = new PythonEngine(${JSON.stringify(OPTIONS)});
    const request = JSON.parse(readFileSync(${JSON.stringify(join(dir, 'request'))}));
    const parentOf = (pid) => Number(readFileSync('/proc/' + pid + '/stat', 'latin1').split(') ').at(-1).split(' ')[1]);
    const started = ({ pid }) => {
      writeSync(1, String(pid));
      ${onStarted}
    };
    engine.start(request, { started, exited() {} });`;
  writeFileSync(join(dir, 'request'), JSON.stringify(request));
  const engine = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const guest = Number(await new Promise((resolve) => engine.stdout.once('data', (data) => resolve(String(data)))));
  const shepherd = parentOf(guest);
  return {
    engine,
    dir,
    guest,
    shepherd,
    zygote: parentOf(shepherd),
    stdout: () => readFileSync(join(dir, 'out', 'stdout'), 'utf8'),
  };
}

test('nothing is left when the process of the engine is killed', async () => {
  const { engine, dir, guest, shepherd, zygote, stdout } = await startEngine(`${DAEMON}\ntime.sleep(1000)`);
  await eventually('the daemon', () => stdout() === 'ready\n');
  const daemon = Number(readFileSync(join(dir, 'work', 'daemon'), 'utf8'));
  const all = [guest, daemon, shepherd, zygote, ...childrenOf(zygote)];
  expect(all.map(isAlive)).toEqual(all.map(() => true));

  engine.kill('SIGKILL');

  await eventually('the end of all', () => !all.some(isAlive));
});

test('nothing is left when the process of the engine is killed after a program has stopped its shepherd', async () => {
  const { engine, guest, shepherd, zygote, stdout } = await startEngine(
    'import os, time\nos.kill(os.getppid(), 19)\nprint("ready")\ntime.sleep(1000)',
  );
  await eventually('the stop', () => stdout() === 'ready\n');

  engine.kill('SIGKILL');

  await eventually('the end of all', () => ![guest, shepherd, zygote].some(isAlive));
});

test('a program ends with its shepherd even when nobody is left who could kill it', async () => {
  const { engine, guest, shepherd, zygote, stdout } = await startEngine(
    'import time\nprint("ready")\ntime.sleep(1000)',
  );
  await eventually('the start', () => stdout() === 'ready\n');

  // Stopped first, so that none of them does anything about the end of another.
  for (const pid of [shepherd, zygote]) process.kill(pid, 'SIGSTOP');
  for (const pid of [engine.pid as number, zygote, shepherd]) process.kill(pid, 'SIGKILL');

  await eventually('the end of the program', () => !isAlive(guest));
});

test('code of which the end never came, because the engine was killed, is not run', async () => {
  const { dir, guest, shepherd, zygote } = await startEngine(
    `open('ran', 'w').close()\n#${'x'.repeat(64 * MB)}`,
    // Those who would kill it must not be quicker than it is.
    `for (const parent of [parentOf(pid), parentOf(parentOf(pid))]) process.kill(parent, 'SIGSTOP');
    process.kill(process.pid, 'SIGKILL');`,
  );

  await eventually('the end of the program', () => !isAlive(guest));
  process.kill(zygote, 'SIGCONT');
  await eventually('the end of all', () => ![shepherd, zygote].some(isAlive));

  expect(existsSync(join(dir, 'work', 'ran'))).toBe(false);
});

test('an engine that is to be warm has programs forked before the first is started', async () => {
  await using own = new Host();
  const before = childrenOf(process.pid);

  own.engine.keepWarm(2);
  const spares = () => {
    const zygote = childrenOf(process.pid).find((pid) => !before.includes(pid));
    // A `python3` that is a script, which looks for the real one first, has children too.
    const isPython = zygote !== undefined && readlinkSync(`/proc/${zygote}/exe`).includes('python');
    return isPython ? childrenOf(zygote).flatMap(childrenOf) : [];
  };
  await eventually('two spare guests', () => spares().length === 2);
  const warm = spares();
  const run = own.start('pass');

  expect(warm).toContain(await run.started);
});

test('close ends every program and the zygote', async () => {
  await using own = new Host();
  const runs = Array.from({ length: 3 }, () => own.start('import time; time.sleep(1000)'));
  const pids = await Promise.all(runs.map((run) => run.started));
  const zygote = parentOf(parentOf(pids[0] as number));

  await own.engine.close();

  expect([...pids, zygote].map(isAlive)).toEqual([false, false, false, false]);
  expect(await own.start('pass').exited).toMatchObject({ cause: 'start_failed' });
});

test('a directory that vanished is told as a failed start', async () => {
  const run = start('print(1)', { cwd: '/nowhere/at/all' });

  const exit = await run.exited;

  expect(exit).toMatchObject({ cause: 'start_failed' });
  expect(exit.message).toContain('/nowhere/at/all');
});

test('an interpreter that is missing, too old or broken is named with what to do', async () => {
  const old = join(host.root, 'old-python');
  writeFileSync(old, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  for (const python of ['python-that-is-nowhere', old]) {
    await using own = new Host({ python });
    const runs = [own.start('pass'), own.start('pass')];

    for (const run of runs) {
      const exit = await run.exited;
      expect(exit).toMatchObject({ cause: 'start_failed' });
      expect(exit.message).toContain(`"${python}"`);
      expect(exit.message).toContain('Python 3.9');
    }
  }
});
