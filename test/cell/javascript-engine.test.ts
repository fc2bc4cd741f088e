import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { CELL_FLAGS } from '../../src/cell-flags.ts';
import { openDescriptors } from '../support/daemon.ts';
import { Harness, WORKER } from './javascript-harness.ts';

const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

test('a CommonJS program runs as the main module and its thread ends with it', async () => {
  const { out, err, exitCode, events } = await shared.run(
    'console.log("hello", require.main === module, __filename.endsWith("/main.js"))',
  );

  expect({ out, err, exitCode, events }).toEqual({
    out: 'hello true true\n',
    err: '',
    exitCode: 0,
    events: ['started', 'exited'],
  });
});

test('a module program may await at its top level', async () => {
  const { out, exitCode } = await shared.run(
    'import { sep } from "node:path"; console.log(await Promise.resolve(sep), import.meta.main)',
  );

  expect({ out, exitCode }).toEqual({ out: '/ true\n', exitCode: 0 });
});

test('a program gets its arguments and exactly its environment, and so do its children', async () => {
  const code = `console.log(JSON.stringify([process.argv, process.execArgv, process.env]));
    console.log(require('child_process').execFileSync('/usr/bin/env').toString())`;
  const running = shared.start(code, { args: ['a', '--b'], env: { GREETING: 'hi there', EMPTY: '' } });

  const { out } = await running.result;

  const [first = '', ...children] = out.trim().split('\n');
  expect(JSON.parse(first)).toEqual([
    [process.execPath, join(running.directory, 'main.js'), 'a', '--b'],
    [],
    { GREETING: 'hi there', EMPTY: '' },
  ]);
  expect(children.sort()).toEqual(['EMPTY=', 'GREETING=hi there']);
});

test.each([
  ['process.exitCode = 5', 5],
  ['process.exit(3)', 3],
  ['setTimeout(() => Promise.resolve().then(() => process.exit(4)), 1); setInterval(() => {}, 1000)', 4],
  ['process.on("exit", () => { process.exitCode = 9 })', 9],
  ['process.reallyExit(6)', 6],
  ['process.exit(-1)', 255],
  ['await new Promise(() => {}); export {}', 13],
  ['throw new Error("x")', 1],
  ['Promise.reject(new Error("x"))', 1],
  ['throw null', 1],
  ['process.on("uncaughtException", () => { throw new Error("again") }); throw new Error("x")', 7],
  ['const server = require("net").createServer().listen(0, () => server.close())', 0],
])('%s ends with exit code %i', async (code, exitCode) => {
  expect((await shared.run(code)).exitCode).toBe(exitCode);
});

test('an uncaught error is written once, with its line, its cause and its properties', async () => {
  const code = `// first line
function outer() { throw Object.assign(new TypeError('broken', { cause: new Error('root') }), { detail: 42 }) }
setImmediate(() => outer())`;

  const running = shared.start(code);
  const { err, exitCode } = await running.result;

  const main = join(running.directory, 'main.js');
  expect(exitCode).toBe(1);
  expect(err).toContain(`${main}:2\nfunction outer() {`);
  expect(err).toContain(`at outer (${main}:2:`);
  expect(err).toContain('detail: 42');
  expect(err).toContain('[cause]: Error: root');
  expect(err.match(/TypeError: broken/g)).toHaveLength(1);
  expect(err).not.toMatch(/piscina|workers\/javascript/);
});

test('an unhandled rejection is written as an uncaught error is', async () => {
  const running = shared.start('\nasync function fail() { throw new RangeError("why") }\nfail();');
  const { err, exitCode } = await running.result;

  expect(exitCode).toBe(1);
  expect(err).toMatch(/main\.js:2\nasync function fail\(\)/);
  expect(err).toContain(`at fail (${join(running.directory, 'main.js')}:2:`);
  expect(err.match(/RangeError: why/g)).toHaveLength(1);
});

test('the stack of an uncaught error shows nothing of what stands in for the functions of Node', async () => {
  const running = shared.start('\nrequire("fs").readFileSync("nowhere")');
  const { err } = await running.result;

  expect(err).toContain('ENOENT');
  expect(err).toContain(`${join(running.directory, 'main.js')}:2:`);
  expect(err).not.toContain('dist/workers');
});

test('an error whose event the program swallows is written all the same', async () => {
  const { err, exitCode } = await shared.run(
    'process.emit = () => false; setImmediate(() => { throw new Error("x") })',
  );

  expect(exitCode).toBe(1);
  expect(err.match(/Error: x\n +at .*main\.js:1:/g)).toHaveLength(1);
});

test('a syntax error names the line', async () => {
  const { err, exitCode } = await shared.run('const fine = 1;\nconst = 2;');

  expect(exitCode).toBe(1);
  expect(err).toMatch(/main\.js:2\nconst = 2;\n {6}\^/);
});

test.each([
  ['process.on("uncaughtException", (error) => console.log("got", error.message)); throw new Error("e")'],
  ['process.on("unhandledRejection", (error) => console.log("got", error.message)); Promise.reject(new Error("e"))'],
  [
    'process.setUncaughtExceptionCaptureCallback((error) => console.log("got", error.message)); setImmediate(() => { throw new Error("e") })',
  ],
])("%s is the program's own business", async (code) => {
  expect(await shared.run(code)).toMatchObject({ out: 'got e\n', err: '', exitCode: 0 });
});

test("code that lies nowhere is served at its path, with that path's neighbours", async () => {
  const running = shared.start('', {});
  await running.result;
  const mainPath = join(running.directory, 'project/app.js');
  mkdirSync(join(running.directory, 'project'));
  // Whatever lies above has nothing to say.
  writeFileSync(join(running.directory, 'project/package.json'), '{}');
  writeFileSync(join(running.directory, 'project/side.js'), 'exports.side = "beside"');

  const commonjs = await shared.run('console.log(require("./side.js").side, __filename, require.main === module)', {
    mainPath,
    writeMain: false,
  });
  const esm = await shared.run('import { side } from "./side.js"; console.log(side, import.meta.filename, await 1)', {
    mainPath,
    writeMain: false,
  });
  const failed = await shared.run('\nnull.x', { mainPath, writeMain: false });

  expect(commonjs.out).toBe(`beside ${mainPath} true\n`);
  expect(esm.out).toBe(`beside ${mainPath} 1\n`);
  expect(failed.err).toContain(`${mainPath}:2\nnull.x\n     ^`);
});

test("code at a user's path is a module where the nearest package.json says so", async () => {
  const running = shared.start('');
  await running.result;
  writeFileSync(join(running.directory, 'package.json'), '{"type":"module"}');
  const mainPath = join(running.directory, 'app.js');

  expect((await shared.run('console.log(typeof require)', { mainPath, writeMain: false })).out).toBe('undefined\n');
  expect(
    (await shared.run('console.log(typeof require)', { mainPath: `${mainPath.slice(0, -3)}.cjs`, writeMain: false }))
      .out,
  ).toBe('function\n');
  // A private file is nobody's package.
  expect((await shared.run('console.log(typeof require)', { mainPath, writeMain: true })).out).toBe('function\n');
});

test('a program sees itself as a main thread', async () => {
  const code = `import { isMainThread, parentPort, workerData } from 'node:worker_threads';
    console.log(isMainThread, parentPort, workerData, process.listenerCount('uncaughtException'))`;

  expect((await shared.run(code)).out).toBe('true null null 0\n');
});

test('what a program calls itself, and its file mode mask, concern no other', async () => {
  const before = [process.title, process.umask()];

  const { out } = await shared.run('process.title = "mine"; process.umask(0o71); console.log(process.title)');

  expect(out).toBe('mine\n');
  expect([process.title, process.umask()]).toEqual(before);
});

test('a thread of the program has its directory and its streams', async () => {
  const code = `const { Worker } = require('worker_threads');
    new Worker('const fs = require("fs"); fs.writeSync(1, [process.cwd(), fs.existsSync("here"), require("worker_threads").isMainThread, process.execArgv.length].join() + "\\\\n")', { eval: true });
    require('fs').writeFileSync('here', '')`;

  const running = shared.start(code);

  expect((await running.result).out).toBe(`${running.cwd},true,false,0\n`);
});

test('a program that takes more heap than it may is told apart', async () => {
  await using harness = new Harness({ heapLimitMb: 32 });

  const { exitCode, cause } = await harness.run(
    'const all = []; setInterval(() => { for (let i = 0; i < 20000; i++) all.push({ i, s: [i] }) }, 0)',
  );

  expect({ exitCode, cause }).toEqual({ exitCode: 137, cause: 'heap_limit' });
});

test('an allocating loop can be ended with the flags a cell runs with, and only with them', () => {
  const engineUrl = new URL('../../dist/src/cell/javascript-engine.js', import.meta.url).href;
  const directory = mkdtempSync(join(tmpdir(), 'javascript-loop-'));
  const script = (runsMs: number, limitMs: number) => `import { JavaScriptEngine } from '${engineUrl}';
    const directory = '${directory}';
    const engine = new JavaScriptEngine({ workerUrl: '${WORKER}' });
    const request = { executionKey: 'k', language: 'javascript', code: 'for(;;)new Array(1000).fill(1.5)', args: [], env: {}, cwd: directory,
      mainPath: directory + '/main.js', writeMain: true, tmpDir: directory, outputDir: directory, stdin: false,
      limits: { outputKill: false }, signalTree: false };
    const guest = engine.start(request, {
      // The loop has to be compiled by the optimizing compiler to be endless.
      started() { setTimeout(() => { guest.kill(); setTimeout(() => { console.log('alive'); process.kill(process.pid, 'SIGKILL') }, ${limitMs}) }, ${runsMs}) },
      exited({ exitCode }) { console.log(exitCode); process.exit() },
    });`;
  const run = (flags: string[], runsMs: number, limitMs: number) =>
    spawnSync(process.execPath, [...flags, '--input-type=module', '-e', script(runsMs, limitMs)], {
      encoding: 'utf8',
      timeout: 60_000,
    }).stdout.trim();

  expect(run(CELL_FLAGS, 500, 30_000)).toBe('137');
  // When this fails, V8 has mended it and the flag can go.
  expect([500, 2_000, 8_000].some((runsMs) => run([], runsMs, 2_000) === 'alive')).toBe(true);
}, 240_000);

test('a worker file that cannot load is a failed start, not a loop', async () => {
  await using harness = new Harness({ workerUrl: '/nowhere/worker.js' });
  harness.engine.keepWarm(4);

  const { cause, exitCode, events } = await harness.run('0');

  expect({ cause, exitCode, events }).toEqual({ cause: 'start_failed', exitCode: 1, events: ['exited'] });
});

/** A worker file in `directory` that runs `first` the first time a thread loads it, and the real worker from then on. */
function unreliableWorker(directory: string, first: string): string {
  const workerUrl = join(directory, 'worker.cjs');
  const done = JSON.stringify(join(directory, 'loaded'));
  writeFileSync(
    workerUrl,
    `const fs = require('fs'); if (!fs.existsSync(${done})) { fs.writeFileSync(${done}, ''); ${first} }
    module.exports = require(${JSON.stringify(WORKER)})`,
  );
  return workerUrl;
}

test('a thread that fails before the program begins is replaced, and its input is not lost', async () => {
  const workerUrl = unreliableWorker(mkdtempSync(join(shared.root, 'w-')), 'process.exit(3);');
  await using harness = new Harness({ workerUrl });
  const running = harness.start('console.log(require("fs").readFileSync(0, "utf8"))', { stdin: true });

  await running.guest.write(Buffer.from('kept'), true);

  expect(await running.result).toMatchObject({ out: 'kept\n', exitCode: 0, events: ['started', 'exited'] });
});

test('a thread that hangs before the program begins is given up', async () => {
  const workerUrl = unreliableWorker(
    mkdtempSync(join(shared.root, 'w-')),
    'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)',
  );
  await using harness = new Harness({ workerUrl });
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });

  const running = harness.start('0');
  vi.advanceTimersByTime(60_000);
  vi.useRealTimers();

  expect(await running.result).toMatchObject({
    cause: 'start_failed',
    message: 'the thread did not start within 60000 ms',
    events: ['exited'],
  });
});

test('what an execution had open is closed when it is over', async () => {
  await using harness = new Harness();
  await harness.run('0');
  const before = openDescriptors();

  for (let count = 0; count < 10; count += 1) await harness.run('console.log(1)');

  expect(openDescriptors().length).toBeLessThan(before.length + 10);
});

test('close ends what runs', async () => {
  const harness = new Harness();
  const running = harness.start('for (;;);');
  await running.started;

  await harness.engine.close();

  expect(harness.engine.threads.live).toBe(0);
  expect(await running.result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});
