import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
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

test.each([
  ['and is nothing else', 'console.log(await Promise.resolve("awaited"))'],
  ['before it imports', 'const text = await Promise.resolve("awaited"); import { log } from "node:console"; log(text)'],
  [
    'below a line for the kernel',
    '#!/usr/bin/env node\nconsole.log(await Promise.resolve("awaited")); import "node:fs"',
  ],
])('a TypeScript program that awaits at its top level %s is a module', async (_, code) => {
  expect(await shared.run(code, { language: 'typescript' })).toMatchObject({ out: 'awaited\n', err: '', exitCode: 0 });
});

test('a TypeScript program may dispose of what it uses at its top level, whatever kind of program it is', async () => {
  const using = 'using held: Disposable = { [Symbol.dispose]: () => console.log("disposed", typeof require) };';

  const commonjs = await shared.run(using, { language: 'typescript' });
  const module = await shared.run(`${using} export {}`, { language: 'typescript' });

  expect(commonjs).toMatchObject({ out: 'disposed function\n', err: '', exitCode: 0 });
  expect(module).toMatchObject({ out: 'disposed undefined\n', err: '', exitCode: 0 });
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

test('an import that is only used as a type is none', async () => {
  writeFileSync(join(shared.root, 'shape.ts'), 'export interface Shape { size: number }');
  const code = 'import { Shape } from "./shape.ts"; const one: Shape = { size: 1 }; console.log(one.size)';

  const result = await shared.run(code, { language: 'typescript', mainPath: join(shared.root, 'shapes.ts') });

  expect(result).toMatchObject({ out: '1\n', err: '', exitCode: 0 });
});

test('an imported TypeScript file is what its extension says, else what the nearest package.json says', async () => {
  const directory = join(shared.root, 'kinds');
  mkdirSync(join(directory, 'package'), { recursive: true });
  writeFileSync(join(directory, 'package.json'), '{}');
  writeFileSync(join(directory, 'package/package.json'), '{"type":"module"}');
  const files = ['bare.ts', 'bare.mts', 'package/bare.ts', 'package/bare.cts'];
  for (const file of files) writeFileSync(join(directory, file), 'console.log(typeof require as string)');

  const { out, err } = await shared.run(files.map((file) => `require("./${file}");`).join('\n'), {
    mainPath: join(directory, 'main.js'),
  });

  expect({ out, err }).toEqual({ out: 'function\nundefined\nundefined\nfunction\n', err: '' });
});

test('TypeScript that does not parse fails with the place on stderr', async () => {
  const { exitCode, cause, err, events } = await shared.run('const a: number = ;', { language: 'typescript' });

  expect({ exitCode, cause, events }).toEqual({ exitCode: 1, cause: undefined, events: ['started', 'exited'] });
  expect(err).toContain('const a: number = ;');
  expect(err).toContain('main.ts');
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

test('a JavaScript program has the lines of the TypeScript it imports', async () => {
  const mainPath = join(shared.root, 'caller.js');
  writeFileSync(
    join(shared.root, 'thrower.ts'),
    'interface A {\n  a: string;\n}\n\nexport function fail() { throw new Error("typed") }',
  );

  const { err } = await shared.run('require("./thrower.ts").fail()', { mainPath });

  expect(err).toMatch(/fail \(.*thrower\.ts:5:32\)/);
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

test.each([
  ['require', "const { WASI } = require('node:wasi');"],
  ['import', "import { WASI } from 'node:wasi'; import fs from 'node:fs';"],
])('a WebAssembly program writes to the output of its guest, and finds its directories: %s', async (how, load) => {
  const code = `${load} ${how === 'require' ? "const fs = require('node:fs');" : ''}
    const name = (text) => [text.length, ...Buffer.from(text)];
    const section = (id, ...content) => [id, content.length, ...content];
    const body = [0,
      0x41, 0, 0x41, 8, 0x36, 2, 0, // where the text is
      0x41, 4, 0x41, 3, 0x36, 2, 0, // how long it is
      0x41, 1, 0x41, 0, 0x41, 1, 0x41, 20, 0x10, 0, 0x1a, // fd_write(1, 0, 1, 20)
      0x0b];
    const program = new Uint8Array([0, ...Buffer.from('asm'), 1, 0, 0, 0,
      ...section(1, 2, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f, 0x60, 0, 0),
      ...section(2, 1, ...name('wasi_snapshot_preview1'), ...name('fd_write'), 0, 0),
      ...section(3, 1, 1),
      ...section(5, 1, 0, 1),
      ...section(7, 2, ...name('memory'), 2, 0, ...name('_start'), 0, 1),
      ...section(10, 1, body.length, ...body),
      ...section(11, 1, 0, 0x41, 8, 0x0b, ...name('hi\\n'))]);
    fs.mkdirSync('data');
    const wasi = new WASI({ version: 'preview1', preopens: { '/data': 'data' } });
    wasi.start(new WebAssembly.Instance(new WebAssembly.Module(program), wasi.getImportObject()));
    console.log('end');`;

  expect(await shared.run(code)).toMatchObject({ exitCode: 0, out: 'hi\nend\n' });
});

test('a write of a part of a buffer writes that part', async () => {
  const code = `const fs = require('fs'); const bytes = Buffer.from('abcdef');
    const written = [fs.writeSync(1, bytes, 1, 2), fs.writeSync(1, bytes, { offset: 4 })];
    fs.write(1, bytes, 3, 1, (error, count, buffer) => console.log(error, written, count, buffer === bytes))`;

  expect((await shared.run(code)).out).toBe('bcefdnull [ 2, 2 ] 1 true\n');
});

test("descriptors 1 and 2 are the program's files for whoever asks", async () => {
  const code = `const fs = require('fs'); fs.writeSync(1, '12345');
    fs.fstat(2, (error, stats) => console.log(stats.isFile(), stats.size));
    console.log(fs.fstatSync(1).isFile(), fs.fstatSync(1).size)`;

  expect((await shared.run(code)).out).toBe('12345true 5\ntrue 0\n');
});

test('marks tell in which order the two streams were written', async () => {
  const running = shared.start('console.log("a"); console.error("b"); console.log("c")');
  await running.result;

  const marks = new Float64Array(Uint8Array.from(readFileSync(join(running.directory, 'out/marks'))).buffer);

  expect([marks[1], marks[4], marks[7]]).toEqual([1, 2, 1]);
  expect([marks[2], marks[5], marks[8]]).toEqual([0, 0, 2]);
});

test('what is written later is marked with its own time', async () => {
  const code = `console.log('a'); const first = Date.now(); while (Date.now() < first + 20);
    const second = Date.now(); console.log('b'); console.error(JSON.stringify([first, second]))`;
  const running = shared.start(code);
  const { err } = await running.result;
  const marks = new Float64Array(Uint8Array.from(readFileSync(join(running.directory, 'out/marks'))).buffer);
  const [first, second] = JSON.parse(err) as [number, number];

  expect([...marks.subarray(1, 3), ...marks.subarray(4, 6)]).toEqual([1, 0, 1, 2]);
  expect(marks[0]).toBeLessThanOrEqual(first);
  expect(marks[3]).toBeGreaterThanOrEqual(second);
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

test('a write waits once the program has more than a pipe holds, and is released when it reads', async () => {
  const code = `process.on("SIGUSR2", () => { console.log("has it"); process.stdin.once("data", () => {}) });
    setInterval(() => {}, 1000); console.log("ready")`;
  const running = shared.start(code, { stdin: true });
  await running.printed('ready');
  await running.guest.write(Buffer.alloc(1000), false);

  const second = running.guest.write(Buffer.alloc(200_000), false);
  running.guest.signal('SIGUSR2');

  await second;
  expect(running.out()).toContain('has it');
  running.guest.kill();
  await running.result;
});

test.each([
  'fs.createReadStream(null, { fd: 0 }).on("data", (data) => console.log("" + data)).on("end", () => console.log("end"))',
  'const bytes = Buffer.alloc(10); fs.read(0, bytes, 2, 3, null, (error, count) => fs.read(0, (error, more, rest) => console.log("" + bytes.subarray(2, 2 + count) + rest.subarray(0, more) + "\\nend")))',
  'const buffer = Buffer.alloc(10); fs.read(0, { buffer, offset: 2, length: 3 }, (error, count) => fs.read(0, buffer, { offset: 5 }, (error, more) => console.log("" + buffer.subarray(2, 2 + count + more) + "\\nend")))',
  'fs.promises.readFile("/dev/stdin", "utf8").then((text) => console.log(text + "\\nend"))',
  'fs.readFile("/dev/stdin", (error, bytes) => console.log(bytes + "\\nend"))',
])('standard input is read by %s', async (read) => {
  const running = shared.start(`const fs = require('fs'); ${read}`, { stdin: true });

  await running.guest.write(Buffer.from('input'), true);

  expect(await running.result).toMatchObject({ out: 'input\nend\n', err: '', exitCode: 0 });
});

test("a child that inherits standard input reads the program's", async () => {
  const running = shared.start(`require('child_process').spawn('cat', { stdio: 'inherit' })`, { stdin: true });

  await running.guest.write(Buffer.from('for '), false);
  await running.guest.write(Buffer.from('the child'), true);

  expect(await running.result).toMatchObject({ out: 'for the child', err: '', exitCode: 0 });
});

test.each([
  ['at its end', 'process.stdin.on("end", () => console.log("end")).resume()', 'end\nclose\n'],
  ['when it is destroyed', 'process.stdin.once("data", () => process.stdin.destroy())', 'close\n'],
])('standard input is closed %s', async (_, read, out) => {
  const running = shared.start(`process.stdin.on('close', () => console.log('close')); ${read}`, { stdin: true });

  await running.guest.write(Buffer.from('input'), true);

  expect(await running.result).toMatchObject({ out, err: '', exitCode: 0 });
});

test.each([
  [
    'fork',
    `if (process.send) process.once('message', () => process.disconnect());
    else {
      const child = require('child_process').fork(__filename);
      let bytes = 0;
      process.stdin.on('data', (data) => { bytes += data.length }).on('end', () => { console.log(bytes); child.send('done') });
    }`,
  ],
  [
    'cluster.fork',
    `const cluster = require('cluster');
    if (cluster.isWorker) process.once('message', () => process.disconnect());
    else {
      const child = cluster.fork();
      child.once('online', () => {
        let bytes = 0;
        process.stdin.on('data', (data) => { bytes += data.length }).on('end', () => { console.log(bytes); child.send('done') });
      });
    }`,
  ],
])('a child made by %s leaves standard input to the program', async (_, code) => {
  const running = shared.start(code, { stdin: true });

  for (let part = 0; part < 8; part += 1) await running.guest.write(Buffer.alloc(70_000), false);
  await running.guest.write(Buffer.alloc(0), true);

  expect(await running.result).toMatchObject({ out: '560000\n', err: '', exitCode: 0 });
});

test('a write that the program does not take is released by its end', async () => {
  const running = shared.start(
    'process.on("SIGTERM", () => console.log("has it")); setInterval(() => {}, 1000); console.log("ready")',
    {
      stdin: true,
    },
  );
  await running.printed('ready');
  let resolved = false;
  const write = running.guest.write(Buffer.alloc(200_000), false).then(() => {
    resolved = true;
  });

  // The signal comes after the bytes, so whatever the thread told of them is here two turns after this is printed.
  running.guest.signal('SIGTERM');
  await running.printed('has it');
  for (let turn = 0; turn < 2; turn += 1) await new Promise(setImmediate);
  const before = resolved;
  running.guest.kill();
  await write;

  expect(before).toBe(false);
  await running.result;
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
