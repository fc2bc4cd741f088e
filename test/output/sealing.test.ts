import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { JournalReader } from '../../src/journal/reader.ts';
import { eventually, outputDirectories, TestDaemon, TestExecution } from '../support/daemon.ts';

/** Writes to both streams in turn, and at two times. */
const TURNS = `
  process.stdout.write('one '); process.stderr.write('two ');
  setTimeout(() => { process.stdout.write('three '); process.stderr.write('four'); }, 40);`;
/** Writes so much that it stays in files. */
const LARGE = "process.stdout.write('x'.repeat(5_000));";

const sealed = (node: TestDaemon) => eventually('all is sealed', () => outputDirectories(node).length === 0);

/** Bytes of each output that the journal has. */
function kept({ root }: TestDaemon): Record<string, unknown> {
  using reader = new JournalReader(join(root, 's', 'daemon', 'journal.db'));
  expect(reader.verify()).toEqual([]);
  const rows = [...reader.export()] as { executionId?: string; keptOutput?: unknown }[];
  return Object.fromEntries(rows.flatMap((row) => (row.keptOutput ? [[row.executionId, row.keptOutput]] : [])));
}

/** All that can be asked of an output. */
async function look({ daemon }: TestDaemon, { sessionId, executionId }: TestExecution) {
  const read = (options: object) => Array.fromAsync(daemon.streamOutput(sessionId, executionId, options));
  const refusal = (options: object) => read(options).catch((error: Error) => error.message);
  return {
    status: await daemon.getExecutionStatus(sessionId, executionId),
    tails: [
      await daemon.tailOutput(sessionId, executionId, 'stdout', 5),
      await daemon.tailOutput(sessionId, executionId, 'stderr', 100),
    ],
    followed: await read({}),
    now: await read({ follow: false }),
    rest: await read({ stdoutPosition: 2, stderrPosition: 6 }),
    one: await read({ streams: ['stderr'] }),
    end: await read({ stdoutPosition: 10, stderrPosition: 8 }),
    future: [await refusal({ stdoutPosition: 11 }), await refusal({ stderrPosition: 9, follow: false })],
  };
}

test.each([
  ['javascript', TURNS],
  [
    'python',
    'import sys, time\nfor turn in (["one ", "two "], ["three ", "four"]):\n    for stream, text in zip((sys.stdout, sys.stderr), turn): print(text, end="", file=stream, flush=True)\n    time.sleep(0.04)',
  ],
])('small output of a %s program goes from its files into the journal, and nobody can tell', async (language, code) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  let execution: TestExecution;
  let before: Awaited<ReturnType<typeof look>>;
  // Its files are there for a second: for no longer than a look takes where that is slow.
  do {
    await sealed(node);
    execution = await session.submit({ language, code });
    await execution.end();
    before = await look(node, execution);
  } while (outputDirectories(node).length === 0);
  const { executionId } = execution;
  expect(before.followed.map(({ data }) => String(data)).join('')).toBe('one two three four');

  await sealed(node);

  expect(await look(node, execution)).toEqual(before);
  expect(before.future[0]).toBe(
    `stdout of execution "${executionId}" has 10 bytes, from 0 on; position 11 is in the future`,
  );
  expect(kept(node)).toMatchObject({ [executionId]: { stdout: 10, stderr: 8 } });
});

test('large output stays in its files, and no output leaves nothing', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  await session.run(LARGE);
  const [large] = outputDirectories(node);
  const silent = await session.submit('0');
  await silent.end();

  await eventually('one is left', () => outputDirectories(node).length === 1);

  expect(outputDirectories(node)).toEqual([large]);
  expect(kept(node)).toEqual({});
  expect(await silent.output()).toEqual({ stdout: '', stderr: '' });
});

test('a reader that has begun before the end reads on, past the end and the removal of the files', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const code = "process.stdout.write('ready'); process.stdin.on('data', (data) => process.stderr.write(data));";
  const execution = await session.submit({ code, stdin: true });
  const reader = node.daemon.streamOutput(execution.sessionId, execution.executionId);
  expect(String((await reader.next()).value?.data)).toBe('ready');

  await execution.write('late', true);
  await execution.end();
  await sealed(node);

  expect((await Array.fromAsync(reader)).map(({ stream, data }) => `${stream} ${data}`)).toEqual(['stderr late']);
});

test('sealed output goes when it is released, when its execution is one too many, and when it is evicted', async () => {
  await using node = await TestDaemon.start({ retainedExecutions: 3, outputBudgetBytes: 15 });
  const session = await node.session();
  const { sessionId } = session;
  const write = "process.stdout.write('12345');";
  for (const executionId of ['released', 'surplus', 'evicted']) await session.run({ executionId, code: write });
  await sealed(node);
  const size = { stdout: 5, stderr: 0 };
  expect(kept(node)).toEqual({ released: size, surplus: size, evicted: size });

  await node.daemon.releaseExecution(sessionId, 'released');
  expect(kept(node)).toEqual({ surplus: size, evicted: size });
  await session.run({ executionId: 'silent', code: '0' });
  await session.run({ executionId: 'newest', code: "process.stdout.write('1234567890!');" });
  await sealed(node);

  expect(kept(node)).toEqual({ newest: { stdout: 11, stderr: 0 } });
  await expect(node.daemon.getExecutionStatus(sessionId, 'surplus')).rejects.toMatchObject({ code: 'not_found' });
  expect(await node.daemon.getExecutionStatus(sessionId, 'evicted')).toMatchObject({
    stdoutBytes: 5,
    outputEvicted: true,
  });
  await expect(Array.fromAsync(node.daemon.streamOutput(sessionId, 'evicted'))).rejects.toMatchObject({
    code: 'out_of_range',
    message: 'stdout of execution "evicted" was evicted to make room: position 0 is gone, it now begins at 5, its end',
  });
});

test('a read that meets a release gets all there was, or hears that it is not known; its id may be used again', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { sessionId } = session;
  const ids = Array.from({ length: 20 }, (_, index) => `e${index}`);
  for (const executionId of ids) await session.run({ executionId, code: "process.stdout.write('12345');" });
  await sealed(node);

  for (const [turns, executionId] of ids.entries()) {
    const read = Array.fromAsync(node.daemon.streamOutput(sessionId, executionId));
    const heard = read.then(
      (chunks) => chunks.map(({ data }) => String(data)).join(''),
      (error: { code: string }) => error.code,
    );
    for (let turn = 0; turn < turns; turn += 1) await new Promise(setImmediate);
    await node.daemon.releaseExecution(sessionId, executionId);
    await session.submit({ executionId, code: "process.stdout.write('1234567890');" });

    expect(['12345', 'not_found']).toContain(await heard);
  }
});

test('output that the journal does not take stays in its files, keeps no end waiting, and is tried again', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  using journal = new DatabaseSync(join(node.root, 's', 'daemon', 'journal.db'), { timeout: 30_000 });
  journal.exec("CREATE TRIGGER refusal BEFORE INSERT ON outputs BEGIN SELECT RAISE(ABORT, 'refused'); END");

  let count = 0;
  for (const untilMs = Date.now() + 2_500; Date.now() < untilMs; count += 1) {
    expect(await session.run(`console.log(${count})`)).toMatchObject({ result: { reason: 'completed' } });
  }
  expect(outputDirectories(node)).toHaveLength(count);
  journal.exec('DROP TRIGGER refusal');
  await sealed(node);

  expect(Object.keys(kept(node))).toHaveLength(count);
  for (let each = 0; each < count; each += 1) {
    const execution = new TestExecution(node.daemon, session.sessionId, `e${each + 1}`);
    expect(await execution.output()).toEqual({ stdout: `${each}\n`, stderr: '' });
  }
});

test('files that were given by the caller are left as they are', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const directory = node.directory();
  const outputFiles = {
    stdout: join(directory, 'out'),
    stderr: join(directory, 'err'),
    maxFiles: 2,
    maxFileBytes: 1024,
  };

  const { stdout } = await session.run({ code: "console.log('elsewhere')", outputFiles });
  await sealed(node);

  expect(stdout).toBe('');
  expect(readdirSync(directory).toSorted()).toEqual(['err.0', 'out.0']);
  expect(kept(node)).toEqual({});
});

test('what a guest has put beside its output is left alone until its execution goes', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const code = "console.log('ready'); process.stdin.once('data', () => process.exit());";
  const execution = await session.ready({ code, stdin: true });
  const { sessionId, executionId } = execution;
  const output = join(node.root, 's', 'daemon', 'output');
  const [sessionKey = ''] = readdirSync(output);
  const [executionKey = ''] = outputDirectories(node);
  const beside = join(output, sessionKey, executionKey, 'beside');
  mkdirSync(beside);
  await execution.write('\n');
  await execution.end();

  await eventually('it is sealed', () => readdirSync(join(output, sessionKey, executionKey)).length === 1);

  expect(existsSync(beside)).toBe(true);
  expect((await execution.output()).stdout).toBe('ready\n');
  await node.daemon.releaseExecution(sessionId, executionId);
  await sealed(node);
});
