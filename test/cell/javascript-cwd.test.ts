import { spawnSync } from 'node:child_process';
import fs, { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { ProcessEngine } from '../../src/cell/process-engine.ts';
import { FS_PATHS, FS_WITHOUT_PATH, PROMISES_PATHS, PROMISES_WITHOUT_PATH } from '../../workers/javascript/files.ts';
import { EngineHarness, Harness } from './javascript-harness.ts';

const programPath = fileURLToPath(new URL('../../dist/workers/process.cjs', import.meta.url));
const shared = new Harness();
shared.engine.keepWarm(2);
const processes = new EngineHarness(new ProcessEngine({ programPath }));
afterAll(async () => {
  await shared[Symbol.asyncDispose]();
  await processes[Symbol.asyncDispose]();
});

test.each([
  ['fs', fs, FS_PATHS, FS_WITHOUT_PATH],
  ['fs.promises', fs.promises, PROMISES_PATHS, PROMISES_WITHOUT_PATH],
] as const)('every function of %s is known to take a path or not to', (_name, owner, paths, withoutPath) => {
  const functions = Object.entries(owner)
    .filter(([, value]) => typeof value === 'function')
    .map(([name]) => name);

  expect(functions.filter((name) => !(name in paths) && !withoutPath.has(name))).toEqual([]);
  expect(functions.filter((name) => name in paths && withoutPath.has(name))).toEqual([]);
});

test('two programs at once write the same relative names into directories of their own', async () => {
  const code = `import fs, { writeFileSync } from 'node:fs';
    import { writeFile } from 'node:fs/promises';
    import { exec, execSync, spawn, spawnSync, execFileSync, fork } from 'node:child_process';
    import { once } from 'node:events';
    import { promisify } from 'node:util';
    const me = process.argv[2];
    for (let i = 0; i < 20; i++) {
      writeFileSync('sync', me); await writeFile('promise', me); await fs.promises.appendFile('promises', me);
      await promisify(fs.writeFile)('callback', me);
      await once(fs.createWriteStream('stream').end(me), 'close');
      if (String(fs.readFileSync(Buffer.from('sync'))) !== me) throw new Error('mixed');
    }
    execSync('pwd > execSync'); spawnSync('sh', ['-c', 'pwd > spawnSync']); execFileSync('sh', ['-c', 'pwd > execFileSync'], {});
    await promisify(exec)('pwd > exec'); await once(spawn('sh', ['-c', 'pwd > spawn'], { stdio: 'inherit' }), 'exit');
    fs.mkdirSync('sub'); await once(spawn('sh', ['-c', 'pwd > spawn'], { cwd: 'sub' }), 'exit');
    fs.writeFileSync('forked.cjs', 'require("fs").writeFileSync("fork", process.cwd())'); await once(fork('./forked.cjs'), 'exit');
    console.log(process.cwd());`;
  const runs = ['one', 'two'].map((name) => ({
    name,
    running: shared.start(code, { args: [name], env: { PATH: process.env.PATH ?? '' } }),
  }));

  for (const { name, running } of runs) {
    expect(await running.result).toMatchObject({ out: `${running.cwd}\n`, err: '', exitCode: 0 });
    const read = (file: string) => readFileSync(join(running.cwd, file), 'utf8').trim();
    for (const file of ['sync', 'promise', 'callback', 'stream']) expect(read(file), file).toBe(name);
    expect(read('promises')).toBe(name.repeat(20));
    for (const file of ['execSync', 'spawnSync', 'execFileSync', 'exec', 'spawn', 'fork'])
      expect(read(file), file).toBe(running.cwd);
    expect(read('sub/spawn')).toBe(join(running.cwd, 'sub'));
  }
});

/** Each is run in a directory with the file `f` (content `text`) and the directory `d` with the file `d/g`. */
const USES: [string, string][] = [
  ['fs.readFileSync("f", "utf8")', 'text'],
  ['fs.statSync("./f").size', '4'],
  ['fs.existsSync("f")', 'true'],
  ['fs.existsSync("")', 'false'],
  ['fs.readdirSync(".").sort().join()', 'd,f'],
  ['fs.readdirSync("d/..").sort().join()', 'd,f'],
  ['fs.globSync("*").sort().join()', 'd,f'],
  ['fs.globSync("*", { cwd: "d" }).join()', 'g'],
  ['(await Array.fromAsync(fs.promises.glob("**/g"))).join()', 'd/g'],
  ['(await fs.promises.readFile("f")).toString()', 'text'],
  ['fs.realpathSync("d") === process.cwd() + "/d"', 'true'],
  ['fs.realpathSync.native("d") === process.cwd() + "/d"', 'true'],
  ['(fs.renameSync("f", "h"), fs.existsSync("h"))', 'true'],
  ['(fs.copyFileSync("f", "h"), fs.cpSync("d", "e", { recursive: true }), fs.existsSync("e/g"))', 'true'],
  ['(fs.linkSync("f", "h"), fs.readFileSync("h", "utf8"))', 'text'],
  ['(fs.symlinkSync("g", "d/l"), fs.readlinkSync("d/l"), fs.readFileSync("d/l", "utf8"))', 'deep'],
  ['fs.existsSync(fs.mkdtempSync("t-"))', 'true'],
  ['fs.mkdtempSync("d/").startsWith("d/")', 'true'],
  ['(fs.rmSync("d", { recursive: true }), fs.existsSync("d"))', 'false'],
  ['[...fs.opendirSync("d")].length ?? 0', 'error'],
  ['fs.opendirSync("d").readSync().name', 'g'],
  ['await (await fs.openAsBlob("f")).text()', 'text'],
  [
    '(await require("stream/promises").pipeline(fs.createReadStream("f"), fs.createWriteStream("h")), fs.readFileSync("h", "utf8"))',
    'text',
  ],
  ['fs.createReadStream("f").path', 'f'],
  ['await require("util").promisify(fs.exists)("f")', 'true'],
  ['fs.statfsSync(".").bsize > 0', 'true'],
  ['(fs.accessSync("f"), "fine")', 'fine'],
  ['(process.chdir("d"), fs.readFileSync("g", "utf8") + process.cwd().endsWith("/d"))', 'deeptrue'],
  ['(() => { try { process.chdir("nowhere") } catch (e) { return e.code + e.syscall } })()', 'ENOENTchdir'],
  ['(() => { try { process.chdir("f") } catch (e) { return e.code } })()', 'ENOTDIR'],
  [
    '(new (require("node:sqlite").DatabaseSync)("base.db").exec("create table t (a)"), fs.existsSync("base.db"))',
    'true',
  ],
  [
    '(new (require("node:sqlite").DatabaseSync)("file:u%20v.db?cache=private").exec("create table t (a)"), fs.existsSync("u v.db"))',
    'true',
  ],
  [
    '(fs.mkdirSync("a%20b#c?d"), process.chdir("a%20b#c?d"), new (require("node:sqlite").DatabaseSync)("file:./u.db").exec("create table t (a)"), fs.readdirSync(".").join())',
    'u.db',
  ],
  [
    '["file:" + process.cwd() + "/a.db", "file://" + process.cwd() + "/b.db", "file:%2F" + process.cwd().slice(1) + "/c.db"].every((uri) => { new (require("node:sqlite").DatabaseSync)(uri).exec("create table t (a)"); return fs.existsSync(uri.slice(-4)) })',
    'true',
  ],
  [
    '(["file:m?cache=private&mode=memory", "file::memory:", "file:"].forEach((uri) => new (require("node:sqlite").DatabaseSync)(uri).exec("create table t (a)")), fs.readdirSync(".").join())',
    'd,f',
  ],
  ['new (process.getBuiltinModule("node:sqlite").DatabaseSync)(":memory:").prepare("select 1 as a").get().a', '1'],
  ['process.getBuiltinModule("child_process").execSync("pwd") == process.cwd() + "\\n"', 'true'],
  [
    'await new Promise((done) => require("child_process").exec("pwd", { cwd: "" }, (_, out) => done(out === process.cwd() + "\\n")))',
    'true',
  ],
  ['require("child_process").spawnSync("pwd", { cwd: "" }).error.code', 'ENOENT'],
  ['(fs.writeFileSync(".env", "FROM_FILE=yes"), process.loadEnvFile(), process.env.FROM_FILE)', 'yes'],
  ['require("path").resolve("x") === process.cwd() + "/x"', 'true'],
  [
    '(await new Promise((done) => { const net = require("net"); const server = net.createServer((s) => s.end()).listen("s.sock", () => { const ok = fs.existsSync("s.sock"); net.connect("s.sock").resume().on("close", () => server.close(() => done(ok))) }) }))',
    'true',
  ],
  [
    '(await new Promise((done) => { const http = require("http"); const server = http.createServer((q, r) => r.end("web")).listen({ path: "h.sock" }, () => http.get({ socketPath: "h.sock" }, (r) => r.setEncoding("utf8").on("data", (d) => server.close(() => done(d))))) }))',
    'web',
  ],
  ['(() => { try { fs.readFileSync("nowhere") } catch (e) { return e.code } })()', 'ENOENT'],
  ['require("os").tmpdir().endsWith("/tmp") && require("os").tmpdir().length > 4', 'true'],
  ['[process.umask(0o71) === 0o71, process.umask()].join()', 'false,57'],
  [
    'await new Promise((done) => { const w = fs.watch(".", (type, name) => { w.close(); done(name) }); fs.writeFileSync("w", "") })',
    'w',
  ],
];

test.each(USES)("%s is meant in the program's own directory", async (expression, expected) => {
  const running = (() => {
    const cwd = join(shared.root, `use-${USES.findIndex(([use]) => use === expression)}`);
    mkdirSync(join(cwd, 'd'), { recursive: true });
    writeFileSync(join(cwd, 'f'), 'text');
    writeFileSync(join(cwd, 'd/g'), 'deep');
    const code = `const fs = require('fs'); (async () => { let r; try { r = ${expression} } catch (e) { r = e instanceof TypeError ? 'error' : String(e) } console.log(String(r)) })()`;
    return shared.start(code, { cwd });
  })();

  expect(await running.result).toMatchObject({ out: `${expected}\n`, exitCode: 0 });
});

test.each([
  [
    'of a thread whose program goes elsewhere',
    `const { Worker } = require('worker_threads');
    const work = () => require('worker_threads').parentPort.once('message', () =>
      console.log(process.cwd(), String(require('child_process').execSync('pwd'))));
    const worker = new Worker('(' + work + ')()', { eval: true });
    worker.on('online', () => { fs.mkdirSync('sub'); process.chdir('sub'); worker.postMessage('') });`,
  ],
  [
    'of a program whose directory gets another name',
    `fs.mkdirSync('w');
    process.chdir('w');
    fs.renameSync('../w', '../v');
    fs.writeFileSync('here', '');
    const { execFileSync, spawn, spawnSync } = require('child_process');
    console.log(spawnSync('ls', { encoding: 'utf8' }).stdout, String(execFileSync('ls', { cwd: '../v' })));
    spawn('ls', { stdio: 'inherit' }).on('error', console.log);`,
  ],
])('a child %s starts in its directory where the program is a process', async (name, rest) => {
  const [cwd, plain] = ['process', 'plain'].map((owner) => join(shared.root, name, owner, 'cwd')) as [string, string];
  for (const directory of [cwd, plain]) mkdirSync(directory, { recursive: true });
  const code = `const fs = require('fs'); ${rest}`;
  const node = spawnSync(process.execPath, ['-e', code], { cwd: plain, encoding: 'utf8' });

  const { out, err } = await processes.run(code, { cwd });

  expect([node.stderr, err]).toEqual(['', '']);
  expect(out).toBe(node.stdout.replaceAll(plain, cwd));
});

test.each([
  ['thread', shared],
  ['process', processes],
] as const)('a thread that a %s starts may not change the directory of its program', async (_, harness) => {
  const code = `const { Worker } = require('worker_threads');
    const thread = "const before = process.cwd(); try { process.chdir('/') } catch ({ code, message }) { console.log(code, message) } console.log(process.cwd() === before)";
    new Worker(thread, { eval: true });`;
  const node = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });

  expect(await harness.run(code)).toMatchObject({ out: node.stdout, err: '', exitCode: 0 });
});

test.each([
  ['thread', shared],
  ['process', processes],
] as const)('the home directory of a %s is that of its threads, whatever their environment', async (_, harness) => {
  const code = `const { isMainThread, Worker, workerData } = require('worker_threads');
    const { once } = require('events');
    (async () => {
      if (isMainThread) process.env.HOME = '/changed';
      else process.env.HOME = '/mine';
      console.log(require('os').homedir());
      if (workerData === 'last') return;
      for (const env of [undefined, { HOME: '/given' }, {}])
        await once(new Worker(__filename, { env, workerData: isMainThread ? 'next' : 'last' }), 'exit');
    })();`;

  const { out } = await harness.run(code, { env: { HOME: '/first' }, extension: '.cjs' });

  expect(out).toBe('/changed\n'.repeat(1 + 3 * (1 + 3)));
});

test("temporary files go where the environment says, else to the program's own place", async () => {
  const running = shared.start('console.log(require("os").tmpdir())');

  expect((await running.result).out).toBe(`${join(running.directory, 'tmp')}\n`);
  expect((await shared.run('console.log(require("os").tmpdir())', { env: { TMPDIR: '/var/tmp/' } })).out).toBe(
    '/var/tmp\n',
  );
});

test('nothing is left in the directory of the process that holds the threads', () => {
  for (const name of ['sync', 'promise', 'stream', 'base.db', 's.sock', 'execSync'])
    expect(existsSync(join(process.cwd(), name))).toBe(false);
});
