import { spawnSync } from 'node:child_process';
import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { ProcessEngine } from '../../src/cell/process-engine.ts';
import { EngineHarness, Harness } from './javascript-harness.ts';

// A program ends as it would under `node FILE`, whatever it runs in.

const programPath = fileURLToPath(new URL('../../dist/workers/process.cjs', import.meta.url));
const threads = new Harness();
threads.engine.keepWarm(2);
const processes = new EngineHarness(new ProcessEngine({ programPath }));
afterAll(async () => {
  await threads[Symbol.asyncDispose]();
  await processes[Symbol.asyncDispose]();
});

/** Does something last as signal-exit does, which many packages use: it listens for nothing. */
const LAST = `const { emit, reallyExit } = process;
  process.emit = function (...args) {
    const heard = emit.apply(this, args);
    if (args[0] === 'exit') console.log('last', args[1]);
    return heard;
  };
  process.reallyExit = function (code) { console.log('really', code); reallyExit.call(process, code) };`;

/** How often each runs in a thread: some ended otherwise only where one thread was faster than another. */
const ROUNDS = 5;

test.each([
  ['whose exit listener throws', `process.on('exit', () => { throw new Error('last') })`],
  [
    'whose exit listener sets a code and throws',
    `process.on('exit', () => { process.exitCode = 5; throw new Error('last') })`,
  ],
  [
    'with a code of its own whose exit listener throws',
    `process.exitCode = 2; process.on('exit', () => { throw new Error('last') })`,
  ],
  [
    'that exits, and whose exit listener throws',
    `process.on('exit', () => { throw new Error('last') }); process.exit(4)`,
  ],
  [
    'that fails, and whose exit listener sets a code',
    `process.on('exit', (code) => { console.log(code); process.exitCode = 0 }); throw new Error('first')`,
  ],
  [
    'that fails, and whose exit listener throws',
    `process.on('exit', (code) => { console.log(code); throw new Error('last') }); throw new Error('first')`,
  ],
  ['with a code of its own that fails', `process.exitCode = 3; throw new Error('first')`],
  ['with a code of its own that fails later', `process.exitCode = 3; setTimeout(() => { throw new Error('first') })`],
  [
    'whose listener for errors throws',
    `process.on('exit', (code) => console.log('exit', code));
    process.on('uncaughtException', () => { throw new Error('again') });
    throw new Error('first')`,
  ],
  [
    'that fails in an exit listener, and listens for errors',
    `process.on('exit', (code) => { console.log(code); throw new Error('last') });
    process.on('uncaughtException', (error) => console.log(error.message))`,
  ],
  [
    'that rejects',
    `process.on('exit', (code) => console.log(code, process.exitCode)); Promise.reject(new Error('first'))`,
  ],
  [
    'whose listeners for its exit and for errors throw',
    `process.on('exit', (code) => { console.log(code); throw new Error('last') });
    process.on('uncaughtException', () => { throw new Error('again') })`,
  ],
  [
    'whose exit listeners await',
    `process.on('exit', async (code) => { console.log(code); await null; console.log(process.exitCode) });
    process.once('exit', () => queueMicrotask(() => { console.log('later'); process.exitCode = 3 }))`,
  ],
  [
    'that exits, and whose exit listener awaits',
    `process.on('exit', async (code) => { console.log(code); await null; console.log('later') });
    setTimeout(() => process.exit(3))`,
  ],
  [
    'that fails, and has replaced how Node would end it',
    `process.exit = process.reallyExit = () => {}; setInterval(() => {}, 1000); throw new Error('first')`,
  ],
  [
    'that fails, and whose exit listener awaits',
    `process.on('exit', async (code) => { console.log(code); await null; console.log('later') }); throw new Error('first')`,
  ],
  ['that has replaced how it ends', LAST],
  ['that has replaced how it ends, and exits', `${LAST} process.exit(3)`],
  ['that has replaced how it ends, and fails', `${LAST} throw new Error('first')`],
  [
    'that exits, and has replaced only the last of how it ends',
    `const { reallyExit } = process;
    process.reallyExit = (code) => { console.log('really', code); reallyExit.call(process, 5) };
    process.exit(4)`,
  ],
  [
    'that fails, and whose exit listener writes an error',
    `process.on('exit', (code) => { console.error('Error: exit', code) }); throw new Error('first')`,
  ],
  [
    'that fails, and whose exit listener exits',
    `process.on('exit', () => { process.exit(8) }); setTimeout(() => { throw new Error('first') })`,
  ],
  [
    'that fails, and whose exit listener exits with success',
    `process.on('exit', () => { process.exit(0) }); Promise.reject(new Error('first'))`,
  ],
  [
    'whose callback for errors throws',
    `process.on('exit', (code) => console.log('exit', code));
    process.setUncaughtExceptionCaptureCallback((error) => { console.log(error.message); throw new Error('again') });
    throw new Error('first')`,
  ],
  [
    'whose further callback for errors throws',
    `process.addUncaughtExceptionCaptureCallback?.((error) => { console.log(error.message); throw new Error('again') });
    throw new Error('first')`,
  ],
  [
    'whose callback for errors handles one, and that fails later',
    `process.setUncaughtExceptionCaptureCallback((error) => { console.log(error.message, process.hasUncaughtExceptionCaptureCallback()) });
    setTimeout(() => { process.setUncaughtExceptionCaptureCallback(null); throw new Error('second') });
    throw new Error('first')`,
  ],
  [
    'that would set as its callback for errors what is none',
    `try { process.setUncaughtExceptionCaptureCallback(3) } catch (error) { console.log(error.message) }
    process.setUncaughtExceptionCaptureCallback(() => {});
    try { process.setUncaughtExceptionCaptureCallback(() => {}) } catch (error) { console.log(error.message) }`,
  ],
  [
    'whose listener for what it does not catch throws',
    `process.on('exit', (code) => console.log('exit', code));
    process.on('uncaughtExceptionMonitor', (error) => { console.log(error.message); throw new Error('again') });
    throw new Error('first')`,
  ],
  [
    'whose listener for what it does not catch throws, and that rejects',
    `process.on('uncaughtExceptionMonitor', (error) => { console.log(error.message); throw new Error('again') });
    Promise.reject(new Error('first'))`,
  ],
  [
    'whose domain throws',
    `process.on('exit', (code) => console.log('exit', code));
    const domain = require('domain').create();
    domain.on('error', (error) => { console.log(error.message); throw new Error('again') });
    domain.run(() => setTimeout(() => { throw new Error('first') }))`,
  ],
  [
    'whose domain takes errors',
    `const domain = require('domain').create();
    domain.on('error', (error) => { console.log(error.message); process.exitCode = 3 });
    domain.run(() => setTimeout(() => { throw new Error('first') }))`,
  ],
])('a program %s ends as under node', async (_, code) => {
  const file = join(threads.root, 'plain.js');
  writeFileSync(file, code);
  const node = spawnSync(process.execPath, [file], { encoding: 'utf8' });

  for (let round = 0; round <= ROUNDS; round += 1) {
    const { out, err, exitCode } = await (round === 0 ? processes : threads).run(code);

    expect({ out, exitCode }, `round ${round}`).toEqual({ out: node.stdout, exitCode: node.status });
    expect(err.match(/Error: \w+/g)).toEqual(node.stderr.match(/Error: \w+/g));
  }
});

test.each([
  ['thread', '', threads],
  ['process', '', processes],
  ['thread', 'require("node:util").inspect.defaultOptions.depth = 6;', threads],
])('what the error of a %s holds is written as deep as by node %s', async (_, before, harness) => {
  const mainPath = join(harness.root, 'deep.js');
  const code = `${before}
    const error = new Error('failed');
    error.response = { data: { errors: [{ field: { name: { first: { second: 'bad' } } } }] } };
    throw error`;
  writeFileSync(mainPath, code);
  const node = spawnSync(process.execPath, [mainPath], { encoding: 'utf8' });

  const { err } = await harness.run(code, { mainPath, writeMain: false });

  const shown = (text: string) => text.slice(text.indexOf('Error: failed')).replace(/^ +at .*?(?= \{$|$)/gm, '');
  expect(shown(err)).toBe(shown(node.stderr));
});

describe.each([
  ['thread', threads],
  ['process', processes],
])('in a %s', (_, harness) => {
  const shownBy = (inspection: string) =>
    `class Shown extends Error { [Symbol.for('nodejs.util.inspect.custom')]() { ${inspection} } } throw new Shown('failed')`;

  test.each([
    ['whose own inspection throws', shownBy("throw new Error('again')")],
    ['whose own inspection returns nothing', shownBy('')],
    ['whose own inspection returns a text', shownBy("return 'mine'")],
    ['of an assertion', 'require("node:assert").deepStrictEqual({ a: 1, b: [1, 2] }, { a: 1, b: [1, 3] })'],
    ['of an emitter', "new (require('node:events'))().emit('error', new Error('failed'))"],
    ['of a server', "const net = require('node:net'); net.createServer().listen('/none/s')"],
    ['of a module that is not there', "require('./none')"],
  ])('an error %s is written as by node', async (name, code) => {
    const mainPath = join(harness.root, 'shown.js');
    writeFileSync(mainPath, code);
    const node = spawnSync(process.execPath, [mainPath], { encoding: 'utf8' });

    const { err } = await harness.run(code, { mainPath, writeMain: false });

    // Behind the line of code, which for some is one of Node's own.
    const shown = (text: string) => text.slice(text.indexOf('\n\n')).replace(/^ +at .*?(?= \{$|$)\n?/gm, '');
    expect(shown(err), name).toBe(shown(node.stderr));
  });
});

describe.each([
  ['thread', threads],
  ['process', processes],
])('in a %s', (_, harness) => {
  test.each([
    ['imports', "import './broken.mjs'"],
    ['imports later', "await import('./broken.mjs')"],
    ['is', "import './sound.mjs';\nconst a = ;"],
    ['is, and that declares a name twice', "import './sound.mjs';\nlet a; let a;"],
  ])('a module that does not parse, which a program %s, is named with its line as by node', async (_name, code) => {
    const mainPath = join(harness.root, 'main.mjs');
    writeFileSync(mainPath, code);
    writeFileSync(join(harness.root, 'sound.mjs'), 'export const b = 1;');
    writeFileSync(join(harness.root, 'broken.mjs'), "import './sound.mjs';\nlet x = {;\n");
    const node = spawnSync(process.execPath, [mainPath], { encoding: 'utf8' });

    const { err } = await harness.run(code, { mainPath, writeMain: false });

    const shown = (text: string) => text.slice(0, text.indexOf('\n', text.indexOf('SyntaxError')));
    expect(shown(err)).toBe(shown(node.stderr));
  });
});

test.each([
  ['thread', threads],
  ['process', processes],
])('what a %s does not find it misses in its own line, and in no file that runs beside it', async (_, harness) => {
  const code = `const { createRequire } = require('node:module');
    const tell = (error) => console.log(error.stack);
    try { require('./none') } catch (error) { tell(error) }
    try { createRequire('/none.js')('none') } catch (error) { tell(error) }
    import('./none.mjs').catch(tell);`;

  const { out } = await harness.run(code);

  expect(out).not.toMatch(/workers|customization_hooks/);
  expect(out.match(/Cannot find module 'none'|ERR_MODULE_NOT_FOUND|main\.js:\d(?=:)/g)).toEqual([
    'main.js:3',
    "Cannot find module 'none'",
    'main.js:4',
    'ERR_MODULE_NOT_FOUND',
  ]);
});

test.each([
  ['thread', threads],
  ['process', processes],
])('a %s that ends by itself leaves its databases closed', async (_, harness) => {
  const running = harness.start(`const { DatabaseSync } = require('node:sqlite');
    new DatabaseSync('n.db').exec('pragma journal_mode = wal; create table t (a); insert into t values (1)')`);

  expect(await running.result).toMatchObject({ err: '', exitCode: 0 });
  // Without the log of what is not in it yet, and with the page of that table.
  expect(readdirSync(running.cwd)).toEqual(['n.db']);
  expect(statSync(join(running.cwd, 'n.db')).size).toBe(8192);
});
