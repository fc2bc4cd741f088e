import { once } from 'node:events';
import { statSync } from 'node:fs';
import { connect } from 'node:http2';
import { createConnection } from 'node:net';
import { promisify } from 'node:util';
import { queryObjects } from 'node:v8';
import { BinaryWriter } from '@bufbuild/protobuf/wire';
import { Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import {
  ExecutionStatus,
  type ExecutionStatusEvent,
  ExitReason,
  LadderRung,
  LifecycleState,
  SessionStatus,
  type StreamExecutionOutputResponse,
  WaitExecutionRequest,
  type WaitExecutionResponse,
} from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import {
  type HealthCheckRequest,
  type HealthCheckResponse,
  HealthCheckResponse_ServingStatus,
  HealthClient,
} from '../../src/gen/grpc/health/v1/health.ts';
import { VERSION } from '../../src/version.ts';
import { all, type SnippetRequest, TestClient } from '../support/client.ts';
import { TestDaemon } from '../support/daemon.ts';

let node: TestDaemon;
let client: TestClient;
let sessionId: string;
let sessions = 0;
beforeAll(async () => {
  node = await TestDaemon.start({ tcp: '127.0.0.1:0' });
  client = new TestClient(`unix:${node.endpoints.socket}`);
});
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await node[Symbol.asyncDispose]();
});
beforeEach(async () => {
  sessions += 1;
  sessionId = `session-${sessions}`;
  await client.createSession(sessionId);
});

test('CreateSession twice with one configuration answers alike, with another it is refused', async () => {
  const config = { contextPoolSize: 3, enabledLanguages: ['python', 'javascript'], memoryLimitMb: 512n };
  const first = await client.createSession('twice', config);
  const second = await client.createSession('twice', config);

  expect(first).toMatchObject({ sessionId: 'twice', status: SessionStatus.ACTIVE });
  expect(second).toEqual(first);
  await expect(client.createSession('twice', { ...config, contextPoolSize: 4 })).rejects.toMatchObject({
    code: 'ALREADY_EXISTS',
    details: expect.stringContaining('"twice"'),
  });
  expect(await client.call('getSession', { sessionId: 'twice' })).toMatchObject({
    sessionId: 'twice',
    status: SessionStatus.ACTIVE,
    config,
    state: LifecycleState.RUNNING,
    createdAt: (first as { createdAt: bigint }).createdAt,
  });
});

test('GetSession of a deleted session is an error, and so is a second DeleteSession', async () => {
  expect(await client.call('deleteSession', { sessionId })).toEqual({ success: true });

  await expect(client.call('getSession', { sessionId })).rejects.toMatchObject({ code: 'NOT_FOUND' });
  await expect(client.call('deleteSession', { sessionId })).rejects.toMatchObject({
    code: 'NOT_FOUND',
    details: expect.stringContaining(sessionId),
  });
});

test('ids may hold what clients put in them: slashes, spaces, dots, other scripts', async () => {
  for (const executionId of ['a1b2/task name/0f9d', '../../../etc', '日本語 ☃', "'; drop table --", '__proto__', '.']) {
    await client.execute({ sessionId, executionId, code: "console.log('ok')" });
    expect(await client.ended(sessionId, executionId)).toMatchObject({ executionId, stdout: 'ok\n', complete: true });
  }
  const odd = '../a/b c/__proto__';
  await client.createSession(odd);
  await client.execute({ sessionId: odd, executionId: 'x', code: '0' });
  expect(await client.ended(odd, 'x')).toMatchObject({ sessionId: odd, complete: true });
});

test('ExecuteSnippet answers while the snippet has yet to run', async () => {
  const answer = await client.execute({ sessionId, executionId: 'slow', code: 'setInterval(() => {}, 1000)' });
  const now = await client.status(sessionId, 'slow');

  expect(answer).toMatchObject({ executionId: 'slow', sessionId });
  expect([ExecutionStatus.QUEUED, ExecutionStatus.RUNNING]).toContain((answer as { status: ExecutionStatus }).status);
  expect(now).toMatchObject({ complete: false, exitCode: 0, error: '', timedOut: false, result: undefined });
  expect(
    await client.call('cancelExecution', { sessionId, executionId: 'slow', signal: 'KILL', timeoutSeconds: 0 }),
  ).toMatchObject({ success: true });
});

test('the same request again is the same execution, another one under its id is refused', async () => {
  const request = { sessionId, executionId: 'once', code: 'console.log(1)', env: { A: '1', B: '2' }, args: ['x'] };
  await client.execute(request);
  await client.ended(sessionId, 'once');

  expect(await client.execute({ ...request, env: { B: '2', A: '1' } })).toMatchObject({
    executionId: 'once',
    status: ExecutionStatus.COMPLETED,
  });
  expect((await client.status(sessionId, 'once')).stdout).toBe('1\n');
  const others: Partial<SnippetRequest>[] = [
    { code: 'console.log(2)' },
    { args: ['y'] },
    { env: { A: '2', B: '2' } },
    { language: 'typescript' },
    { config: { timeoutMs: 1000n } },
  ];
  for (const other of others) {
    await expect(client.execute({ ...request, ...other })).rejects.toMatchObject({
      code: 'ALREADY_EXISTS',
      details: expect.stringContaining('"once"'),
    });
  }
});

test('one id in two sessions is two executions', async () => {
  await client.createSession('other');
  await client.execute({ sessionId, executionId: 'same', code: 'console.log(1)' });
  await client.execute({ sessionId: 'other', executionId: 'same', code: 'console.log(2)' });

  expect((await client.ended(sessionId, 'same')).stdout).toBe('1\n');
  expect((await client.ended('other', 'same')).stdout).toBe('2\n');
});

test('finished executions stay queryable when their session is deleted, and when it is created again', async () => {
  await client.execute({ sessionId, executionId: 'kept', code: "console.log('kept')" });
  const before = await client.ended(sessionId, 'kept');

  await client.call('deleteSession', { sessionId });
  expect(await client.status(sessionId, 'kept')).toEqual(before);
  await client.createSession(sessionId);
  expect(await client.status(sessionId, 'kept')).toEqual(before);
  await expect(client.execute({ sessionId, executionId: 'kept', code: '0' })).rejects.toMatchObject({
    code: 'ALREADY_EXISTS',
  });
});

test.each([
  ['completed', '0', { status: ExecutionStatus.COMPLETED, exitCode: 0, error: '', reason: ExitReason.COMPLETED }],
  ['failed', 'process.exit(3)', { status: ExecutionStatus.FAILED, exitCode: 3, error: '', reason: ExitReason.FAILED }],
  [
    'failed by a throw',
    "throw new Error('x')",
    { status: ExecutionStatus.FAILED, exitCode: 1, error: '', reason: ExitReason.FAILED },
  ],
])('the status of an execution that %s has what first clients rely on', async (_, code, expected) => {
  await client.execute({ sessionId, executionId: 'x', code });
  const found = await client.ended(sessionId, 'x');

  const { reason, ...rest } = expected;
  expect(found).toMatchObject({ ...rest, complete: true, timedOut: false, state: LifecycleState.EXITED });
  expect(found.result).toMatchObject({ reason, exitCode: expected.exitCode, rung: LadderRung.UNSPECIFIED });
  expect(found.language).toBe('javascript');
});

test('the status of a cancelled execution is CANCELLED without an error, of a timed out one FAILED with one', async () => {
  await client.execute({ sessionId, executionId: 'c', code: 'setInterval(() => {}, 1000)' });
  await client.execute({
    sessionId,
    executionId: 't',
    code: 'for (;;);',
    config: { timeoutMs: 100n, graceMs: 50_000n },
  });

  await client.call('cancelExecution', { sessionId, executionId: 'c', signal: '', timeoutSeconds: 30 });

  expect(await client.ended(sessionId, 'c')).toMatchObject({
    status: ExecutionStatus.CANCELLED,
    complete: true,
    error: '',
  });
  expect(await client.ended(sessionId, 't')).toMatchObject({
    status: ExecutionStatus.FAILED,
    complete: true,
    exitCode: 143,
    timedOut: true,
    error: 'a time limit passed',
    rung: LadderRung.GRACEFUL,
  });
});

test('CancelExecution of what is finished or unknown answers success=false, not an error', async () => {
  await client.execute({ sessionId, executionId: 'done', code: '0' });
  await client.ended(sessionId, 'done');

  for (const executionId of ['done', 'never']) {
    const request = { sessionId, executionId, signal: '', timeoutSeconds: 0 };
    expect(await client.call('cancelExecution', request)).toMatchObject({
      success: false,
      message: expect.stringContaining(executionId),
    });
  }
});

test('WatchExecution tells every event in order without gaps, from any sequence on, and ends', async () => {
  await client.execute({
    sessionId,
    executionId: 'w',
    code: "process.on('SIGTERM', () => {}); for (;;);",
    // By then it hears the signal.
    config: { timeoutMs: 4_000n, graceMs: 50n },
  });
  const watch = (fromSequence: bigint) =>
    all<ExecutionStatusEvent>(client.api.watchExecution({ sessionId, executionId: 'w', fromSequence }));

  const live = await watch(0n);

  expect(live.map(({ sequence }) => sequence)).toEqual([1n, 2n, 3n, 4n, 5n]);
  expect(live.map(({ state }) => state)).toEqual([
    LifecycleState.PENDING,
    LifecycleState.RUNNING,
    LifecycleState.SIGNALED,
    LifecycleState.SIGNALED,
    LifecycleState.EXITED,
  ]);
  expect(live.map(({ complete }) => complete)).toEqual([false, false, false, false, true]);
  expect(live.at(-1)?.result).toMatchObject({ reason: ExitReason.TIMED_OUT, exitCode: 137, signal: 'SIGKILL' });
  expect(await watch(4n)).toEqual(live.slice(3));
  expect(await watch(5n)).toEqual(live.slice(4));
  expect(await watch(6n)).toEqual([]);
  await expect(watch(7n)).rejects.toMatchObject({
    code: status.OUT_OF_RANGE,
    details: 'execution "w" has 5 status events; sequence 7 is in the future',
  });
  const times = live.map(({ timestamp }) => timestamp);
  expect(times).toEqual([...times].sort());
});

test('WaitExecution answers when the execution has ended, or false when its limit passes first', async () => {
  await client.execute({
    sessionId,
    executionId: 'x',
    code: "process.stdin.on('end', () => {}).resume()",
    config: { stdin: true },
  });

  const early = (await client.call('waitExecution', {
    sessionId,
    executionId: 'x',
    timeoutMs: 50n,
  })) as WaitExecutionResponse;
  const waiting = client.call('waitExecution', { sessionId, executionId: 'x' });
  await client.call('writeExecutionInput', { sessionId, executionId: 'x', data: Buffer.from(''), end: true });
  const late = (await waiting) as WaitExecutionResponse;

  expect(early.complete).toBe(false);
  expect(early.execution?.result).toBeUndefined();
  expect(late).toMatchObject({ complete: true, execution: { executionId: 'x', status: ExecutionStatus.COMPLETED } });
});

test('waits that are over leave nothing in the daemon until their limit passes', async () => {
  const config = { stdin: true };
  await client.execute({ sessionId, executionId: 'x', code: "process.stdin.on('end', () => {}).resume()", config });
  const signals = () => queryObjects(AbortSignal, { format: 'count' }) as number;
  const before = signals();
  const waits = Array.from({ length: 100 }, () =>
    client.call('waitExecution', { sessionId, executionId: 'x', timeoutMs: 3_600_000n }),
  );

  await client.call('writeExecutionInput', { sessionId, executionId: 'x', data: Buffer.from(''), end: true });
  await Promise.all(waits);

  await vi.waitFor(() => expect(signals()).toBeLessThan(before + 50), 30_000);
}, 180_000);

test('input whose call is cancelled while its execution waits for a place is never read', async () => {
  await using busy = await TestDaemon.start({ maxRunning: 1 });
  await using caller = new TestClient(`unix:${busy.endpoints.socket}`);
  const session = await busy.session();
  const holder = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const waiting = await session.submit({ code: 'process.stdin.pipe(process.stdout)', stdin: true });
  const { executionId } = waiting;
  const written = vi.spyOn(busy.daemon, 'writeInput');

  const request = { sessionId: session.sessionId, executionId, data: Buffer.from('cancelled '), end: false };
  const call = caller.api.writeExecutionInput(request, () => {});
  await vi.waitFor(() => expect(written).toHaveBeenCalled(), 30_000);
  call.cancel();
  await vi.waitFor(() => expect(written.mock.settledResults).toMatchObject([{ type: 'rejected' }]), 30_000);
  await holder.cancel({ graceMs: 0 });
  await waiting.write('taken', true);

  expect((await waiting.end()).stdout).toBe('taken');
});

/** Some executions by their ids, and where the next page begins: empty on the last. */
async function page(request: { sessionId: string; pageSize: number; pageToken: string }) {
  const { executions, nextPageToken } = (await client.call('listExecutions', request)) as {
    executions: { executionId: string }[];
    nextPageToken: string;
  };
  expect(executions.length).toBeLessThanOrEqual(request.pageSize);
  return { ids: executions.map(({ executionId }) => executionId), nextPageToken };
}

test('a page of long ids has no more of them than a client takes that sets no limit', async () => {
  await client.execute({ sessionId, executionId: 'one', code: '0' });
  await client.call('waitExecution', { sessionId, executionId: 'one' });
  const one = await node.daemon.getExecution(sessionId, 'one');
  const ids = Array.from({ length: 1500 }, (_, index) => `${index}`.padStart(1024));
  // As if there were so many.
  const pages = vi.spyOn(node.daemon, 'pageOfExecutions').mockImplementation(async (_, range) => {
    const { after = 0, size = ids.length } = range ?? {};
    const executions = ids
      .slice(after, after + size)
      .map((executionId) => ({ ...one, executionId, sessionId: executionId }));
    return { executions, next: after + size < ids.length ? after + size : undefined };
  });
  onTestFinished(() => pages.mockRestore());

  const found: string[] = [];
  let pageToken = '';
  do {
    const { ids: some, nextPageToken } = await page({ sessionId: '', pageSize: 1000, pageToken });
    found.push(...some);
    pageToken = nextPageToken;
  } while (pageToken !== '');

  expect(found).toEqual(ids);
});

test('lists page through executions, oldest first, and leave out none for what is released meanwhile', async () => {
  const other = `${sessionId} too`;
  await client.call('createSession', { sessionId: other });
  const ids = Array.from({ length: 6 }, (_, index) => `e${index}`);
  for (const [index, executionId] of ids.entries()) {
    const of = { sessionId: index % 2 === 0 ? sessionId : other, executionId };
    await client.execute({ ...of, code: '0' });
    await client.call('waitExecution', of);
  }

  for (const released of ['', 'e0', 'e2']) {
    const found: string[] = [];
    for (let pageToken = '', pages = 0; pages < 100; pages += 1) {
      const { ids: some, nextPageToken } = await page({ sessionId: '', pageSize: 1, pageToken });
      found.push(...some);
      if (some.includes('e2') && released !== '') {
        await client.call('releaseExecution', { sessionId, executionId: released });
      }
      if (nextPageToken === '') break;
      pageToken = nextPageToken;
    }
    expect(found.filter((executionId) => ids.includes(executionId))).toEqual(released === 'e2' ? ids.slice(1) : ids);
  }
  await expect(
    client.call('listExecutions', { sessionId: 'nowhere', pageSize: 0, pageToken: '' }),
  ).rejects.toMatchObject({ code: 'NOT_FOUND' });
  expect(await client.call('listSessions', {})).toMatchObject({
    sessions: expect.arrayContaining([expect.objectContaining({ sessionId })]),
  });
});

test('Health answers with the version, on the socket and over TCP', async () => {
  await using tcp = new TestClient(node.endpoints.tcp as string);

  const { maxRunning, maxQueuedInAll: maxQueued } = node.daemon.config;
  expect(await client.call('health', {})).toEqual({ healthy: true, version: VERSION, maxRunning, maxQueued });
  expect(await tcp.call('health', {})).toMatchObject({ healthy: true, version: VERSION });
  expect(node.endpoints.tcp).toMatch(/^127\.0\.0\.1:[1-9]\d*$/);
});

test('the socket is its owner alone', () => {
  const found = statSync(node.endpoints.socket as string);

  expect(found.isSocket()).toBe(true);
  expect(found.mode & 0o777).toBe(0o600);
});

test('ListLanguages tells what the node has', async () => {
  const { languages } = (await client.call('listLanguages', {})) as {
    languages: { name: string; available: boolean }[];
  };

  expect(languages.map(({ name }) => name)).toEqual(['javascript', 'typescript', 'python']);
  expect(languages.every(({ available }) => available)).toBe(true);
});

test('languages may be called by their aliases', async () => {
  for (const [language, proper] of [
    ['js', 'javascript'],
    ['TS', 'typescript'],
    ['py', 'python'],
  ] as const) {
    const code = proper === 'python' ? 'print(1)' : 'console.log(1)';
    await client.execute({ sessionId, executionId: language, code, language });
    expect(await client.ended(sessionId, language)).toMatchObject({ language: proper, stdout: '1\n' });
  }
});

test.each(['', 'elide.daemon.v1alpha1.ExecutionApi'])('grpc.health.v1 says that "%s" serves', async (service) => {
  const request = new BinaryWriter().uint32(10).string(service).finish();

  const answer = await rawBytes('/grpc.health.v1.Health/Check', Buffer.from(request));

  // Field 1, a varint: SERVING.
  expect([...answer]).toEqual([8, 1]);
});

test('grpc.health.v1 does not know what is not served', async () => {
  const request = new BinaryWriter().uint32(10).string('some.other.Service').finish();

  await expect(rawBytes('/grpc.health.v1.Health/Check', Buffer.from(request))).rejects.toMatchObject({
    code: status.NOT_FOUND,
  });
});

test('gRPC health knows of a stop when it begins, while guests are still at their end', async () => {
  await using stopping = await TestDaemon.start({ graceMs: 60_000 });
  const session = await stopping.session();
  const code = "process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); console.log('ready');";
  const execution = await session.ready(code);
  const health = new HealthClient(`unix:${stopping.endpoints.socket}`, credentials.createInsecure());
  const check = promisify<HealthCheckRequest, HealthCheckResponse>(health.check.bind(health));

  void stopping.daemon.stop();
  const { status: told } = await check({ service: '' });
  const { state } = await execution.snapshot();
  health.close();

  expect(told).toBe(HealthCheckResponse_ServingStatus.NOT_SERVING);
  expect(state).not.toBe('exited');
});

test.each(['v1', 'v1alpha'])('reflection %s lists the service and describes it', async (version) => {
  const raw = new Client(`unix:${node.endpoints.socket}`, credentials.createInsecure());
  const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;
  const call = raw.makeBidiStreamRequest(
    path,
    (bytes: Buffer) => bytes,
    (bytes) => bytes,
  );
  const ask = (field: number, text: string) =>
    call.write(
      Buffer.from(
        new BinaryWriter()
          .uint32(field * 8 + 2)
          .string(text)
          .finish(),
      ),
    );

  ask(7, '');
  ask(4, 'elide.daemon.v1alpha1.ExecutionApi');
  ask(4, 'elide.daemon.v1alpha1.NoSuchThing');
  call.end();
  const [listed, described, unknown] = (await all(call as never)) as Buffer[];
  raw.close();

  expect(listed?.toString('latin1')).toContain('elide.daemon.v1alpha1.ExecutionApi');
  expect(described?.toString('latin1')).toContain('StreamExecutionOutput');
  expect(unknown?.toString('latin1')).not.toContain('StreamExecutionOutput');
});

test('the authority that a grpc-go client sends for a socket path is taken', async () => {
  const socket = node.endpoints.socket as string;
  for (const authority of [encodeURIComponent(socket), 'localhost', socket.replaceAll('/', '%2F')]) {
    const http2 = connect('http://localhost', { createConnection: () => createConnection(socket) });
    const call = http2.request({
      ':method': 'POST',
      ':path': '/elide.daemon.v1alpha1.ExecutionApi/Health',
      ':authority': authority,
      'content-type': 'application/grpc',
      te: 'trailers',
    });
    const chunks: Buffer[] = [];
    call.on('data', (chunk: Buffer) => chunks.push(chunk));
    const trailers = new Promise<Record<string, unknown>>((resolve, reject) => {
      call.on('trailers', resolve);
      call.on('error', reject);
    });
    call.end(Buffer.alloc(5));
    expect((await trailers)['grpc-status']).toBe('0');
    expect(Buffer.concat(chunks).toString('latin1')).toContain(VERSION);
    http2.close();
  }
});

test.each(['2592000S', '43200M', '720H'])('a deadline of 30 days (%s) has not passed at once', async (deadline) => {
  await client.execute({ sessionId, executionId: 'long', code: 'setInterval(() => {}, 1000)' });
  const socket = node.endpoints.socket as string;
  const http2 = connect('http://localhost', { createConnection: () => createConnection(socket) });
  const message = WaitExecutionRequest.encode({ sessionId, executionId: 'long', timeoutMs: undefined }).finish();
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  const path = '/elide.daemon.v1alpha1.ExecutionApi/WaitExecution';
  const wait = async (timeout: string) => {
    const headers = { ':method': 'POST', ':path': path, 'content-type': 'application/grpc' };
    const call = http2.request({ ...headers, 'grpc-timeout': timeout });
    call.resume().end(Buffer.concat([head, message]));
    // What has no message has its status in the first headers.
    return (await once(call, 'response'))[0]['grpc-status'];
  };

  const waited = wait(deadline);
  expect(await wait('5m')).toBe(`${status.DEADLINE_EXCEEDED}`);
  await client.call('cancelExecution', { sessionId, executionId: 'long', signal: '', timeoutSeconds: 0 });

  expect(await waited).toBeUndefined();
  http2.close();
});

test.each([
  ['a field that is cut off', Buffer.from([0x0a, 0x7f, 0x41])],
  ['an impossible wire type', Buffer.from([0x0f, 0x01, 0x02, 0x03])],
  ['an endless varint', Buffer.alloc(12, 0xff)],
])('a request with %s is INVALID_ARGUMENT', async (_, bytes) => {
  for (const method of ['CreateSession', 'ExecuteSnippet', 'GetExecutionStatus', 'CancelExecution']) {
    const path = `/elide.daemon.v1alpha1.ExecutionApi/${method}`;
    await expect(rawBytes(path, bytes)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
  }
  expect(await client.call('health', {})).toMatchObject({ healthy: true });
});

test.each([
  ['args', 'ExecuteSnippet', Buffer.alloc(2 * 4_000_000, Buffer.from([0x32, 0])), /args has more than 100000 entries/],
  ['env', 'ExecuteSnippet', Buffer.alloc(2 * 100_001, Buffer.from([0x2a, 0])), /env has more than 100000 entries/],
  [
    'enabled languages',
    'CreateSession',
    new BinaryWriter()
      .uint32(0x12)
      .bytes(Buffer.alloc(2 * 4_000_000, Buffer.from([0x12, 0])))
      .finish(),
    /too many fields/,
  ],
])('a request with more %s than are allowed is refused before it is decoded', async (_, method, bytes, why) => {
  const refused = rawBytes(`/elide.daemon.v1alpha1.ExecutionApi/${method}`, Buffer.from(bytes));

  await expect(refused).rejects.toMatchObject({
    code: status.INVALID_ARGUMENT,
    details: expect.stringMatching(why),
  });
});

test('a malformed request of a stream is INVALID_ARGUMENT', async () => {
  const raw = new Client(`unix:${node.endpoints.socket}`, credentials.createInsecure());
  const path = '/elide.daemon.v1alpha1.ExecutionApi/WatchExecution';
  const call = raw.makeServerStreamRequest(
    path,
    (bytes: Buffer) => bytes,
    (bytes) => bytes,
    Buffer.from([0x0a, 0x7f]),
  );

  await expect(all(call)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
  raw.close();
});

test('an unknown field is ignored, an unknown method is UNIMPLEMENTED', async () => {
  const unknownField = Buffer.concat([Buffer.from([0xfa, 0x3e, 0x03]), Buffer.from('new')]);

  expect((await rawBytes('/elide.daemon.v1alpha1.ExecutionApi/Health', unknownField)).toString('latin1')).toContain(
    VERSION,
  );
  await expect(rawBytes('/elide.daemon.v1alpha1.ExecutionApi/Nothing', Buffer.alloc(0))).rejects.toMatchObject({
    code: status.UNIMPLEMENTED,
  });
});

test('a call whose deadline passes leaves nothing waiting', async () => {
  await client.execute({ sessionId, executionId: 'x', code: 'setInterval(() => {}, 1000)' });
  const wait = new Promise((_, reject) => {
    client.api.waitExecution(
      { sessionId, executionId: 'x' },
      new Metadata(),
      { deadline: Date.now() + 100 },
      (error: ServiceError | null) => reject(error),
    );
  });

  await expect(wait).rejects.toMatchObject({ code: status.DEADLINE_EXCEEDED });
  await client.call('cancelExecution', { sessionId, executionId: 'x', signal: 'SIGKILL', timeoutSeconds: 0 });
  expect((await client.ended(sessionId, 'x')).complete).toBe(true);
});

test('an output stream over gRPC is byte for byte what the guest wrote', async () => {
  await client.execute({
    sessionId,
    executionId: 'bytes',
    code: 'process.stdout.write(Buffer.from(Array.from({ length: 256 }, (_, i) => i))); process.stderr.write("err")',
  });
  const request = {
    sessionId,
    executionId: 'bytes',
    includeStdout: false,
    includeStderr: false,
    stdoutPosition: 0n,
    stderrPosition: 0n,
    noFollow: false,
  };

  const chunks = await all<StreamExecutionOutputResponse>(client.api.streamExecutionOutput(request));
  const out = chunks.filter(({ stream }) => stream === 'stdout').map(({ data }) => data);
  const resumed = await all<StreamExecutionOutputResponse>(
    client.api.streamExecutionOutput({ ...request, stdoutPosition: 250n, includeStdout: true }),
  );

  expect([...Buffer.concat(out)]).toEqual(Array.from({ length: 256 }, (_, index) => index));
  expect(resumed.map(({ position, data }) => [position, [...data]])).toEqual([[250n, [250, 251, 252, 253, 254, 255]]]);
});

function rawBytes(path: string, bytes: Buffer): Promise<Buffer> {
  const raw = new Client(`unix:${node.endpoints.socket}`, credentials.createInsecure());
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  raw.makeUnaryRequest(
    path,
    (value: Buffer) => value,
    (value) => value,
    bytes,
    (error, answer) => {
      raw.close();
      if (error === null) resolve(answer as Buffer);
      else reject(error);
    },
  );
  return promise;
}
