import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readdirSync, readSync, rmSync, statSync, truncateSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import type { StreamOptions } from '../../src/api.ts';
import { eventually } from '../support/daemon.ts';
import { cellsBelow } from '../support/processes.ts';
import { FaultNode } from './node.ts';

const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

/** Where the output files of an execution are. */
function directoryOf(node: FaultNode, executionId: string): string {
  using journal = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const find = journal.prepare('SELECT session_key, execution_key FROM executions WHERE execution_id = ?');
  const { session_key: sessionKey, execution_key: executionKey } = find.get(executionId) as Record<string, string>;
  return join(node.stateDir, 'daemon', 'output', sessionKey as string, executionKey as string);
}

/** The error of a read of what is lost. */
const loss = (executionId: string, bytes: number | string, left: number, stream = 'stdout') => ({
  code: 'data_loss',
  message: `${stream} of execution "${executionId}" is lost: it had ${bytes} bytes, of which ${left} are left`,
});

/** What a read gives, and the error that it ends with. */
async function readTo(node: FaultNode, executionId: string, options: StreamOptions = {}) {
  const text = { stdout: '', stderr: '' };
  const read = node.client.streamOutput('s', executionId, options);
  try {
    for await (const { stream, data } of read) text[stream] += data;
  } catch (error) {
    return { ...text, error: error as Error };
  }
  return { ...text, error: undefined };
}

test('output that somebody has removed is told as lost, with what it was, and its result stays', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  // More than goes into the journal a second after its end.
  const size = 5_000;
  const long = (text: string) => text.padEnd(size);
  const written: Record<string, string> = {
    file: long('one'),
    directory: long('three'),
    silent: '',
    deep: long('seven'),
  };
  for (const [executionId, text] of Object.entries(written)) {
    const code = `process.stdout.write(${JSON.stringify(text)}); process.stderr.write('${text && 'warned'}'); process.exit(4)`;
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code });
    await node.client.wait('s', executionId);
  }
  const read = (executionId: string, streams: ('stdout' | 'stderr')[], from = 0) =>
    Array.fromAsync(node.client.streamOutput('s', executionId, { streams, stdoutPosition: from }));
  const lost = (executionId: string, bytes: number, stream = 'stdout') => loss(executionId, bytes, 0, stream);

  const directories = ['directory', 'silent'].map((executionId) => directoryOf(node, executionId));
  for (const path of [join(directoryOf(node, 'file'), 'stdout'), ...directories])
    rmSync(path, { recursive: true, force: true });

  for (const daemon of ['this daemon', 'the next one']) {
    await expect(read('file', ['stdout']), daemon).rejects.toMatchObject(lost('file', size));
    await expect(read('file', ['stdout', 'stderr'], size - 1), daemon).rejects.toMatchObject(lost('file', size));
    await expect(read('file', ['stdout'], size + 1), daemon).rejects.toMatchObject({ code: 'out_of_range' });
    expect(await read('file', ['stdout'], size), daemon).toEqual([]);
    expect(Buffer.concat((await read('file', ['stderr'])).map(({ data }) => data)).toString(), daemon).toBe('warned');
    await expect(read('directory', ['stdout']), daemon).rejects.toMatchObject(lost('directory', size));
    await expect(read('directory', ['stderr']), daemon).rejects.toMatchObject(lost('directory', 6, 'stderr'));
    expect(await read('silent', ['stdout', 'stderr']), daemon).toEqual([]);
    expect(await node.stdout('deep'), daemon).toBe(written.deep);
    for (const [executionId, text] of Object.entries(written)) {
      const status = await node.client.getExecutionStatus('s', executionId);
      expect(status, daemon).toMatchObject({
        result: { reason: 'failed', exitCode: 4 },
        stdoutBytes: text.length,
        stderrBytes: text === '' ? 0 : 'warned'.length,
        outputEvicted: false,
      });
    }
    await node.restart();
  }
  // What was lost and then evicted was evicted: that is said of it from then on.
  await node.restart({ outputBudgetBytes: 1 });
  await eventually('it is evicted', async () => (await node.client.getExecutionStatus('s', 'file')).outputEvicted);
  await expect(read('file', ['stdout'])).rejects.toMatchObject({
    code: 'out_of_range',
    message: expect.stringContaining(`it now begins at ${size}, its end`),
  });
});

test('of output that somebody has cut short a read gives what is left, and then says how much is lost', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const whole = 'x'.repeat(9_000);
  for (const executionId of ['cut', 'emptied', 'small']) {
    const code = `process.stdout.write('${executionId === 'small' ? 'tiny' : whole}'); process.stderr.write('${executionId}');`;
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code });
    await node.client.wait('s', executionId);
    truncateSync(join(directoryOf(node, executionId), 'stdout'), { cut: 7_000, emptied: 0, small: 1 }[executionId]);
  }

  for (const daemon of ['this daemon', 'the next one']) {
    expect(await readTo(node, 'cut'), daemon).toMatchObject({
      stdout: whole.slice(0, 7_000),
      stderr: 'cut',
      error: loss('cut', 9_000, 7_000),
    });
    expect(await readTo(node, 'cut', { streams: ['stdout'], stdoutPosition: 6_999 }), daemon).toMatchObject({
      stdout: 'x',
      error: loss('cut', 9_000, 7_000),
    });
    for (const stdoutPosition of [7_000, 8_999]) {
      const { stdout, error } = await readTo(node, 'cut', { streams: ['stdout'], stdoutPosition });
      expect({ stdout, error }, daemon).toMatchObject({ stdout: '', error: loss('cut', 9_000, 7_000) });
    }
    const atEnd = await readTo(node, 'cut', { stdoutPosition: 9_000, stderrPosition: 3 });
    expect(atEnd, daemon).toEqual({ stdout: '', stderr: '', error: undefined });
    const { error } = await readTo(node, 'cut', { stdoutPosition: 9_001 });
    expect(error, daemon).toMatchObject({ code: 'out_of_range' });
    expect((await readTo(node, 'emptied')).error, daemon).toMatchObject(loss('emptied', 9_000, 0));
    expect(await readTo(node, 'small'), daemon).toMatchObject({ stdout: 't', error: loss('small', 4, 1) });
    expect(await node.client.getExecutionStatus('s', 'cut'), daemon).toMatchObject({ stdoutBytes: 9_000 });
    expect(await node.client.getExecutionStatus('s', 'small'), daemon).toMatchObject({ stdoutBytes: 4 });
    await node.restart();
  }
  // What is then evicted is told with what it was.
  await node.restart({ outputBudgetBytes: 1 });
  await eventually('it is evicted', async () => (await node.client.getExecutionStatus('s', 'cut')).outputEvicted);
  expect(await node.client.getExecutionStatus('s', 'cut')).toMatchObject({ stdoutBytes: 9_000, stderrBytes: 3 });
});

test.each(['javascript', 'python'])(
  'output of a %s guest that is removed while it runs is told once it has ended',
  async (language) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    const code = {
      javascript: "process.stdin.once('data', () => { console.log('more'); process.exit(); }); console.log('ready');",
      python: "print('ready', flush=True)\ninput()\nprint('more')",
    }[language] as string;
    await node.ready({ executionId: 'e', language, code, stdin: true });
    rmSync(join(directoryOf(node, 'e'), 'stdout'));

    await node.client.writeInput('s', 'e', Buffer.from('go\n'), true);
    await node.client.wait('s', 'e');

    const { stdout, error } = await readTo(node, 'e', { streams: ['stdout'] });
    expect({ stdout, error }).toMatchObject({ stdout: '', error: loss('e', 'ready\nmore\n'.length, 0) });
  },
);

test('a reader under whom output is cut short is told at the end, unless its own limit has cut it', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.stdin.once('data', () => process.exit()); process.stdout.write('one ready');";
  await node.ready({ executionId: 'cut', code, stdin: true });
  const flood = "require('child_process').spawn('yes', [], { stdio: 'inherit' }); setInterval(() => {}, 1000);";
  const flooding = {
    sessionId: 's',
    executionId: 'flood',
    language: 'javascript',
    code: flood,
    outputLimitBytes: 20_000,
  };
  await node.client.executeSnippet(flooding);
  const [cut, flooded] = ['cut', 'flood'].map((executionId) => node.client.streamOutput('s', executionId));
  const read = async (output: typeof cut, bytes: number) => {
    for (let count = 0; count < bytes; ) count += (await output?.next())?.value?.data.byteLength ?? 0;
  };
  const rest = (output: typeof cut) => Array.fromAsync(output ?? []).catch((error: Error) => error);

  await Promise.all([read(cut, 'one ready'.length), read(flooded, 20_000)]);
  truncateSync(join(directoryOf(node, 'cut'), 'stdout'), 'one'.length);
  await node.client.writeInput('s', 'cut', Buffer.from('go\n'), true);
  await node.client.cancelExecution('s', 'flood', { graceMs: 0 });

  expect(await rest(cut)).toMatchObject(loss('cut', '9 or more', 3));
  expect(await rest(flooded)).toBeInstanceOf(Array);
  expect(await readTo(node, 'cut')).toMatchObject({ stdout: 'one', error: undefined });
  const { stdout, error } = await readTo(node, 'flood');
  expect({ bytes: stdout.length, error }).toEqual({ bytes: 20_000, error: undefined });
});

test('of output of a cell that dies all counts that is there, and what goes then is lost', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = `process.stdin.on('data', () => { process.stdout.write('x'.repeat(9_000)); console.log('done') }); ${IDLE}`;
  await node.ready({ executionId: 'e', code, stdin: true });
  await node.client.getExecutionMetrics('s', 'e');
  await node.client.writeInput('s', 'e', Buffer.from('go\n'));
  await node.printed('e', 'done');
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');

  const { result } = await node.client.wait('s', 'e');
  truncateSync(join(directoryOf(node, 'e'), 'stdout'), 8_000);

  const bytes = 'ready\n'.length + 9_000 + 'done\n'.length;
  expect(result).toMatchObject({ reason: 'cell_lost', usage: { stdoutBytes: bytes } });
  expect((await readTo(node, 'e')).error).toMatchObject(loss('e', bytes, 8_000));
});

test('of output that nobody saw the end of, nothing is told where it is not there', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: "setInterval(() => {}, 1000); console.log('ready');" });
  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  await node.start();
  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost', usage: undefined });
  expect(await node.stdout('e')).toBe('ready\n');

  rmSync(directoryOf(node, 'e'), { recursive: true });

  expect(await node.stdout('e')).toBe('');
});

/** Puts pipes that nobody writes to in the place of files. */
function replaceByPipes(paths: string[]): void {
  for (const path of paths) rmSync(path, { force: true });
  execFileSync('mkfifo', paths);
}

test('a pipe that a guest puts in the place of its output holds up nobody, and that output is lost', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const neighbour = { sessionId: 's', executionId: 'neighbour', language: 'javascript', code: "console.log('here')" };
  await node.client.executeSnippet(neighbour);
  const code = `
    process.stdout.write('mine');
    const fs = require('node:fs');
    const target = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
    const isOwn = (path) => path.endsWith('/stdout') && fs.statSync(path).ino === fs.fstatSync(1).ino;
    const path = fs.readdirSync('/proc/self/fd').map(target).find(isOwn);
    fs.unlinkSync(path);
    require('node:child_process').execFileSync('mkfifo', [path]);
    console.error('done');
    process.stdin.once('data', () => process.exit());`;
  const guest = { sessionId: 's', executionId: 'e', language: 'javascript', code, stdin: true };
  await node.client.executeSnippet(guest);
  const stderr = node.client.streamOutput('s', 'e', { streams: ['stderr'] });
  for await (const { data } of stderr) if (String(data).includes('done')) break;

  // Each would take one of the four threads that the daemon has for files.
  const running = await Promise.all(Array.from({ length: 8 }, () => readTo(node, 'e', { follow: false })));
  expect(running).toEqual(Array(8).fill({ stdout: '', stderr: 'done\n', error: undefined }));
  await node.client.writeInput('s', 'e', Buffer.from('go\n'), true);
  await node.client.wait('s', 'e');
  const ended = await Promise.all(Array.from({ length: 8 }, () => readTo(node, 'e', { streams: ['stdout'] })));

  expect(ended).toEqual(Array(8).fill({ stdout: '', stderr: '', error: expect.objectContaining(loss('e', 4, 0)) }));
  expect(await node.stdout('neighbour')).toBe('here\n');
});

test('pipes in the place of all files of a cell that dies, and of its guests, hold up nobody', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "import time\nprint('ready', flush=True)\ntime.sleep(60)";
  await node.ready({ executionId: 'e', language: 'python', code });
  const cells = join(node.stateDir, 'daemon', 'cells');
  const files = readdirSync(cells).filter((name) => !name.endsWith('.sock'));
  replaceByPipes([
    ...files.map((name) => join(cells, name)),
    ...['stdout', 'stderr', 'marks'].map((name) => join(directoryOf(node, 'e'), name)),
  ]);

  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'cell_lost' });
  await node.ready({ executionId: 'next', code: IDLE });
});

/** Prints where the files of its cell are: its socket, whose ending the others have another of. */
const SHOWS_CELL = `
  const command = require('node:fs').readFileSync('/proc/self/cmdline', 'latin1').split('\\0');
  console.log(command.find((argument) => argument.endsWith('.sock')));
  ${IDLE}`;

test.each(['.guests', '.process', '.token', '.ends'])(
  'a %s file of a cell that a guest has made larger than any counts for nothing, with a daemon and without',
  { timeout: 180_000 },
  async (ending) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    await node.client.createSession('other');
    const neighbour = { sessionId: 'other', executionId: 'neighbour', language: 'javascript', code: IDLE };
    await node.client.executeSnippet(neighbour);
    for await (const { state } of node.client.watchExecution('other', 'neighbour')) if (state === 'running') break;
    const enlarge = async (executionId: string) => {
      await node.ready({ executionId, code: SHOWS_CELL });
      const [socket = ''] = (await readTo(node, executionId, { follow: false })).stdout.split('\n');
      truncateSync(socket.replace(/\.sock$/, ending), 600 * 1024 * 1024);
      return cellsBelow(socket);
    };

    for (const pid of await enlarge('e')) process.kill(pid, 'SIGKILL');
    expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'cell_lost' });

    const cells = await enlarge('left');
    await node.end();
    // Without its token no daemon makes it its own; else it has to be dead to be looked at.
    if (ending !== '.token') for (const pid of cells) process.kill(pid, 'SIGKILL');
    await node.start();
    expect((await node.client.wait('s', 'left')).result).toMatchObject({ reason: 'daemon_lost' });
    expect((await node.client.getExecutionStatus('other', 'neighbour')).state).toBe('running');
    await node.ready({ executionId: 'next', code: IDLE });
  },
);

const CHILD = `require('node:child_process').execFileSync('sh', ['-c', 'chmod 000 /proc/self/fd/2; head -c 9000 /dev/zero >&2'], {
  stdio: 'inherit' });`;
const ABORTS = "require('node:fs').fchmodSync(2, 0); process.abort();";

test.each([
  ['thread that lets nobody read what it floods', 'thread', CHILD, { exitCode: 0, usage: { stderrBytes: 1_000 } }],
  ['process that lets nobody read what it floods', 'process', CHILD, { exitCode: 0, usage: { stderrBytes: 1_000 } }],
  ['process that lets nobody read why it aborts', 'process', ABORTS, { exitCode: 134, signal: 'SIGABRT' }],
] as const)('a %s ends nobody else', async (_, isolation, code, end) => {
  await using node = await FaultNode.start({}, { unprivileged: true });
  await node.client.createSession('s', { executionDefaults: { isolation } });
  await node.ready({ executionId: 'neighbour', code: IDLE });
  const own = { sessionId: 's', executionId: 'e', language: 'javascript', outputLimitBytes: 1_000 };

  await node.client.executeSnippet({ ...own, code });

  expect((await node.client.wait('s', 'e')).result).toMatchObject(end);
  expect((await node.client.getExecutionStatus('s', 'neighbour')).state).toBe('running');
});

const FLOODS = {
  javascript: `process.stdout.write('x'.repeat(${5 * 2 ** 20})); setInterval(() => {}, 1000);`,
  python: `import sys, time\nsys.stdout.write('x' * ${5 * 2 ** 20})\nsys.stdout.flush()\ntime.sleep(600)`,
};

/** What lies on its way to readers, by the executions it is of, in bytes. */
function waitingForReaders(node: FaultNode): Record<string, number> {
  using journal = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const find = journal.prepare('SELECT execution_id FROM executions WHERE execution_key = ?');
  const output = join(node.stateDir, 'daemon', 'output');
  const waiting: Record<string, number> = {};
  for (const name of readdirSync(output, { recursive: true, encoding: 'utf8' })) {
    if (!name.includes('.spool.')) continue;
    const executionId = String(find.get(basename(dirname(name)))?.execution_id);
    const { size = 0 } = statSync(join(output, name), { throwIfNoEntry: false }) ?? {};
    waiting[executionId] = (waiting[executionId] ?? 0) + size;
  }
  return waiting;
}

test.each([
  ['their cells', false],
  ['their cells and the daemon', true],
])('what readers of pipes have not taken is gone with %s', async (_, withDaemon) => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const flood = async (executionId: string, language: 'javascript' | 'python', isolation?: 'process') => {
    const [stdout = '', stderr = ''] = ['out', 'err'].map((name) => join(node.root, `${executionId}.${name}`));
    execFileSync('mkfifo', [stdout, stderr]);
    const reader = openSync(stdout, constants.O_RDONLY | constants.O_NONBLOCK);
    openReaders.push(reader, openSync(stderr, constants.O_RDONLY | constants.O_NONBLOCK));
    const outputFiles = { stdout, stderr, maxFiles: 0, maxFileBytes: 0 };
    const code = FLOODS[language];
    await node.client.executeSnippet({ sessionId: 's', executionId, language, isolation, code, outputFiles });
    await eventually('all of it waits', () => (waitingForReaders(node)[executionId] ?? 0) >= 5 * 2 ** 20);
    return reader;
  };
  const openReaders: number[] = [];
  await flood('thread', 'javascript');
  await flood('process', 'javascript', 'process');
  await flood('python', 'python');
  // The rest of one that was forced follows for as long as somebody reads.
  const slow = await flood('forced', 'javascript');
  const page = Buffer.alloc(4096);
  const reading = setInterval(() => {
    try {
      readSync(slow, page);
    } catch {
      // There is nothing in it now.
    }
  }, 50);
  await node.client.cancelExecution('s', 'forced', { graceMs: 0 });
  await node.client.wait('s', 'forced');

  if (withDaemon) await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  if (withDaemon) await node.start();

  for (const executionId of ['thread', 'process', 'python']) {
    const { result } = await node.client.wait('s', executionId);
    expect(result?.reason, executionId).toBe(withDaemon ? 'daemon_lost' : 'cell_lost');
    expect(waitingForReaders(node)).not.toHaveProperty(executionId);
  }
  await eventually('nothing of the forced one is left either', () => waitingForReaders(node).forced === undefined);
  clearInterval(reading);
  for (const fd of openReaders) closeSync(fd);
});
