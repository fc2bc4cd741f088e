import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, onTestFinished, test } from 'vitest';
import { ProcessEngine } from '../../src/cell/process-engine.ts';
import { isAlive } from '../../src/processes.ts';
import { eventually } from '../support/eventually.ts';
import { MAY_REUSE_IDS, runWithOwnIds } from '../support/own-ids.ts';
import { processesWith } from '../support/processes.ts';
import { MAY_TRACE, trace } from '../support/tracer.ts';
import { EngineHarness } from './javascript-harness.ts';

const programPath = fileURLToPath(new URL('../../dist/workers/process.cjs', import.meta.url));
const shared = new EngineHarness(new ProcessEngine({ programPath }));
afterAll(() => shared[Symbol.asyncDispose]());

const LIMITS = { memoryBytes: 32 * 2 ** 20 };
const GROWS = 'const held = []; for (;;) held.push(new Array(1e4).fill(1.5));';
const AT_HEAP_LIMIT = { exitCode: 137, signal: 'SIGKILL', cause: 'heap_limit' };

test('a process that V8 ends at its heap limit has reached its memory limit', async () => {
  expect(await shared.run(GROWS, { limits: LIMITS })).toMatchObject(AT_HEAP_LIMIT);
});

test('a process at its heap limit has reached its memory limit, in whichever of its files V8 says so', async () => {
  const files = { stdout: join(shared.root, 'stdout'), stderr: join(shared.root, 'stderr') };
  const outputFiles = { ...files, maxFiles: 2, maxFileBytes: 1024n };
  const code = `for (let line = 0; line < 600; line += 1) console.error('nine char'); ${GROWS}`;

  expect(await shared.run(code, { outputFiles, limits: LIMITS })).toMatchObject(AT_HEAP_LIMIT);
});

test('a process at its heap limit has reached its memory limit, also when what V8 says of it is cut off', async () => {
  const limits = { ...LIMITS, outputBytes: 100 };
  const running = shared.start(`console.error('x'.repeat(200)); ${GROWS}`, { limits });
  let ended = false;
  void running.result.then(() => {
    ended = true;
  });
  // As whoever watches its limits does.
  while (!ended) {
    await running.guest.usage();
    await new Promise(setImmediate);
  }

  const { err, ...exit } = await running.result;

  expect(exit).toMatchObject(AT_HEAP_LIMIT);
  expect(err).toBe('x'.repeat(100));
});

test('a process that speaks of a full heap and aborts is ended by its own signal', async () => {
  const code = `console.error('FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory'); process.abort()`;

  const { exitCode, signal, cause } = await shared.run(code);

  expect({ exitCode, signal, cause }).toEqual({ exitCode: 134, signal: 'SIGABRT', cause: undefined });
});

test('TypeScript nested too deep for its parser ends the process that it is for, and nobody else', async () => {
  const neighbour = shared.start("console.log('ready'); setInterval(() => {}, 1000)");
  await neighbour.printed('ready');
  const nested = `${'('.repeat(20_000)}1${')'.repeat(20_000)}`;

  const { exitCode, signal, err, events } = await shared.run(nested, { language: 'typescript' });

  expect({ exitCode, signal, events }).toEqual({ exitCode: 1, signal: undefined, events: ['started', 'exited'] });
  expect(err).toMatch(/main\.ts: .*nested too deep/);
  expect((await neighbour.guest.usage()).processes).toBe(1);
  neighbour.guest.kill();
  await neighbour.result;
});

test('TypeScript that does not parse says where', async () => {
  const { exitCode, err, events } = await shared.run('let a: = 1;', { language: 'typescript' });

  expect({ exitCode, events }).toEqual({ exitCode: 1, events: ['started', 'exited'] });
  expect(err).toContain('main.ts:1');
});

test('TypeScript runs, and its errors name its own lines', async () => {
  const { exitCode, out, err } = await shared.run(
    'enum A { B = 7 }\n\nconsole.log(A.B as number);\nthrow new Error(`x`);',
    {
      language: 'typescript',
    },
  );

  expect({ exitCode, out }).toEqual({ exitCode: 1, out: '7\n' });
  expect(err).toContain('main.ts:4');
});

test('what a process says last is heard, however often it has said something else', async () => {
  const seconds = `60${Math.floor(Math.random() * 1e9)}`;
  const code = `
    const used = () => Object.values(process.cpuUsage()).reduce((sum, micros) => sum + micros / 1e6, 0);
    const begun = used();
    while (used() < begun + 0.3);
    require('node:fs').writeSync(3, (JSON.stringify({ type: 'child', pid: 0 }) + '\\n').repeat(6_000));
    const options = { detached: true, stdio: 'ignore' };
    require('node:child_process').spawn('sleep', ['${seconds}'], options).once('spawn', () => process.exit());`;

  const { exitCode, usage } = await shared.run(code, { env: { PATH: process.env.PATH as string } });

  expect(exitCode).toBe(0);
  expect(processesWith(`sleep ${seconds}`)).toEqual([]);
  expect((usage?.userSeconds ?? 0) + (usage?.systemSeconds ?? 0)).toBeGreaterThanOrEqual(0.3);
});

/** Runs a command, and has the orphans of all below it, as `systemd --user` and the managers of some containers do. */
const SUBREAPER = `
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
sys.exit(subprocess.call(sys.argv[1:]))`;

const imported = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);

/** Attaches to a process, and then keeps it from ending for as long as this one lives. */
const HOLDER = `
import ctypes, sys, time
PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 0x4206, 0x40
ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, ctypes.c_void_p(PTRACE_O_TRACEEXIT))
print('attached', flush=True)
time.sleep(600)`;

test('a child of which a process tells last is gone with it, whoever has its orphans', async () => {
  const seconds = `60${Math.floor(Math.random() * 1e9)}`;
  const code = `
    while (!require('node:fs').existsSync('go'));
    require('node:child_process').spawn('sleep', ['${seconds}'], { detached: true, stdio: 'ignore' }).unref();
    process.exit();`;
  const host = `
    import { writeFileSync } from 'node:fs';
    import { EngineHarness } from ${imported('./javascript-harness.ts')};
    import { ProcessEngine } from ${imported('../../src/cell/process-engine.ts')};
    import { zombiesOf } from ${imported('../../src/processes.ts')};
    await using harness = new EngineHarness(new ProcessEngine(${JSON.stringify({ programPath })}));
    const { cwd, started, result } = harness.start(${JSON.stringify(code)}, { env: { PATH: process.env.PATH } });
    await started;
    writeFileSync(cwd + '/go', '');
    // It hears nothing more until the process has ended.
    while (zombiesOf(process.pid) === 0);
    process.exitCode = (await result).exitCode;`;
  const command = [process.execPath, '--input-type=module', '-e', host];

  const reaper = spawn('python3', ['-c', SUBREAPER, 'sh', '-c', '"$@"; exit $?', 'sh', ...command], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const [exitCode] = await once(reaper, 'exit');

  const left = processesWith(`sleep ${seconds}`);
  for (const pid of left) process.kill(pid, 'SIGKILL');
  expect({ exitCode, left }).toEqual({ exitCode: 0, left: [] });
});

test.for<[string, string]>([
  ['while it runs', "tell({ type: 'output', bits: 0, dropped: 7 }); setInterval(() => {}, 1000);"],
  ['and ends, beside one that it cannot have started', 'child(process.ppid); process.exit();'],
])('a process that tells of another program’s orphan as its child does not take it along: %s', async ([, then]) => {
  const code = `
    const { existsSync, readFileSync, writeSync } = require('node:fs');
    const tell = (message) => writeSync(3, JSON.stringify(message) + '\\n');
    const child = (pid) => tell({ type: 'child', pid });
    while (!existsSync('orphan')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    child(Number(readFileSync('orphan')));
    ${then}`;
  const { cwd, guest, started, result } = shared.start(code);
  await started;
  const orphan = execFileSync('sh', ['-c', 'sleep 600 > /dev/null 2>&1 & echo $!'], { encoding: 'utf8' });
  const pid = Number(orphan);
  onTestFinished(() => void process.kill(pid, 'SIGKILL'));

  writeFileSync(join(cwd, 'part'), orphan);
  renameSync(join(cwd, 'part'), join(cwd, 'orphan'));
  if (then.includes('dropped')) {
    while ((await guest.usage()).droppedBytes === 0) await new Promise(setImmediate);
    guest.kill();
  }
  await result;

  expect(isAlive(pid)).toBe(true);
});

if (!MAY_REUSE_IDS)
  console.info('left out, as only root may have process ids of its own: the id of a process that ended');

test.skipIf(!MAY_REUSE_IDS)('whoever is given the id of a process while its children end is left alone', () => {
  const code = `const { pid } = require('child_process').spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
    console.log(process.pid, pid, 'ready'); setInterval(() => {}, 1000);`;

  const isThere = runWithOwnIds(`
    const { EngineHarness } = await import(${imported('./javascript-harness.ts')});
    const { ProcessEngine } = await import(${imported('../../src/cell/process-engine.ts')});
    await using harness = new EngineHarness(new ProcessEngine(${JSON.stringify({ programPath })}));
    const running = harness.start(${JSON.stringify(code)}, { env: { PATH: process.env.PATH } });
    await running.printed('ready');
    const [pid, child] = running.out().split(' ').map(Number);
    const began = startTimeOf(pid);
    const holder = spawn('python3', ['-ISc', ${JSON.stringify(HOLDER)}, child]);
    await once(holder.stdout, 'data');
    running.guest.kill();
    await running.gone;
    // What there was of its session has been looked for with this one.
    await killSessionUntilGone(sleep().pid);
    const other = await sleepAs(pid, began);
    holder.kill('SIGKILL');
    await running.result;
    console.log(isAlive(other.pid));`);

  expect(isThere).toBe('true\n');
});

test.skipIf(!MAY_TRACE)('a process that somebody else traces is over when it was killed', async () => {
  const running = shared.start("console.log(process.pid, 'ready'); setInterval(() => {}, 1000)");
  await running.printed('ready');
  await using _tracer = await trace(Number.parseInt(running.out(), 10));

  running.guest.kill();

  expect(await running.result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test.skipIf(!MAY_TRACE)(
  'a process that ends by itself while somebody else traces it has its own exit code',
  async () => {
    const running = shared.start(
      "console.log(process.pid, 'ready'); process.stdin.once('end', () => process.exit(7)).resume()",
      {
        stdin: true,
      },
    );
    await running.printed('ready');
    const pid = Number.parseInt(running.out(), 10);
    await using _tracer = await trace(pid);
    await running.guest.write(new Uint8Array(), true);
    await eventually('it has ended', () => !isAlive(pid));

    running.guest.kill();

    expect(await running.result).toMatchObject({ exitCode: 7 });
  },
);
