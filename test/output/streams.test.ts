import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OutputChunk } from '../../src/output/output-files.ts';
import { all, TestClient } from '../support/client.ts';
import { TestDaemon, type TestExecution, type TestSession } from '../support/daemon.ts';

let node: TestDaemon;
let session: TestSession;
let client: TestClient;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
  client = new TestClient(`unix:${node.endpoints.socket}`);
});
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await node[Symbol.asyncDispose]();
});

type Options = Parameters<TestDaemon['daemon']['streamOutput']>[2];

async function chunksOf({ sessionId, executionId }: TestExecution, options: Options = {}): Promise<OutputChunk[]> {
  return Array.fromAsync(node.daemon.streamOutput(sessionId, executionId, options));
}

const bytesOf = (chunks: OutputChunk[], stream: 'stdout' | 'stderr') =>
  Buffer.concat(chunks.filter((chunk) => chunk.stream === stream).map(({ data }) => data));

/** Positions of each stream follow each other without gap or overlap. */
function expectSeamless(chunks: OutputChunk[], from = { stdout: 0, stderr: 0 }): void {
  const next = { ...from };
  for (const { stream, position, data } of chunks) {
    expect(position).toBe(next[stream]);
    next[stream] += data.byteLength;
  }
}

test('both streams come in the order they were written in', async () => {
  const execution = await session.submit(
    "for (let i = 0; i < 200; i += 1) { process.stdout.write('o' + i + ';'); process.stderr.write('e' + i + ';'); }",
  );

  const chunks = await chunksOf(execution);

  const expected = Array.from({ length: 200 }, (_, i) => `o${i};e${i};`).join('');
  expect(Buffer.concat(chunks.map(({ data }) => data)).toString()).toBe(expected);
  expectSeamless(chunks);
});

test('one stream of the two can be read alone', async () => {
  const execution = await session.submit("console.log('out'); console.error('err'); console.log('out again');");

  const out = await chunksOf(execution, { streams: ['stdout'] });
  const err = await chunksOf(execution, { streams: ['stderr'] });

  expect(out.every(({ stream }) => stream === 'stdout')).toBe(true);
  expect(bytesOf(out, 'stdout').toString()).toBe('out\nout again\n');
  expect(bytesOf(err, 'stderr').toString()).toBe('err\n');
});

test('a reader that resumes at any position gets exactly the rest', async () => {
  const execution = await session.submit(
    "for (let i = 0; i < 50; i += 1) { process.stdout.write('out' + i); process.stderr.write('err' + i); }",
  );
  const whole = await chunksOf(execution);
  const [out, err] = [bytesOf(whole, 'stdout'), bytesOf(whole, 'stderr')];

  for (const [stdoutPosition, stderrPosition] of [
    [1, 0],
    [0, 1],
    [7, 100],
    [out.length - 1, err.length - 1],
    [out.length, err.length],
  ] as [number, number][]) {
    const rest = await chunksOf(execution, { stdoutPosition, stderrPosition });
    expect(bytesOf(rest, 'stdout')).toEqual(out.subarray(stdoutPosition));
    expect(bytesOf(rest, 'stderr')).toEqual(err.subarray(stderrPosition));
    expectSeamless(rest, { stdout: stdoutPosition, stderr: stderrPosition });
  }
});

test.each([
  ['javascript', "process.stdin.on('data', (data) => process.stdout.write('got ' + data)); console.log('ready');"],
  [
    'python',
    'import sys\nprint("ready", flush=True)\nfor line in sys.stdin:\n    print("got " + line, end="", flush=True)',
  ],
])('a follower of a running %s program has each line as it is written, and its end', async (language, code) => {
  const execution = await session.submit({ language, code, stdin: true });
  const { sessionId, executionId } = execution;
  const chunks: OutputChunk[] = [];
  let text = '';
  for await (const chunk of node.daemon.streamOutput(sessionId, executionId)) {
    chunks.push(chunk);
    text += chunk.data.toString();
    // Each line is only written after the one before has been read here.
    if (text === 'ready\n') await execution.write('one\n');
    else if (text === 'ready\ngot one\n') await execution.write('two\n', true);
  }

  expect(text).toBe('ready\ngot one\ngot two\n');
  expectSeamless(chunks);
  expect((await execution.end()).result.reason).toBe('completed');
});

test('without follow a stream ends with what there is, also while the program runs', async () => {
  const execution = await session.ready("setInterval(() => {}, 1000); console.log('ready');");

  expect(bytesOf(await chunksOf(execution, { follow: false }), 'stdout').toString()).toBe('ready\n');
  expect((await execution.snapshot()).state).toBe('running');
  await execution.cancel({ graceMs: 0 });
});

test('the output of what waits for a place is empty, and a follower waits for it', async () => {
  await using small = await TestDaemon.start({ maxRunning: 1 });
  const queue = await small.session();
  const holder = await queue.ready("setInterval(() => {}, 1000); console.log('ready');");
  const waiting = await queue.submit("console.log('at last')");

  expect(await waiting.output()).toEqual({ stdout: '', stderr: '' });
  const following = waiting.printed('at last');
  await holder.cancel({ graceMs: 0 });
  expect(await following).toBe('at last\n');
});

test.each([
  ['javascript', 'process.stdout.write(Buffer.from(Array.from({ length: 65536 }, (_, i) => (i * 7) % 256)))'],
  ['python', 'import sys\nsys.stdout.buffer.write(bytes((i * 7) % 256 for i in range(65536)))'],
])('bytes of a %s program arrive as they are', async (language, code) => {
  const execution = await session.submit({ language, code });

  const bytes = bytesOf(await chunksOf(execution), 'stdout');

  expect(bytes.equals(Buffer.from(Array.from({ length: 65_536 }, (_, i) => (i * 7) % 256)))).toBe(true);
});

test('NUL and invalid UTF-8 become valid text in a status, and stay bytes in the stream', async () => {
  const execution = await session.submit(
    "process.stdout.write(Buffer.from([0x61, 0, 0xff, 0xfe, 0xc3, 0x28, 0xed, 0xa0, 0x80, 0x62]));process.stderr.write('\\0')",
  );
  await execution.end();

  const status = await client.status(execution.sessionId, execution.executionId);

  expect(status.stdout.startsWith('a\0\ufffd')).toBe(true);
  expect(status.stdout.endsWith('b')).toBe(true);
  expect(status.stderr).toBe('\0');
  expect(Buffer.from(status.stdout).toString()).toBe(status.stdout);
  expect(status.stdoutBytes).toBe(10n);
  expect([...bytesOf(await chunksOf(execution), 'stdout')]).toEqual([
    0x61, 0, 0xff, 0xfe, 0xc3, 0x28, 0xed, 0xa0, 0x80, 0x62,
  ]);
});

test('the text of a status ends where the status says, also while the guest writes', async () => {
  const execution = await session.submit("for (;;) process.stdout.write('a line of a guest that writes on and on\\n')");
  await execution.printed('\n');

  const seen = new Set<bigint>();
  while (seen.size < 100) {
    const status = await client.status(execution.sessionId, execution.executionId);
    expect(Number(status.stdoutPosition) + status.stdout.length).toBe(Number(status.stdoutBytes));
    seen.add(status.stdoutBytes);
  }

  await execution.cancel({ graceMs: 0 });
});

test.each([
  ['of three-byte characters', "'\u20ac'"],
  ['of four-byte characters', "'\ud83d\ude00'"],
  ['of bytes that are no UTF-8', 'Buffer.from([0xff])'],
])('a status reply with much output %s stays below 4 MiB, with positions that are right', async (_, unit) => {
  const execution = await session.submit(`
    const unit = Buffer.from(${unit});
    const chunk = Buffer.concat(new Array(50000).fill(unit));
    process.stdout.write('x');
    for (let i = 0; i < 120; i += 1) { process.stdout.write(chunk); process.stderr.write(chunk); }`);
  await execution.end();
  // The limit of grpc-go clients, whatever grpc-js would take.
  await using strict = new TestClient(`unix:${node.endpoints.socket}`, {
    'grpc.max_receive_message_length': 4 * 1024 * 1024,
  });

  const status = await strict.status(execution.sessionId, execution.executionId);
  const out = bytesOf(await chunksOf(execution), 'stdout');

  expect(status.stdoutBytes).toBe(BigInt(out.length));
  expect(status.stdout.length).toBeGreaterThan(10_000);
  if (!unit.startsWith('Buffer')) {
    // No character was cut, and what is shown is what lies at the position that is told.
    expect(status.stdout).not.toContain('\ufffd');
    expect(out.subarray(Number(status.stdoutPosition)).toString()).toBe(status.stdout);
  }
});

test('a reader that does not read stalls no program', async () => {
  const execution = await session.submit(`
    const chunk = 'x'.repeat(65536);
    for (let i = 0; i < 512; i += 1) process.stdout.write(chunk);
    console.error('all written');`);
  const { sessionId, executionId } = execution;
  const stream = client.api.streamExecutionOutput({
    sessionId,
    executionId,
    includeStdout: true,
    includeStderr: false,
    stdoutPosition: 0n,
    stderrPosition: 0n,
    noFollow: false,
  });
  stream.on('error', () => {});
  stream.pause();

  const ended = await execution.end();
  expect(ended.result.reason).toBe('completed');
  expect(ended.stderr).toBe('all written\n');

  let bytes = 0;
  stream.on('data', ({ data }: { data: Buffer }) => {
    bytes += data.byteLength;
  });
  stream.resume();
  await once(stream, 'end');
  expect(bytes).toBe(512 * 65_536);
});

test('several readers of one program each get all of it', async () => {
  const execution = await session.submit("for (let i = 0; i < 1000; i += 1) console.log('line ' + i);");

  const readers = await Promise.all(Array.from({ length: 8 }, () => chunksOf(execution)));

  const expected = Array.from({ length: 1000 }, (_, i) => `line ${i}\n`).join('');
  for (const chunks of readers) {
    expect(bytesOf(chunks, 'stdout').toString()).toBe(expected);
    expectSeamless(chunks);
  }
});

test.each([
  ['javascript', "for (let i = 0; ; i += 1) console.log('line ' + i);"],
  ['python', 'i = 0\nwhile True:\n    print("line", i, flush=True)\n    i += 1'],
])('a %s program killed in the middle of writing leaves an unbroken beginning', async (language, code) => {
  const execution = await session.submit({ language, code });
  const seen = await execution.printed('line 2000\n');

  await execution.cancel({ graceMs: 0 });
  const { stdout } = await execution.end();

  expect(stdout.startsWith(seen)).toBe(true);
  const lines = stdout.split('\n');
  for (const [index, line] of lines.slice(0, -1).entries()) expect(line).toBe(`line ${index}`);
});

test('a Python program that kills itself leaves what it had flushed', async () => {
  const { stdout, result } = await session.run({
    language: 'python',
    code: 'import os, signal\nfor i in range(5000): os.write(1, b"x" * 100 + b"\\n")\nos.kill(os.getpid(), signal.SIGKILL)',
  });

  expect(result).toMatchObject({ reason: 'signaled', exitCode: 137 });
  expect(stdout).toHaveLength(5000 * 101);
});

test('what a child writes to the streams it inherited is the execution output', async () => {
  const javascript = await session.run(
    "require('node:child_process').spawnSync('sh', ['-c', 'echo child; echo wrong >&2'], { stdio: 'inherit' })",
  );
  const python = await session.run({
    language: 'python',
    code: 'import subprocess\nsubprocess.run(["sh", "-c", "echo child; echo wrong >&2"])',
  });

  for (const { stdout, stderr } of [javascript, python]) {
    expect(stdout).toBe('child\n');
    expect(stderr).toBe('wrong\n');
  }
});

test('what a child wrote without any mark is in the stream, in its place as far as that is known', async () => {
  const { stdout, stderr } = await session.run(`
    const { spawnSync } = require('node:child_process');
    spawnSync('sh', ['-c', 'echo first >&2'], { stdio: 'inherit' });
    console.log('second');
    spawnSync('sh', ['-c', 'echo third; echo fourth >&2'], { stdio: 'inherit' });
    console.log('fifth');`);

  expect(stdout).toBe('second\nthird\nfifth\n');
  expect(stderr).toBe('first\nfourth\n');
});

test.each([
  ['javascript', 'process.stdin.pipe(process.stdout)'],
  ['python', 'import shutil, sys\nshutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)'],
])('a %s program reads its input byte for byte, and its end', async (language, code) => {
  const execution = await session.submit({ language, code, stdin: true });
  const sent = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 31) % 256));

  await execution.write(sent.subarray(0, 100_000));
  await execution.write(sent.subarray(100_000), true);
  await execution.end();

  expect(bytesOf(await chunksOf(execution), 'stdout').equals(sent)).toBe(true);
});

test.each(['javascript', 'python'])('a %s program without stdin finds it at its end', async (language) => {
  const code =
    language === 'python'
      ? 'import sys\nprint(repr(sys.stdin.read()))'
      : "process.stdin.on('data', () => console.log('data')).on('end', () => console.log('end'));";

  expect((await session.run({ language, code })).stdout).toBe(language === 'python' ? "''\n" : 'end\n');
});

test('a write that the program never reads is answered when it ends', async () => {
  const execution = await session.ready({
    language: 'python',
    stdin: true,
    code: 'import time\nprint("ready", flush=True)\ntime.sleep(600)',
  });

  const written = execution.write(Buffer.alloc(1_000_000));
  await execution.cancel({ graceMs: 0 });

  await written;
  expect((await execution.end()).result.reason).toBe('cancelled');
});

test.each([1e300, -1e300, -1, 9e15])(
  'a time of %d that a guest forges keeps no client from its output',
  async (atMs) => {
    const execution = await session.submit(`
    const fs = require('node:fs');
    console.log('before');
    const { ino } = fs.fstatSync(1);
    const target = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
    const own = fs.readdirSync('/proc/self/fd').map(target)
      .find((path) => path.endsWith('/stdout') && fs.statSync(path).ino === ino);
    fs.appendFileSync(own.replace(/stdout$/, 'marks'), Buffer.from(new Float64Array([${atMs}, 1, 4]).buffer));
    console.log('after');`);
    await execution.end();
    const { sessionId, executionId } = execution;
    const positions = { stdoutPosition: 0n, stderrPosition: 0n };
    const request = {
      sessionId,
      executionId,
      includeStdout: false,
      includeStderr: false,
      noFollow: false,
      ...positions,
    };

    const chunks = await all(client.api.streamExecutionOutput(request));

    expect(Buffer.concat(chunks.map(({ data }) => data)).toString()).toBe('before\nafter\n');
    for (const { timestamp } of chunks) expect(Math.abs(Number(timestamp) - Date.now())).toBeLessThan(3_600_000);
  },
);

test('the times of output do not run backwards and lie within the execution', async () => {
  const execution = await session.submit("for (let i = 0; i < 2000; i += 1) console.log('line ' + i);");
  const { snapshot } = await execution.end();

  const times = (await chunksOf(execution)).map(({ atMs }) => atMs);

  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(times[0]).toBeGreaterThanOrEqual(snapshot.times.acceptedAtMs);
  expect(times.at(-1)).toBeLessThanOrEqual(snapshot.times.exitedAtMs as number);
});
