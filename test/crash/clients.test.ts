import { getEventListeners, once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  type OutgoingHttpHeaders,
} from 'node:http2';
import { createConnection, createServer, type Socket } from 'node:net';
import { status } from '@grpc/grpc-js';
import { expect, test, vi } from 'vitest';
import { ExecutionRecord } from '../../src/supervisor/execution-record.ts';
import { all, TestClient } from '../support/client.ts';
import { closedAgain, eventually, openDescriptors, TestDaemon, type TestExecution } from '../support/daemon.ts';

/** What HTTP/2 begins with, settings, and a frame of which only the head comes. */
const HALF_A_REQUEST = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x10\x01';
const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

const watchRequest = ({ sessionId, executionId }: TestExecution) => ({ sessionId, executionId, fromSequence: 0n });
const outputRequest = ({ sessionId, executionId }: TestExecution) => ({
  sessionId,
  executionId,
  includeStdout: false,
  includeStderr: false,
  stdoutPosition: 0n,
  stderrPosition: 0n,
  noFollow: false,
});

/** A call about an execution, with its message and without its half-close. */
function rawCall(
  http2: ClientHttp2Session,
  method: string,
  { sessionId, executionId }: TestExecution,
  headers: OutgoingHttpHeaders = {},
): ClientHttp2Stream {
  const call = http2.request({
    ':method': 'POST',
    ':path': `/elide.daemon.v1alpha1.ExecutionApi/${method}`,
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headers,
  });
  call.on('error', () => {});
  const [id, name] = [Buffer.from(sessionId), Buffer.from(executionId)];
  const message = Buffer.concat([Buffer.from([10, id.length]), id, Buffer.from([18, name.length]), name]);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  call.write(Buffer.concat([head, message]));
  return call;
}

test('a client that goes away in the middle of its streams leaves nothing open', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const { sessionId, executionId } = running;
  await running.output();
  const before = openDescriptors();

  for (let round = 0; round < 3; round += 1) {
    const client = new TestClient(`unix:${node.endpoints.socket}`);
    const streams = Array.from({ length: 10 }, (_, index) =>
      index % 2 === 0
        ? client.api.streamExecutionOutput(outputRequest(running))
        : client.api.watchExecution(watchRequest(running)),
    );
    const waits = Array.from({ length: 5 }, () =>
      client.api.waitExecution({ sessionId, executionId }, (error) => expect(error?.code).toBe(status.CANCELLED)),
    );
    for (const stream of streams) stream.on('error', () => {});
    await Promise.all(streams.map((stream) => once(stream, 'data')));
    expect(openDescriptors().length).toBeGreaterThan(before.length);
    for (const stream of streams) stream.cancel();
    for (const wait of waits) wait.cancel();
    client.api.close();
  }

  await closedAgain(before);
  await running.cancel({ graceMs: 0 });
  expect((await running.end()).result.reason).toBe('cancelled');
});

test('a connection that is cut, without a word, ends its streams at the daemon', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const before = openDescriptors();

  const sockets = Array.from({ length: 4 }, () => {
    const socket = createConnection(node.endpoints.socket as string);
    const http2 = connectHttp2('http://localhost', { createConnection: () => socket });
    http2.on('error', () => {});
    const streams = Array.from({ length: 5 }, () => {
      const call = rawCall(http2, 'StreamExecutionOutput', running);
      call.end();
      return once(call, 'data');
    });
    return { socket, streams };
  });
  await Promise.all(sockets.flatMap(({ streams }) => streams));
  expect(openDescriptors().length).toBeGreaterThan(before.length + 4);
  for (const { socket } of sockets) socket.destroy();

  await closedAgain(before);
  expect((await running.snapshot()).state).toBe('running');
});

test('a call whose deadline passes before its half-close is not begun', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  await using client = new TestClient(`unix:${node.endpoints.socket}`);
  await client.call('health', {});
  const waited = vi.spyOn(node.daemon, 'wait');
  const before = openDescriptors();

  const http2 = connectHttp2('http://localhost', {
    createConnection: () => createConnection(node.endpoints.socket as string),
  });
  const answers = Array.from({ length: 10 }, async (_, index) => {
    const method = index % 2 === 0 ? 'StreamExecutionOutput' : 'WaitExecution';
    const call = rawCall(http2, method, running, { 'grpc-timeout': '200m' });
    const [headers] = await once(call, 'response');
    call.end();
    await once(call.resume(), 'close');
    return headers['grpc-status'];
  });
  const statuses = await Promise.all(answers);
  // By then the daemon has seen the ends of the others.
  const last = rawCall(http2, 'StreamExecutionOutput', running);
  last.end();
  await once(last, 'data');
  http2.destroy();

  expect(statuses).toEqual(statuses.map(() => String(status.DEADLINE_EXCEEDED)));
  await closedAgain(before);
  expect(waited).not.toHaveBeenCalled();
});

test('connections that nobody answers on are dropped, with their streams; one that is only quiet stays', async () => {
  await using node = await TestDaemon.start({ keepaliveMs: 4_000 });
  const session = await node.session();
  const running = await session.ready(IDLE);
  const socket = node.endpoints.socket as string;
  await using quiet = new TestClient(`unix:${socket}`);
  const watched = all(quiet.api.watchExecution(watchRequest(running)));
  await quiet.call('health', {});
  const before = openDescriptors();
  // As a network does that is gone: everything is open, and nothing arrives.
  const links: [near: Socket, far: Socket][] = [];
  const network = createServer((near) => {
    const far = createConnection(socket);
    near.pipe(far).pipe(near);
    links.push([near, far]);
  });
  const path = `${node.root}/network.sock`;
  await new Promise<void>((resolve) => network.listen(path, resolve));
  const lost = new TestClient(`unix:${path}`);
  const stream = lost.api.streamExecutionOutput(outputRequest(running));
  stream.on('error', () => {});
  await once(stream, 'data');
  const mute = Array.from({ length: 3 }, () => createConnection(socket));
  for (const each of mute) each.on('error', () => {}).write(HALF_A_REQUEST);

  for (const [near, far] of links) {
    near.unpipe(far);
    far.unpipe(near).resume();
  }
  await Promise.all([...links.map(([, far]) => far), ...mute].map((each) => once(each.resume(), 'close')));

  for (const [near] of links) near.destroy();
  lost.api.close();
  network.close();
  await closedAgain(before);
  await running.cancel({ graceMs: 0 });
  // To its end: pending, running, forced, exited.
  expect((await watched).map(({ sequence }) => sequence)).toEqual([1n, 2n, 3n, 4n]);
});

/** Counts who listens to executions, of those who begin from here on. */
function countListeners(): { count: number } & Disposable {
  const { onEvent } = ExecutionRecord.prototype;
  const spy = vi.spyOn(ExecutionRecord.prototype, 'onEvent');
  const listening = { count: 0, [Symbol.dispose]: () => spy.mockRestore() };
  spy.mockImplementation(function (this: ExecutionRecord, listener) {
    listening.count += 1;
    const stop = onEvent.call(this, listener);
    return () => {
      listening.count -= 1;
      stop();
    };
  });
  return listening;
}

test('an abandoned watch, stream or wait takes its listener along', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);
  const { sessionId, executionId } = running;
  const cancelled = new AbortController();
  const { signal } = cancelled;
  using listening = countListeners();

  const watch = node.daemon.watchExecution(sessionId, executionId, { fromSequence: 3, signal });
  const output = node.daemon.streamOutput(sessionId, executionId, { stdoutPosition: 6, signal });
  const ends = Promise.all([watch.next(), output.next(), node.daemon.wait(sessionId, executionId, { signal })]);
  cancelled.abort();
  const [watched, streamed, waited] = await ends;

  expect(listening.count).toBe(0);
  expect(watched).toEqual({ done: true, value: undefined });
  expect(streamed).toEqual({ done: true, value: undefined });
  expect(waited.state).toBe('running');
});

test.each([
  ['is of what there is', { follow: false }],
  ['is left early', { follow: true }],
])('a read of output that %s takes its listener along', async (_, options) => {
  await using node = await TestDaemon.start();
  const running = await (await node.session()).ready(IDLE);
  const { signal } = new AbortController();
  using listening = countListeners();

  const output = node.daemon.streamOutput(running.sessionId, running.executionId, { ...options, signal });
  for await (const { data } of output) {
    if (options.follow && String(data).includes('ready')) break;
  }

  await eventually('nobody listens any more', () => listening.count === 0);
  expect(getEventListeners(signal, 'abort')).toEqual([]);
  expect((await running.snapshot()).state).toBe('running');
});

test('many sessions that come and go leave nothing open', async () => {
  await using node = await TestDaemon.start();
  const warm = await node.session();
  await warm.run('0');
  await warm.close();
  const before = openDescriptors();

  for (let round = 0; round < 4; round += 1) {
    const sessions = await Promise.all(Array.from({ length: 4 }, () => node.session()));
    await Promise.all(sessions.map((session) => session.run('console.log(1)')));
    await Promise.all(sessions.map((session) => session.close()));
  }

  await closedAgain(before);
  expect(await node.daemon.listSessions()).toEqual([]);
});
