import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, onTestFinished, test } from 'vitest';
import type { Guest } from '../../src/cell/engine.ts';
import { readKernelFile, statFields } from '../../src/proc-file.ts';
import { eventually, isAlive, processesWith } from '../support/daemon.ts';
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

test.each(['on', 'once', 'addListener', 'prependListener', 'prependOnceListener'])(
  'a handler that was added with %s is heard',
  async (method) => {
    const running = shared.start(
      `process.${method}("SIGTERM", () => process.exit(3)); setInterval(() => {}, 1000); console.log("ready")`,
    );
    await running.printed('ready');

    running.guest.signal('SIGTERM');

    expect((await running.result).exitCode).toBe(3);
  },
);

test('a handler runs in the asynchronous context of the first', async () => {
  const code = `const { AsyncLocalStorage } = require('node:async_hooks');
    const storage = new AsyncLocalStorage();
    storage.run(7, () => process.on('SIGTERM', () => { console.log(storage.getStore()); process.exit() }));
    setInterval(() => {}, 1000); console.log('ready')`;
  const running = shared.start(code);
  await running.printed('ready');

  running.guest.signal('SIGTERM');

  expect(await running.result).toMatchObject({ exitCode: 0, out: 'ready\n7\n' });
});

test.each(['SIGKILL', 'SIGSTOP'])('nobody hears %s, and who wants to is told so', async (name) => {
  const code = `try { process.on('${name}', () => {}) } catch ({ message, code, errno, syscall }) {
    console.log(message, code, errno, syscall, process.listenerCount('${name}')) }`;
  const node = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });

  expect(await shared.run(code)).toMatchObject({ out: node.stdout, exitCode: 0 });
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

  for (const name of ['SIGCHLD', 'SIGPIPE', 'SIGXFSZ', 'SIGWINCH', 'SIGURG', 'SIGCONT', 'SIGSTOP', 'SIGTSTP'] as const)
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

test.each([
  ['a signal', (guest: Guest) => guest.signal('SIGTERM')],
  ['force', (guest: Guest) => guest.kill()],
])('%s that comes while what a program has left behind is ended does not change how it ended', async (_, stop) => {
  const running = shared.start(
    `require('child_process').spawn('sleep', ['1000'], { stdio: 'inherit' }); process.exit(0)`,
  );
  await running.gone;
  expect(running.guest.notify('SIGTERM')).toBe(false);

  stop(running.guest);

  const { exitCode, signal, events } = await running.result;
  expect({ exitCode, signal, events }).toEqual({ exitCode: 0, signal: undefined, events: ['started', 'exited'] });
});

/** Whether the kernel ends that thread (PF_EXITING), or has: whoever waits for it hears a moment before it is not to be seen. */
function isExiting(directory: string): boolean {
  const stat = readKernelFile(join(directory, 'stat'));
  return stat === undefined || (Number(statFields(stat)[6]) & 4) !== 0;
}

test('the end is told when the thread is gone, not when it was told to end', async () => {
  const running = shared.start(`const fs = require('fs'); fs.writeSync(1, fs.readlinkSync('/proc/thread-self') + ';');
    require('crypto').pbkdf2Sync('a', 'b', 2e6, 64, 'sha512');`);
  await running.printed(';');
  const thread = join('/proc', running.out().slice(0, -1));
  expect(isExiting(thread)).toBe(false);

  running.guest.kill();
  await running.result;

  expect(isExiting(thread)).toBe(true);
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

/** Runs `program` with a thread that it has started and that runs `code` once it is told. */
const withThread = (code: string, program: string) => `const { Worker } = require('worker_threads');
  const worker = new Worker(${JSON.stringify(`require('worker_threads').parentPort.once('message', () => { ${code} })`)}, { eval: true });
  worker.on('exit', (code) => console.log('thread', code));
  ${program}`;

test.each([40, 64, 65, -1])('a program cannot send itself, and with that its neighbours, signal %d', async (number) => {
  const program = `for (const pid of [process.pid, 0, -process.pid]) {
    try { process.kill(pid, ${number}); } catch ({ message, code, syscall }) { console.log(message, code, syscall); }
  }`;

  expect((await shared.run(program)).out).toBe('kill EINVAL EINVAL kill\n'.repeat(3));
});

test.each([
  ['process.pid', 'null'],
  ['process.pid', "''"],
  ['process.pid', 'false'],
  ['process.pid', 'NaN'],
  ['process.pid', "['SIGINT']"],
  ['process.pid', '1.5'],
  ['process.pid', '2 ** 32 + 9'],
  ['process.pid', "'9'"],
  ['process.pid', "'toString'"],
  ['process.pid', "'SIGPIPE'"],
  ['process.pid', "'SIGXFSZ'"],
  ['String(process.pid)', '0'],
  ['1.5', '9'],
  ['null', '9'],
  ["'none'", '9'],
])('process.kill(%s, %s) does to a program what it does under node', async (pid, signal) => {
  const code = `try { console.log(process.kill(${pid}, ${signal})); } catch ({ code, message }) { console.log(code, message); }`;
  const node = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });
  const exitCode = node.status ?? 128 + constants.signals[node.signal as NodeJS.Signals];

  const { signal: endedBy = null, ...result } = await shared.run(code);

  expect({ ...result, endedBy }).toMatchObject({ out: node.stdout, exitCode, endedBy: node.signal });
});

// With signals that do nothing to others, should they get there.
test('a program that names its process, its group or all processes in text hits only itself', async () => {
  const code = `const alive = setInterval(() => {}, 1000);
    const ids = [String(process.pid), String(-process.pid), '0', '', [0]];
    function next() {
      if (ids.length > 0) process.kill(ids.shift(), 'SIGURG');
      else console.log('heard'), clearInterval(alive);
    }
    process.on('SIGURG', next);
    next();
    try { process.kill('-1', 0) } catch ({ code }) { console.log(code) }`;

  expect((await shared.run(code)).out).toBe('EPERM\nheard\n');
});

test('a signal that a thread of a program sends to its process is heard by the program', async () => {
  const code = withThread(
    `console.log(process.kill(process.pid, 'SIGTERM'), process.kill(0, 'SIGUSR2'), process.kill(process.pid, 'SIGCHLD'));`,
    `const heard = [];
    const alive = setInterval(() => {}, 1000);
    for (const name of ['SIGTERM', 'SIGUSR2']) process.on(name, (...args) => {
      if (heard.push(args.join(' ')) < 2) return;
      console.log(heard.sort().join(', '));
      clearInterval(alive);
    });
    worker.postMessage('');`,
  );

  const { exitCode, signal, out } = await shared.run(code);

  expect(exitCode).toBe(0);
  expect(signal).toBe(undefined);
  expect(out.trim().split('\n').sort()).toEqual(['SIGTERM 15, SIGUSR2 12', 'thread 0', 'true true true']);
});

test.each([
  ['that sleeps', 'setInterval(() => {}, 1000);', 'SIGTERM', 143],
  ['that is busy', 'for (;;);', 'SIGINT', 130],
  ['that waits', `Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);`, 'SIGKILL', 137],
] as const)('a signal that a thread sends to its process ends a program %s', async (_, program, signal, exitCode) => {
  const code = withThread(
    `process.kill(process.pid, '${signal}'); require('fs').writeSync(1, 'not reached');`,
    `worker.postMessage(''); ${program}`,
  );

  expect(await shared.run(code)).toMatchObject({ exitCode, signal, out: '' });
});

test('a thread of a program may not abort it', async () => {
  const code = withThread(
    'try { process.abort() } catch (error) { console.log(error.code) }',
    `worker.postMessage('')`,
  );

  expect(await shared.run(code)).toMatchObject({
    exitCode: 0,
    out: 'ERR_WORKER_UNSUPPORTED_OPERATION\nthread 0\n',
  });
});

test('a program may signal its children', async () => {
  const code = `const child = require('child_process').spawn('sleep', ['1000']);
    console.log(process.kill(child.pid, 'SIGTERM')); child.on('exit', (code, signal) => console.log(code, signal))`;

  expect(await shared.run(code)).toMatchObject({ exitCode: 0, out: 'true\nnull SIGTERM\n' });
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

test.each([
  ['the program itself', ''],
  [
    'a thread of it',
    'if (require("worker_threads").isMainThread) new (require("worker_threads").Worker)(__filename); else',
  ],
])('a child of %s ends with a program that exits, fails or is killed', async (_, where) => {
  for (const end of ['process.exit()', 'throw new Error("x")', '0']) {
    const running = shared.start(`${where} {
        const child = require('child_process').spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' });
        child.on('spawn', () => require('fs').writeSync(1, 'child ' + child.pid + ';'));
      }
      process.on('SIGUSR2', () => { ${end} }); setInterval(() => {}, 1000);`);
    await running.printed(';');

    running.guest.signal('SIGUSR2');
    if (end === '0') running.guest.kill();
    await running.result;

    expect(isAlive(Number(running.out().slice('child '.length, -1))), end).toBe(false);
  }
});

/** Makes children as fast as it can, and says so once it has one. */
const makesChildren = (seconds: string) => `const make = () =>
    require('child_process').spawn('sleep', ['${seconds}'], { stdio: 'ignore' });
  make();
  console.log('ready');
  require('worker_threads').parentPort?.postMessage('ready');
  for (;;) make();`;

test.each([
  ['a program', (code: string) => code],
  [
    'two threads of a program',
    (code: string) => `const { Worker } = require('worker_threads');
      for (let count = 0; count < 2; count += 1) new Worker(${JSON.stringify(code)}, { eval: true });`,
  ],
])('a child that %s just makes when that is killed is gone with it', async (_, programOf) => {
  for (let round = 0; round < 10; round += 1) {
    const seconds = `60${Math.floor(Math.random() * 1e9)}`;
    const running = shared.start(programOf(makesChildren(seconds)));
    await running.printed('ready');

    running.guest.kill();
    await running.result;

    expect(processesWith(`sleep ${seconds}`)).toEqual([]);
  }
});

test("a child that a thread just makes when its program ends it is gone with the program, and nobody else's is", async () => {
  // Its thread is gone as well.
  const thread = `const { pid } = require('child_process').spawn('sleep', ['1000'], { stdio: 'ignore' });
    require('fs').writeSync(1, 'child ' + pid + ';'); process.exit();`;
  const bystander = shared.start(`const { Worker } = require('worker_threads');
    new Worker(${JSON.stringify(thread)}, { eval: true }).on('exit', () => console.log('ready'));
    setInterval(() => {}, 1e6);`);
  await bystander.printed('ready');
  const other = Number(/child (\d+);/.exec(bystander.out())?.[1]);

  for (let round = 0; round < 5; round += 1) {
    const seconds = `60${Math.floor(Math.random() * 1e9)}`;
    const { exitCode } = await shared.run(`const { once } = require('events');
      const { Worker } = require('worker_threads');
      const workers = Array.from({ length: 4 }, () =>
        new Worker(${JSON.stringify(makesChildren(seconds))}, { eval: true }));
      Promise.all(workers.map((worker) => once(worker, 'message')))
        .then(() => Promise.all(workers.map((worker) => worker.terminate())))
        .then(() => process.exit(3));`);

    expect(exitCode).toBe(3);
    expect(processesWith(`sleep ${seconds}`)).toEqual([]);
  }
  expect(isAlive(other)).toBe(true);
  bystander.guest.kill();
  await bystander.result;
  expect(isAlive(other)).toBe(false);
});

test('what a program takes for a child, and is none of its process, neither counts nor ends with it', async () => {
  // The first thread of a cell has no children itself: nor has this process.
  const other = Number(execFileSync('sh', ['-c', 'sleep 1000 > /dev/null 2>&1 & echo $!']));
  onTestFinished(() => void (isAlive(other) && process.kill(other, 'SIGKILL')));
  // As one has it that has ended, and whose id was given to another process before its thread hears of that.
  const running = shared.start(`const child = new (require('child_process').ChildProcess)();
    Object.defineProperty(child, 'pid', { get: () => ${other}, set() {} });
    child.spawn({ file: 'sleep', args: ['sleep', '1000'], stdio: 'ignore' });
    console.log('ready')`);
  await running.printed('ready');

  const { processes } = await running.guest.usage();
  running.guest.signal('SIGTERM', true);
  await running.result;

  expect({ processes, isThere: isAlive(other) }).toEqual({ processes: 1, isThere: true });
});

test('the end is told when the children are gone, not when they were killed', async () => {
  // Much memory takes the kernel some time to free.
  const running =
    shared.start(`const command = "(head -c 300000000 /dev/zero; echo ready; sleep 1000) | sh -c 'echo $$ > pid; exec tail -c 300000000 > /dev/null'";
    require('child_process').spawn('sh', ['-c', command.replace('echo ready', 'echo ready > told')]);
    const look = setInterval(() => { if (require('fs').existsSync('told')) { console.log('ready'); clearInterval(look) } }, 1);`);
  await running.printed('ready');
  const pid = Number(readFileSync(join(running.cwd, 'pid'), 'utf8'));
  expect(isAlive(pid)).toBe(true);

  running.guest.kill();
  await running.result;

  expect(isAlive(pid)).toBe(false);
});

test.each([
  ['whose thread waits for a child', '', 'execFileSync(...sleep)', 1],
  ['that waits for children, as a thread of it does', 'wait();', 'for (;;) try { execFileSync(...sleep) } catch {}', 2],
])('a program %s is ended, and the children with it', async (_, own, wait, children) => {
  // Whether a thread makes another child before it is ended is a matter of luck.
  for (let round = 0; round < 5; round += 1) {
    const seconds = `60${Math.floor(Math.random() * 1e9)}`;
    const running = shared.start(`const { execFileSync } = require('child_process');
      const { isMainThread, Worker } = require('worker_threads');
      const sleep = ['sleep', ['${seconds}']];
      function wait() { ${wait} }
      if (isMainThread) new Worker(__filename).on('online', () => { ${own} }); else wait();`);
    await eventually('the children run', () => processesWith(`sleep ${seconds}`).length === children);

    running.guest.kill();

    expect(await running.result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
    expect(processesWith(`sleep ${seconds}`)).toEqual([]);
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
