import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
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

test('TypeScript may use enums, namespaces, parameter properties and type imports', async () => {
  const code = `import type { Foo } from './nowhere.ts';
    enum Color { Red = 3 }
    namespace Space { export const size: number = 4 }
    interface Named { name: string }
    class Person implements Named { constructor(public name: string) {} }
    const foo: Foo | undefined = undefined;
    console.log(Color.Red, Color[3], Space.size, new Person('Ada').name, foo)`;

  const { out, err, exitCode } = await shared.run(code, { language: 'typescript' });

  expect({ out, err, exitCode }).toEqual({ out: '3 Red 4 Ada undefined\n', err: '', exitCode: 0 });
});

test('a TypeScript file that is imported may use enums', async () => {
  const mainPath = join(shared.root, 'levels.ts');
  writeFileSync(join(shared.root, 'level.ts'), 'export enum Level { Low, High }');

  const result = await shared.run('import { Level } from "./level.ts"; console.log(Level.High)', {
    language: 'typescript',
    mainPath,
  });

  expect(result).toMatchObject({ out: '1\n', err: '', exitCode: 0 });
});

test('TypeScript that does not parse fails with the place on stderr', async () => {
  const { exitCode, cause, err, events } = await shared.run('const a: number = ;', { language: 'typescript' });

  expect({ exitCode, cause, events }).toEqual({ exitCode: 1, cause: undefined, events: ['started', 'exited'] });
  expect(err).toContain('const a: number = ;');
  expect(err).toContain('main.ts');
});

test('a program gets its arguments and exactly its environment, and so do its children', async () => {
  const code = `console.log(JSON.stringify([process.argv.slice(1), process.execArgv, process.env]));
    console.log(require('child_process').execFileSync('/usr/bin/env').toString())`;
  const running = shared.start(code, { args: ['a', '--b'], env: { GREETING: 'hi there', EMPTY: '' } });

  const { out } = await running.result;

  const [first = '', ...children] = out.trim().split('\n');
  expect(JSON.parse(first)).toEqual([
    [join(running.directory, 'main.js'), 'a', '--b'],
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

test('a syntax error names the line', async () => {
  const { err, exitCode } = await shared.run('const fine = 1;\nconst = 2;');

  expect(exitCode).toBe(1);
  expect(err).toMatch(/main\.js:2\nconst = 2;\n {6}\^/);
});

test('stack traces of TypeScript name the lines the user wrote', async () => {
  const code = `interface A {
  a: string;
}

enum B { X }
try { throw new Error('caught') } catch (error) { console.log((error as Error).stack) }
function fail(b: B): never {
  throw new Error('uncaught ' + b)
}
fail(B.X)`;

  const { out, err } = await shared.run(code, { language: 'typescript' });

  expect(out).toMatch(/main\.ts:6:13/);
  expect(err).toMatch(/at fail \(.*main\.ts:8:9\)/);
  expect(err).toMatch(/main\.ts:10:1/);
  expect(err).toContain(`main.ts:8\n  throw new Error('uncaught ' + b)\n        ^`);
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

test('what was printed before a kill is in the file', async () => {
  const running = shared.start(
    'for (let i = 0; i < 20000; i++) console.log("line", i); require("fs").writeSync(2, "done"); for (;;);',
  );
  await running.printed('line 19999\n');

  running.guest.kill();

  const { out, exitCode, signal } = await running.result;
  expect({ exitCode, signal }).toEqual({ exitCode: 137, signal: 'SIGKILL' });
  expect(out.trimEnd().split('\n')).toHaveLength(20_000);
});

test('every way to print goes to the same two files, in order', async () => {
  const code = `const fs = require('fs');
    console.log(1); fs.writeSync(1, '2\\n'); process.stdout.write('3\\n'); fs.writeFileSync('/dev/stdout', '4\\n');
    fs.appendFileSync('/dev/stdout', '5\\n'); fs.writeFileSync(1, '6\\n'); new console.Console(process.stdout).log(7);
    require('child_process').execSync('echo 8; echo e2 >&2', { stdio: 'inherit' });
    console.error('e3'); console.table([[9]]); fs.writevSync(1, [Buffer.from('1'), Buffer.from('0\\n')]);
    fs.createWriteStream('/dev/stdout').end('11\\n', () => fs.write(1, '12\\n', () => {
      require('child_process').spawn('sh', ['-c', 'echo 13; echo e4 >&2'], { stdio: ['ignore', process.stdout, 2] });
    }));
    console.log(process.stdout.isTTY, process.stdout.fd, process.stderr.fd);`;

  const { out, err } = await shared.run(code);

  expect(out.replace(/┌.*┘\n/s, 'TABLE\n')).toBe('1\n2\n3\n4\n5\n6\n7\n8\nTABLE\n10\nundefined 1 2\n11\n12\n13\n');
  expect(err).toBe('e2\ne3\ne4\n');
});

test('marks tell in which order the two streams were written', async () => {
  const running = shared.start('console.log("a"); console.error("b"); console.log("c")');
  await running.result;

  const marks = new Float64Array(Uint8Array.from(readFileSync(join(running.directory, 'out/marks'))).buffer);

  expect([marks[1], marks[4], marks[7]]).toEqual([1, 2, 1]);
  expect([marks[2], marks[5], marks[8]]).toEqual([0, 0, 2]);
});

test('output that cannot be written is an error of the program', async () => {
  const outputDir = join(shared.root, 'full');
  mkdirSync(outputDir);
  symlinkSync('/dev/full', join(outputDir, 'stdout'));

  const unheard = await shared.run('console.log("lost"); setTimeout(() => {}, 100000)', { outputDir });
  const heard = await shared.run('process.stdout.on("error", (e) => console.error(e.code)); console.log("lost")', {
    outputDir,
  });
  const thrown = await shared.run('try { require("fs").writeSync(1, "lost") } catch (e) { console.error(e.code) }', {
    outputDir,
  });

  expect(unheard).toMatchObject({ exitCode: 1, err: expect.stringContaining('ENOSPC') });
  expect(heard).toMatchObject({ exitCode: 0, err: expect.stringMatching(/ENOSPC\n$/) });
  expect(thrown).toMatchObject({ exitCode: 0, err: expect.stringMatching(/ENOSPC\n$/) });
});

test('standard input that was not asked for is at its end', async () => {
  expect((await shared.run('process.stdin.on("end", () => console.log("end")).resume()')).out).toBe('end\n');
  expect((await shared.run('console.log(JSON.stringify(require("fs").readFileSync(0, "utf8")))')).out).toBe('""\n');
});

test('standard input comes line by line, and only holds the program while it reads', async () => {
  const code = `const lines = require('readline').createInterface({ input: process.stdin });
    lines.on('line', (line) => { console.log('got ' + line); if (line === 'stop') lines.close(); })`;
  const running = shared.start(code, { stdin: true });

  await running.guest.write(Buffer.from('one\ntw'), false);
  await running.guest.write(Buffer.from('o\nstop\n'), false);

  expect(await running.result).toMatchObject({ out: 'got one\ngot two\ngot stop\n', exitCode: 0 });
  await running.guest.write(Buffer.from('late'), true);
});

test('standard input can be read to its end, asynchronously and synchronously', async () => {
  const programs = [
    'let all = ""; for await (const part of process.stdin) all += part; console.log(all.length); export {}',
    'console.log(require("fs").readFileSync(0, "utf8").length)',
    'console.log(require("fs").readFileSync("/dev/stdin").length)',
  ];
  for (const code of programs) {
    const running = shared.start(code, { stdin: true });
    await running.guest.write(Buffer.alloc(100_000, 'x'), false);
    await running.guest.write(Buffer.alloc(23, 'y'), true);

    expect((await running.result).out, code).toBe('100023\n');
  }
});

test('a write waits once the program has more than a pipe holds, and is released by its end', async () => {
  const running = shared.start('process.on("SIGTERM", () => process.exit(0)); setInterval(() => {}, 1000)', {
    stdin: true,
  });
  await running.guest.write(Buffer.alloc(1000), false);
  let resolved = false;
  const second = running.guest.write(Buffer.alloc(200_000), false).then(() => {
    resolved = true;
  });
  await running.started;
  running.guest.signal('SIGTERM');

  await running.result;
  await second;

  expect(resolved).toBe(true);
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

test('a thread of the program has its directory and its streams', async () => {
  const code = `const { Worker } = require('worker_threads');
    new Worker('const fs = require("fs"); fs.writeSync(1, [process.cwd(), fs.existsSync("here"), require("worker_threads").isMainThread, process.execArgv.length].join() + "\\\\n")', { eval: true });
    require('fs').writeFileSync('here', '')`;

  const running = shared.start(code);

  expect((await running.result).out).toBe(`${running.cwd},true,false,0\n`);
});

test('a program that takes more heap than it may is told apart', async () => {
  await using harness = new Harness({ resourceLimits: { maxOldGenerationSizeMb: 32 } });

  const { exitCode, cause } = await harness.run(
    'const all = []; setInterval(() => { for (let i = 0; i < 20000; i++) all.push({ i, s: [i] }) }, 0)',
  );

  expect({ exitCode, cause }).toEqual({ exitCode: 137, cause: 'heap_limit' });
});

test('an allocating loop can be ended with the flags a cell runs with, and only with them', () => {
  const engineUrl = new URL('../../dist/src/cell/javascript-engine.js', import.meta.url).href;
  const directory = mkdtempSync(join(tmpdir(), 'javascript-loop-'));
  const script = `import { JavaScriptEngine } from '${engineUrl}';
    const directory = '${directory}';
    const engine = new JavaScriptEngine({ workerUrl: '${WORKER}' });
    const request = { executionKey: 'k', language: 'javascript', code: 'for(;;)new Array(1000).fill(1.5)', args: [], env: {}, cwd: directory,
      mainPath: directory + '/main.js', writeMain: true, tmpDir: directory, outputDir: directory, stdin: false };
    const guest = engine.start(request, {
      // The loop has to be compiled by the optimizing compiler to be endless.
      started() { setTimeout(() => { guest.kill(); setTimeout(() => { console.log('alive'); process.kill(process.pid, 'SIGKILL') }, 2000) }, 500) },
      exited({ exitCode }) { console.log(exitCode); process.exit() },
    });`;
  const run = (flags: string[]) =>
    spawnSync(process.execPath, [...flags, '--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: 20_000,
    }).stdout.trim();

  expect(run(['--no-turboshaft-loop-unrolling', '--no-experimental-ffi'])).toBe('137');
  // When this fails, V8 has mended it and the flag can go.
  expect(run([])).toBe('alive');
}, 30_000);

test('a worker file that cannot load is a failed start, not a loop', async () => {
  await using harness = new Harness({ workerUrl: '/nowhere/worker.js' });
  harness.engine.keepWarm(4);

  const { cause, exitCode, events } = await harness.run('0');

  expect({ cause, exitCode, events }).toEqual({ cause: 'start_failed', exitCode: 1, events: ['exited'] });
});

test('close ends what runs', async () => {
  const harness = new Harness();
  const running = harness.start('for (;;);');
  await running.started;

  await harness.engine.close();

  expect(await running.result).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect(harness.engine.threads.live).toBe(0);
});
