import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually, isAlive } from '../support/daemon.ts';
import { installed } from './installed.ts';
import { FaultNode } from './node.ts';

/** One of each way to run, with what it prints. */
const KINDS = {
  thread: { language: 'javascript', code: "console.log('ran')" },
  process: { language: 'javascript', isolation: 'process', code: "console.log('ran')" },
  typescript: { language: 'typescript', code: "console.log('ran' as string)" },
  'typescript in a process': { language: 'typescript', isolation: 'process', code: "console.log('ran' as string)" },
  python: { language: 'python', code: "print('ran')" },
} as const;

/** Starts a thread of its own that says what it is told, each time; ends with code 7 once its input does. */
const STARTS_WORKERS = `
  const { Worker } = require('node:worker_threads');
  const says = "const { parentPort, workerData } = require('node:worker_threads'); parentPort.postMessage(workerData);";
  process.stdin.on('data', (data) => {
    const worker = new Worker(says, { eval: true, workerData: 'heard ' + data });
    worker.on('message', console.log);
    worker.on('error', (error) => { console.log(error); process.exit(1); });
  });
  process.stdin.on('end', () => process.exit(7));
  console.log('ready');`;

/** Its programs of cells, by name. */
function programsOf(node: FaultNode): string[] {
  return readdirSync(join(node.stateDir, 'daemon', 'programs'));
}

test.each(['spoil', 'remove'] as const)(
  'a daemon whose installed files were changed starts all kinds of guests, in cells that are there and in others: %s',
  async (change) => {
    const program = installed();
    await using node = await FaultNode.start({}, { main: program.main });
    await node.client.createSession('s');
    await node.ready({ executionId: 'stays', code: "setInterval(() => {}, 1000); console.log('ready');" });

    program[change]();

    for (const sessionId of ['s', 'later']) {
      await node.client.createSession(sessionId);
      for (const [executionId, kind] of Object.entries(KINDS)) {
        await node.client.executeSnippet({ sessionId, executionId, ...kind });
        const { result } = await node.client.wait(sessionId, executionId);
        expect(result, executionId).toMatchObject({ reason: 'completed', exitCode: 0 });
      }
    }
    for (const executionId of Object.keys(KINDS)) expect(await node.stdout(executionId)).toBe('ran\n');
  },
);

test('after an upgrade in place older guests start Workers, and their program goes once their cells are gone', async () => {
  const { main, replace } = installed();
  await using node = await FaultNode.start({ onStop: 'detach' }, { main });
  await node.client.createSession('s');
  for (const isolation of ['thread', 'process'] as const) {
    await node.ready({ executionId: isolation, isolation, code: STARTS_WORKERS, stdin: true });
  }
  const older = node.cellPids();
  const [program] = programsOf(node);
  await node.end('SIGTERM');

  replace();
  await node.start();
  await node.client.executeSnippet({ sessionId: 's', executionId: 'later', language: 'javascript', code: '0' });

  expect((await node.client.wait('s', 'later')).result).toMatchObject({ reason: 'completed' });
  for (const executionId of ['thread', 'process']) {
    await node.client.writeInput('s', executionId, Buffer.from('one'));
    await node.printed(executionId, 'heard one');
  }
  // Another daemon comes while one of them lives.
  await node.client.writeInput('s', 'process', Buffer.alloc(0), true);
  await node.client.wait('s', 'process');
  await node.restart();
  await node.client.writeInput('s', 'thread', Buffer.from('two'));
  await node.printed('thread', 'heard two');
  expect(programsOf(node)).toContain(program);
  await node.client.writeInput('s', 'thread', Buffer.alloc(0), true);
  expect((await node.client.wait('s', 'thread')).result).toMatchObject({ exitCode: 7 });
  await eventually('the older cells are gone', () => older.every((pid) => !isAlive(pid)));
  await node.restart();
  await eventually('their program is gone', () => !programsOf(node).includes(program as string));
  expect(programsOf(node)).toHaveLength(1);
});

test('a program that is there is left as it is, and one that is damaged, or was begun only, is made anew', async () => {
  await using node = await FaultNode.start();
  const [program = ''] = programsOf(node);
  const root = join(node.stateDir, 'daemon', 'programs', program);
  const main = join(root, 'dist', 'src', 'cell', 'main.js');
  const link = join(root, 'node_modules', 'oxc-transform');
  const text = readFileSync(main, 'utf8');
  const { ino } = statSync(main);
  const run = async (sessionId: string) => {
    await node.client.createSession(sessionId);
    await node.client.executeSnippet({ sessionId, executionId: 'e', language: 'typescript', code: '0 as number' });
    expect((await node.client.wait(sessionId, 'e')).result?.reason, sessionId).toBe('completed');
  };

  await node.restart();
  expect(statSync(main).ino).toBe(ino);

  const harms = {
    'of the same length': () => writeFileSync(main, text.replaceAll('a', 'b')),
    'a file more': () => writeFileSync(join(root, 'dist', 'package.json'), '{}'),
    'a file less': () => rmSync(join(root, 'dist', 'workers', 'process.cjs')),
    'a link less': () => rmSync(link),
    'another link': () => {
      rmSync(link);
      symlinkSync('/', link);
    },
    'killed in between': () => {
      rmSync(root, { recursive: true });
      mkdirSync(join(`${root}.new`, 'dist'), { recursive: true });
      writeFileSync(join(`${root}.new`, 'dist', 'half'), '');
    },
  };
  for (const [name, harm] of Object.entries(harms)) {
    await node.end();
    harm();
    await node.start();
    expect(readFileSync(main, 'utf8'), name).toBe(text);
    expect(existsSync(join(root, 'dist', 'package.json')), name).toBe(false);
    await eventually('nothing else is there', () => programsOf(node).length === 1);
    await run(name.replaceAll(' ', '-'));
  }
});
