import { once } from 'node:events';
import { join } from 'node:path';
import {
  credentials,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { expect, onTestFinished, test } from 'vitest';
import type { Command } from '../../src/client/index.ts';
import { ExecutionApiService, HealthResponse } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import {
  DriverClient,
  DriverService,
  ExecTaskStreamingRequest,
  FingerprintResponse,
  FingerprintResponse_HealthState as Health,
  TaskStatsResponse,
} from '../../src/gen/nomad/driver.ts';
import type { PluginConfig } from '../../src/nomad/configuration.ts';
import { NodeDaemon } from '../../src/nomad/node-daemon.ts';
import { execStreaming } from '../../src/plugin/exec.ts';
import { type Fingerprint, fingerprints } from '../../src/plugin/fingerprint.ts';
import { pushes, stream, unary } from '../../src/plugin/rpc.ts';
import { eventually, temporaryDirectory } from '../support/daemon.ts';

const MESSAGES = 500;
const DATA = Buffer.alloc(64 * 1024, 'x');

/** A server of these methods, and its socket. */
async function listening(service: ServiceDefinition, methods: UntypedServiceImplementation): Promise<string> {
  const server = new Server();
  const socket = join(temporaryDirectory(), 's');
  server.addService(service, methods);
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error, port) =>
    error ? reject(error) : resolve(port),
  );
  await promise;
  onTestFinished(() => server.forceShutdown());
  return socket;
}

/** The same with a client of it. */
async function served(methods: UntypedServiceImplementation): Promise<DriverClient> {
  const address = `unix:${await listening(DriverService, methods)}`;
  const client = new DriverClient(address, credentials.createInsecure());
  onTestFinished(() => client.close());
  return client;
}

test('what nodes differ in that are alike otherwise is no part of their class', async () => {
  async function* looks(): AsyncGenerator<Fingerprint> {
    const attributes = { '': 'true', unique: { session_id: 's' } };
    yield { health: Health.HEALTHY, healthDescription: 'Healthy', attributes };
  }

  const [{ attributes = {} } = {}] = await Array.fromAsync(fingerprints('elide', looks()));

  expect(Object.keys(attributes)).toEqual(['driver.elide', 'unique.driver.elide.session_id']);
});

test('what a node no longer has is taken back by an empty value', async () => {
  async function* looks(): AsyncGenerator<Fingerprint> {
    const healthy = { health: Health.HEALTHY, healthDescription: 'Healthy' };
    yield { ...healthy, attributes: { version: '1', language: { python: '3.12', javascript: '26' } } };
    yield { health: Health.UNDETECTED, healthDescription: 'no daemon answers' };
    yield { ...healthy, attributes: { version: '1', language: { javascript: '26' } } };
  }
  const driver = await served({ fingerprint: stream(() => fingerprints('elide', looks())) });

  const told = [];
  for await (const { attributes } of driver.fingerprint({}) as AsyncIterable<FingerprintResponse>) {
    told.push(Object.fromEntries(Object.entries(attributes).map(([name, { value }]) => [name, value?.value])));
  }

  const [version, python, javascript] = ['version', 'language.python', 'language.javascript'].map(
    (name) => `driver.elide.${name}`,
  ) as [string, string, string];
  expect(told).toEqual([
    { [version]: '1', [python]: '3.12', [javascript]: '26' },
    { [version]: '', [python]: '', [javascript]: '' },
    { [version]: '1', [python]: '', [javascript]: '26' },
  ]);
});

test('a host that does not read is sent no more messages than there is room for, and all of them once it does', async () => {
  let made = 0;
  async function* messages() {
    for (; made < MESSAGES; made += 1) yield FingerprintResponse.fromPartial({ healthDescription: DATA.toString() });
  }
  const driver = await served({ fingerprint: stream(messages) });
  const call = driver.fingerprint({}).pause();

  await eventually('some are made', () => made > 0);
  expect(made).toBeLessThan(MESSAGES / 2);

  let read = 0;
  for await (const _ of call) read += 1;
  expect(read).toBe(MESSAGES);
});

test.each([false, true])(
  'nor is one of what a command writes (tty %s), which ends when the host leaves',
  async (tty) => {
    let [made, ended] = [0, false];
    async function* run(signal: AbortSignal) {
      try {
        for (; made < MESSAGES; made += 1)
          yield { stream: 'stdout', position: made * DATA.length, atMs: 0, data: DATA };
        return undefined;
      } finally {
        ended = signal.aborted;
      }
    }
    const driver = await served({
      execTaskStreaming: execStreaming((...[, , { signal }]) => ({ run: () => run(signal) }) as unknown as Command),
    });
    const call = driver.execTaskStreaming().pause();
    call.on('error', () => {});
    call.write({ setup: { taskId: 't', command: ['x'], tty }, stdin: undefined, ttySize: undefined });

    await eventually('some is written', () => made > 0);
    expect(made).toBeLessThan(MESSAGES / 2);
    call.cancel();
    await eventually('the command has ended', () => ended);
    expect(made).toBeLessThan(MESSAGES);
  },
);

/** An exec of a command that takes its input so; the handler's signal, and how many messages have left the client. */
async function fedWith(write: () => Promise<void>) {
  const started = Promise.withResolvers<AbortSignal>();
  async function* run(signal: AbortSignal) {
    started.resolve(signal);
    yield await once(signal, 'abort');
  }
  const execTaskStreaming = execStreaming(
    (...[, , { signal }]) => ({ run: () => run(signal), write }) as unknown as Command,
  );
  const driver = await served({ execTaskStreaming, init: unary(async () => ({})) });
  const call = driver.execTaskStreaming();
  call.on('error', () => {});
  call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: 't', command: ['x'] } }));
  const fed = { driver, call, sent: 0, signal: await started.promise };
  for (let count = 0; count < MESSAGES; count += 1) {
    call.write(ExecTaskStreamingRequest.fromPartial({ stdin: { data: DATA } }), () => {
      fed.sent += 1;
    });
  }
  return fed;
}

test('of what is written to a command no more is read than it takes, and all of it once it does', async () => {
  const taking = Promise.withResolvers<void>();
  let [pending, most, taken] = [0, 0, 0];
  const fed = await fedWith(async () => {
    pending += 1;
    most = Math.max(most, pending);
    await taking.promise;
    pending -= 1;
    taken += 1;
  });
  await eventually('it is given some', () => pending > 0);
  for (let round = 0; round < 50; round += 1) {
    await new Promise((resolve) => fed.driver.init({}, resolve));
  }

  expect(most).toBe(1);
  expect(fed.sent).toBeLessThan(MESSAGES / 2);
  taking.resolve();
  await eventually('it is given all', () => taken === MESSAGES);
  expect(most).toBe(1);
  fed.call.cancel();
});

test('a command that takes nothing ends when the host leaves', async () => {
  const { call, signal } = await fedWith(() => new Promise(() => {}));
  await new Promise(setImmediate);

  call.cancel();

  await eventually('it is told', () => signal.aborted);
});

test('of what is pushed, that is left out which it does not read, and later there is room again', async () => {
  const message = (id: string) => TaskStatsResponse.fromPartial({ stats: { id: id.padEnd(DATA.length) } });
  const pushed = Promise.withResolvers<(message: TaskStatsResponse) => void>();
  const taskStats = pushes(async (_request: unknown, push: (message: TaskStatsResponse) => void) => {
    pushed.resolve(push);
    await new Promise(() => {});
  });
  const driver = await served({ taskStats });
  const call = driver.taskStats({ taskId: 't', collectionInterval: undefined });
  call.on('error', () => {});
  const ids: string[] = [];
  call.on('data', ({ stats }: TaskStatsResponse) => ids.push(stats?.id.trim() ?? ''));
  const push = await pushed.promise;
  // A client that has never read takes all there is.
  push(message('first'));
  await eventually('it has read', () => ids.length === 1);
  call.pause();

  for (let count = 0; count < MESSAGES; count += 1) {
    push(message(String(count)));
    await new Promise(setImmediate);
  }
  call.resume();
  await eventually('it is heard again', () => {
    push(message('late'));
    return ids.includes('late');
  });

  const early = ids.slice(1).filter((id) => id !== 'late');
  expect(early).toEqual(early.map((_, index) => String(index)));
  expect(early.length).toBeGreaterThan(0);
  expect(early.length).toBeLessThan(MESSAGES / 2);
});

test('a daemon that does not open the session is unhealthy', async () => {
  const health = unary(async () => HealthResponse.fromPartial({ healthy: true }));
  const createSession = unary(() => new Promise(() => {}));
  const node = new NodeDaemon();
  const leaving = new AbortController();
  onTestFinished(() => leaving.abort());
  const daemon_socket = await listening(ExecutionApiService, { health, createSession });
  node.configure({ daemon_socket } as PluginConfig, undefined, undefined);
  onTestFinished(() => node.client.close());

  const { value } = await node.fingerprint(leaving.signal).next();

  expect(value).toMatchObject({ health: Health.UNHEALTHY, healthDescription: expect.stringMatching(/deadline/i) });
});
