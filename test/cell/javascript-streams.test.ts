import { mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Harness } from './javascript-harness.ts';

const shared = new Harness();
shared.engine.keepWarm(2);
afterAll(() => shared[Symbol.asyncDispose]());

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

test.each([
  ['', "process.stdin.on('data', () => {}).unref()"],
  [' in a listener', "process.stdin.on('data', () => process.stdin.unref())"],
  [' once it is read by lines', "require('readline').createInterface({ input: process.stdin }); process.stdin.unref()"],
])('standard input that a program lets go%s does not hold it', async (_, code) => {
  const running = shared.start(code, { stdin: true });

  await running.guest.write(Buffer.from('one\n'), false);

  expect(await running.result).toMatchObject({ exitCode: 0 });
});

test('standard input that a program lets go and takes again holds it', async () => {
  const running = shared.start(
    "process.stdin.on('data', (data) => console.log('got ' + data)).unref(); process.stdin.ref(); console.log('read')",
    { stdin: true },
  );
  await running.printed('read\n');

  await running.guest.write(Buffer.from('one'), true);

  expect(await running.result).toMatchObject({ out: 'read\ngot one\n', exitCode: 0 });
});

test('standard input is heard in the asynchronous context in which it was first read', async () => {
  const code = `const { AsyncLocalStorage } = require('node:async_hooks');
    const storage = new AsyncLocalStorage();
    storage.run(7, () => process.stdin.on('data', (data) => console.log(data + storage.getStore())).on('end', () => console.log(storage.getStore())))`;
  const running = shared.start(code, { stdin: true });

  await running.guest.write(Buffer.from('one'), true);

  expect(await running.result).toMatchObject({ out: 'one7\n7\n', exitCode: 0 });
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
