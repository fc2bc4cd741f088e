import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { ProcessEngine } from '../../src/cell/process-engine.ts';
import { EngineHarness, Harness } from './javascript-harness.ts';

// What a program finds of Node is what it would find under `node FILE`, whatever it runs in.

const programPath = fileURLToPath(new URL('../../dist/workers/process.cjs', import.meta.url));
const threads = new Harness();
const processes = new EngineHarness(new ProcessEngine({ programPath }));
afterAll(async () => {
  await threads[Symbol.asyncDispose]();
  await processes[Symbol.asyncDispose]();
});

/** What Node keeps from every thread but the first. */
const NOT_IN_THREADS = /^process\._(?:debug|start|stop)/;

test.each([
  ['thread', threads],
  ['process', processes],
])('each module of Node exports to a %s what it exports to any program', async (_, harness) => {
  // No cell has the first, no thread of Node the other.
  const code = `import { builtinModules } from 'node:module';
    const names = builtinModules.filter((name) => name !== 'node:ffi' && name !== 'trace_events');
    const exports = [['process', Object.keys(process)]];
    for (const name of names) exports.push([name, Object.keys(await import(name))]);
    console.log(JSON.stringify(exports.flatMap(([name, keys]) => keys.map((key) => name + '.' + key))));`;
  const file = join(harness.root, 'exports.mjs');
  writeFileSync(file, code);
  const node = spawnSync(process.execPath, [file], { encoding: 'utf8' });

  const { out } = await harness.run(code);

  const found = new Set(JSON.parse(out));
  const missing = JSON.parse(node.stdout).filter((name: string) => !found.has(name) && !NOT_IN_THREADS.test(name));
  expect(missing).toEqual([]);
});

test.each([
  ['thread', threads],
  ['process', processes],
])('what a %s imports of the process is its own', async (_, harness) => {
  const code = `import { chdir, cwd, stdin, stdout } from 'node:process';
    const before = cwd();
    chdir('/');
    stdout.write([before, cwd(), stdin === process.stdin].join())`;
  const running = harness.start(code);

  expect(await running.result).toMatchObject({ out: `${running.cwd},/,true`, err: '', exitCode: 0 });
});

/** Tells which paths `fs` gives back for relative ones. */
const MAKES = `const fs = require('node:fs');
  const seen = [];
  const filter = (source, destination) => seen.push(source + ' ' + destination.replace(process.cwd(), 'CWD')) > 0 && !/^(?:\\.\\/)?src\\/test/.test(source);
  const told = { seen };
  (async () => {
    fs.mkdirSync('src/test', { recursive: true });
    fs.mkdirSync('in');
    for (const name of ['src/kept', 'src/test/left']) fs.writeFileSync(name, '');
    fs.cpSync('src', 'one', { recursive: true, filter });
    await fs.promises.cp('./src', '../made/two', { recursive: true, filter: async (...paths) => filter(...paths) });
    await new Promise((resolve, reject) =>
      fs.cp('in/../src', process.cwd() + '/three', { recursive: true, filter }, (error) => error ? reject(error) : resolve()));
    process.chdir('in');
    fs.cpSync('../src', '.', { recursive: true, filter });
    process.chdir('..');
    seen.sort();
    told.copied = fs.readdirSync('.', { recursive: true }).sort();
    told.made = [
      fs.mkdirSync('a/b', { recursive: true }),
      fs.mkdirSync('a/b', { recursive: true }),
      await fs.promises.mkdir('./c/d', { recursive: true }),
      await new Promise((resolve) => fs.mkdir('../made/e/f', { recursive: true }, (_, path) => resolve(path))),
      fs.mkdirSync(process.cwd() + '/g', { recursive: true }),
      fs.mkdirSync(Buffer.from('h/i'), { recursive: true, encoding: 'hex' }),
    ].map((path) => path?.replace(process.cwd(), 'CWD'));
    told.temporary = [
      fs.mkdtempSync('m-'),
      await fs.promises.mkdtemp('./m-'),
      await new Promise((resolve) => fs.mkdtemp('../made/m-', (_, path) => resolve(path))),
      String(fs.mkdtempSync(Buffer.from('m-'), 'buffer')),
      fs.mkdtempSync(Buffer.from('m-')),
      String(await fs.promises.mkdtemp('m-', { encoding: 'buffer' })),
      Buffer.from(fs.mkdtempSync('m-', 'hex'), 'hex').toString(),
      Buffer.from(fs.mkdtempSync('m-', 'base64url'), 'base64url').toString(),
      fs.mkdtempDisposableSync('m-').path,
      (await fs.promises.mkdtempDisposable('./m-')).path,
    ].map((path) => path.slice(0, -6));
    const disposable = fs.mkdtempDisposableSync('m-');
    process.chdir('in');
    disposable.remove();
    process.chdir('..');
    told.removed = !fs.existsSync(disposable.path);
    REST
    console.log(JSON.stringify(told));
  })()`;

/** And those that a thread has with its directory before them. */
const TELLS = `
  told.parents = fs.readdirSync('src', { withFileTypes: true }).map(({ parentPath }) => parentPath);
  told.globbed = fs.globSync('src/*', { withFileTypes: true }).map(({ parentPath }) => parentPath.replace(process.cwd(), 'CWD'));
  const directory = fs.opendirSync('src');
  told.directory = directory.path;
  directory.closeSync();
  try { fs.renameSync('nowhere', 'there') } catch ({ message, path, dest }) { told.error = { message, path, dest } }`;

test.each([
  ['thread', threads, ''],
  ['process', processes, TELLS],
])('relative paths that a %s gives to `fs` come back as they were given', async (name, harness, rest) => {
  const [cwd, plain] = ['', '-plain'].map((ending) => join(harness.root, `${name}${ending}`, 'made')) as [
    string,
    string,
  ];
  for (const directory of [cwd, plain]) mkdirSync(directory, { recursive: true });
  const code = MAKES.replace('REST', rest);
  const node = spawnSync(process.execPath, ['-e', code], { cwd: plain, encoding: 'utf8' });

  const { out, err } = await harness.run(code, { cwd });

  expect([node.stderr, err]).toEqual(['', '']);
  expect(JSON.parse(out)).toEqual(JSON.parse(node.stdout));
});

test.each([
  ['thread', threads],
  ['process', processes],
])("the home directory of a %s is its environment's, else the user's", async (_, harness) => {
  const code = "console.log(require('node:os').homedir())";

  for (const env of [{ HOME: '/tmp/hh' }, { HOME: '' }, {}]) {
    const node = spawnSync(process.execPath, ['-e', code], { env, encoding: 'utf8' });
    expect(await harness.run(code, { env })).toMatchObject({ out: node.stdout, err: node.stderr });
  }
});

test('programs meet the threads they have started by locks and channels of a name, and no other program', async () => {
  const code = `import { isMainThread, locks, threadId, Worker } from 'node:worker_threads';
    const channel = new BroadcastChannel('events');
    if (isMainThread) {
      const heard = new Promise((resolve) => { channel.onmessage = ({ data }) => resolve(data); });
      await locks.request('job', { ifAvailable: true }, async (lock) => {
        const timer = setInterval(() => {}, 1000);
        const signaled = new Promise((resolve) => process.once('SIGUSR2', resolve));
        new Worker(new URL(import.meta.url));
        const { held } = await navigator.locks.query();
        console.log(lock.name, channel.name, threadId > 0, held.map(({ name }) => name), await heard);
        await signaled;
        clearInterval(timer);
      });
    } else channel.postMessage(await locks.request('job', { ifAvailable: true }, (lock) => lock));
    channel.close();`;
  const first = threads.start(code, { extension: '.mjs' });
  await first.printed('job');

  const second = threads.start(code, { extension: '.mjs' });
  await second.printed('job');
  for (const { guest } of [first, second]) guest.signal('SIGUSR2');

  const expected = { out: "job events true [ 'job' ] null\n", err: '', exitCode: 0 };
  expect(await first.result).toMatchObject(expected);
  expect(await second.result).toMatchObject(expected);
});

test.each([
  ['thread', threads],
  ['process', processes],
])('a %s finds no modules but its own', async (_, harness) => {
  const code = `import { createRequire } from 'node:module';
    const require = createRequire(import.meta.url);
    console.log(process.mainModule, require.main, Object.keys(require.cache), require('./which.cjs'));`;
  writeFileSync(join(harness.root, 'which.cjs'), 'module.exports = [require.main, Object.keys(require.cache)]');
  const mainPath = join(harness.root, 'which.mjs');
  writeFileSync(mainPath, code);
  const node = spawnSync(process.execPath, [mainPath], { encoding: 'utf8' });

  expect(await harness.run(code, { mainPath, writeMain: false })).toMatchObject({ out: node.stdout, err: '' });
});

test.each([
  ['thread', threads],
  ['process', processes],
])('a Worker that a %s starts finds no modules but its own', async (name, harness) => {
  const code = `const { isMainThread, Worker } = require('node:worker_threads');
    if (isMainThread) new Worker(__filename);
    else console.log(process.mainModule?.filename, require.main?.filename, Object.keys(require.cache), module.parent);`;
  const mainPath = join(harness.root, `${name}-nested.cjs`);
  writeFileSync(mainPath, code);
  const node = spawnSync(process.execPath, [mainPath], { encoding: 'utf8' });

  expect(await harness.run(code, { mainPath, writeMain: false })).toMatchObject({ out: node.stdout, err: '' });
});

test.each([
  'null',
  "{ eval: true, execArgv: '--no-warnings' }",
  '{ eval: true, execArgv: 5 }',
  '{ eval: true, execArgv: {} }',
  "{ eval: true, execArgv: new Set(['--no-warnings']) }",
  "{ eval: true, execArgv: ['--nonsense'] }",
  '{ eval: true, execArgv: 0 }',
  "{ eval: true, execArgv: '' }",
  '{ eval: true, execArgv: null }',
  "Object.create({ eval: true, execArgv: ['--no-warnings'] })",
  "'text'",
  'undefined',
])('a Worker with the options %s is to a program what it is under node', async (options) => {
  const code = `const { Worker } = require('node:worker_threads');
    try { new Worker('console.log(process.execArgv.includes("--no-warnings"))', ${options}) }
    catch ({ name, code, message }) { console.log(name, code, message) }`;
  const node = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });

  for (const harness of [threads, processes])
    expect(await harness.run(code)).toMatchObject({ out: node.stdout, exitCode: node.status });
});

test.each([
  [
    'an exit',
    `process.on('exit', (code) => console.log('exit', code));
    process.emit('exit', 5);
    setTimeout(() => { console.log('later'); process.exitCode = 3; });`,
    { out: 'exit 5\nlater\nexit 3\n', err: '', exitCode: 3 },
  ],
  [
    'an uncaught exception',
    `console.log(process.emit('uncaughtException', new Error('emitted')));
    setTimeout(() => { console.log('later'); throw new RangeError('thrown'); });`,
    { out: 'false\nlater\n', err: expect.stringMatching(/^(?!.*emitted).*RangeError: thrown/s), exitCode: 1 },
  ],
])('%s that a program emits itself ends it nowhere', async (_, code, expected) => {
  expect(await threads.run(code)).toMatchObject(expected);
  expect(await processes.run(code)).toMatchObject(expected);
});

test.each([
  ['thread', 'js', threads],
  ['thread', 'ts', threads],
  ['process', 'js', processes],
] as const)('a %s finds what lies beside the file that a link leads to: %s', async (_, extension, harness) => {
  const directory = mkdtempSync(join(harness.root, 'linked-'));
  for (const name of ['bin', 'real']) mkdirSync(join(directory, name));
  const code = 'console.log(__filename, process.argv[1], require("./beside.js"))';
  const [path, mainPath] = [join(directory, 'real', `main.${extension}`), join(directory, 'bin', `tool.${extension}`)];
  writeFileSync(path, code);
  writeFileSync(join(directory, 'real/beside.js'), 'module.exports = "beside"');
  symlinkSync(path, mainPath);
  const language = extension === 'ts' ? 'typescript' : 'javascript';

  const { out, err } = await harness.run(code, { language, mainPath, writeMain: false });

  expect({ out, err }).toEqual({ out: `${path} ${mainPath} beside\n`, err: '' });
});

test.each([
  ['thread', threads],
  ['process', processes],
])('a %s that waits at its top level for what never comes says so', async (_, harness) => {
  const waits = await harness.run('console.log("here"); await new Promise(() => {})');
  const exits = await harness.run('setTimeout(() => process.exit(13)); await new Promise(() => {})');

  expect(waits).toMatchObject({
    out: 'here\n',
    err: expect.stringMatching(/^Warning: Detected unsettled top-level await/),
    exitCode: 13,
  });
  expect(exits).toMatchObject({ err: '', exitCode: 13 });
});

/** What each leaves standard output as: not ended, whatever has ended it. */
const OUTLASTS: [string, string, string][] = [
  [
    'an old-style stream that was piped there',
    `const { Stream } = require('node:stream');
    const source = new Stream();
    source.pipe(process.stdout);
    source.emit('data', 'x\\n');
    source.emit('end');
    console.log('after');
    setTimeout(() => console.log('later'), 10)`,
    'x\nafter\nlater\n',
  ],
  [
    'a pipeline',
    `import { Readable } from 'node:stream';
    import { pipeline } from 'node:stream/promises';
    await pipeline(Readable.from(['x\\n']), process.stdout);
    console.log('after')`,
    'x\nafter\n',
  ],
  [
    'its end',
    `process.stdout.on('close', () => console.log('closed', process.stdout.writable));
    process.stdout.end('end\\n');
    setTimeout(() => console.log('later'), 10)`,
    'end\nclosed true\nlater\n',
  ],
  [
    'an error that was handled',
    `process.stdout.once('error', (error) => console.log(error.message));
    process.stdout.destroy(new Error('broken'));
    setTimeout(() => console.log('later'), 10)`,
    'broken\nlater\n',
  ],
];

test.each(
  OUTLASTS.flatMap(([what, code, out]) => [
    [what, 'thread', threads, code, out] as const,
    [what, 'process', processes, code, out] as const,
  ]),
)('standard output outlasts %s in a %s, as in a file under node', async (_what, _name, harness, code, out) => {
  const file = join(harness.root, 'outlasts.js');
  const path = join(harness.root, 'outlasts.txt');
  writeFileSync(file, code);
  const fd = openSync(path, 'w');
  spawnSync(process.execPath, [file], { stdio: ['ignore', fd, fd] });
  closeSync(fd);

  expect(await harness.run(code)).toMatchObject({ out, err: '', exitCode: 0 });
  expect(readFileSync(path, 'utf8')).toBe(out);
});
