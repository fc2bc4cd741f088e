import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Harness } from './javascript-harness.ts';

const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

test('a handler for SIGTERM may clean up and choose the exit code', async () => {
  const code = `process.on('SIGTERM', async (name, number) => {
      console.log(name, number); await new Promise((resolve) => setTimeout(resolve, 5)); console.log('clean'); process.exit(3);
    });
    setInterval(() => {}, 1000); console.log('ready')`;
  const running = shared.start(code);
  await running.printed('ready');

  running.guest.signal('SIGTERM');

  expect(await running.result).toMatchObject({ exitCode: 3, out: 'ready\nSIGTERM 15\nclean\n' });
});

test.each([
  ['SIGTERM', 143],
  ['SIGINT', 130],
  ['SIGHUP', 129],
  ['SIGUSR1', 138],
] as const)('%s without a handler ends a busy loop with %i', async (name, exitCode) => {
  const running = shared.start('console.log("ready"); for (;;);');
  await running.printed('ready');

  running.guest.signal(name);

  expect(await running.result).toMatchObject({ exitCode, signal: name });
});

test('a handler that was removed, or has run once, counts no more', async () => {
  for (const code of [
    'const f = () => {}; process.on("SIGTERM", f); process.off("SIGTERM", f);',
    'process.once("SIGTERM", () => {}); process.removeAllListeners();',
    'process.once("SIGTERM", () => {}); process.emit("SIGTERM");',
    'process.addListener("SIGINT", () => {});',
  ]) {
    const running = shared.start(`${code} console.log("ready"); setInterval(() => {}, 1000)`);
    await running.printed('ready');

    running.guest.signal('SIGTERM');

    expect(await running.result, code).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
  }
});

test('signals that do nothing by default do nothing', async () => {
  const running = shared.start(
    'process.on("SIGTERM", () => process.exit(0)); setInterval(() => {}, 1000); console.log("ready")',
  );
  await running.printed('ready');

  for (const name of ['SIGCHLD', 'SIGWINCH', 'SIGURG', 'SIGCONT', 'SIGSTOP', 'SIGTSTP'] as const)
    running.guest.signal(name);
  running.guest.signal('SIGTERM');

  expect(await running.result).toMatchObject({ exitCode: 0 });
});

test('a signal before the program began ends it', async () => {
  const running = shared.start('setInterval(() => {}, 1000)');

  running.guest.signal('SIGTERM');

  expect(await running.result).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
});

test.each([
  ['a busy loop', 'for (;;);'],
  ['a wait', 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);'],
  ['a catastrophic regular expression', '/^(a+)+$/.test("a".repeat(40) + "b");'],
  ['a flood of promises', '(function again() { Promise.resolve().then(again) })();'],
  ['a handler that never returns', 'process.on("exit", () => { for (;;); }); process.exit();'],
])('%s can be killed', async (_name, code) => {
  const running = shared.start(`console.log("ready"); ${code}`);
  await running.printed('ready');

  running.guest.kill();

  expect(await running.result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  running.guest.kill();
  running.guest.signal('SIGTERM');
});

test('a program that signals itself hits only itself', async () => {
  const bystander = shared.start(
    'process.on("SIGTERM", () => process.exit(0)); setInterval(() => {}, 1000); console.log("ready")',
  );
  await bystander.printed('ready');

  expect(await shared.run('process.kill(process.pid, "SIGTERM"); console.log("not reached")')).toMatchObject({
    exitCode: 143,
    signal: 'SIGTERM',
    out: '',
  });
  expect(await shared.run('process.kill(0, "SIGINT"); for (;;);')).toMatchObject({ exitCode: 130, signal: 'SIGINT' });
  expect(await shared.run('process.kill(-process.pid, 9)')).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect(await shared.run('process.abort()')).toMatchObject({ exitCode: 134, signal: 'SIGABRT' });
  expect(
    await shared.run(
      'console.log(process.kill(process.pid, 0)); process.on("SIGUSR2", () => console.log("heard")); process.kill(process.pid, "SIGUSR2")',
    ),
  ).toMatchObject({ exitCode: 0, out: 'true\nheard\n' });
  expect((await shared.run('try { process.kill(-1, "SIGTERM") } catch (e) { console.log(e.code) }')).out).toBe(
    'EPERM\n',
  );

  bystander.guest.signal('SIGTERM');
  expect(await bystander.result).toMatchObject({ exitCode: 0 });
});

test('the processes of a program end with it, and those below them', async () => {
  const code = `const child = require('child_process').spawn('sh', ['-c', 'sleep 1000 & echo $! > pids; echo $$ >> pids; echo ready; wait'], { stdio: 'inherit' });`;
  const running = shared.start(code);
  await running.printed('ready');

  running.guest.kill();
  await running.result;

  const pids = readFileSync(join(running.cwd, 'pids'), 'utf8').trim().split('\n');
  expect(pids).toHaveLength(2);
  for (const pid of pids) {
    const stat = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : ') Z';
    expect(stat).toContain(') Z');
  }
});

test('a program that breaks the globals is still heard and still ends', async () => {
  const code = `process.on('SIGTERM', () => { require('fs').writeSync(1, 'heard'); process.exit(2) });
    Array.prototype.includes = null; Promise.prototype.then = null; Atomics.store = null;
    require('fs').writeSync(1, 'ready'); setInterval(() => {}, 1000);`;
  const running = shared.start(code);
  await running.printed('ready');

  running.guest.signal('SIGTERM');

  expect(await running.result).toMatchObject({ exitCode: 2, out: 'readyheard', err: '' });
});
