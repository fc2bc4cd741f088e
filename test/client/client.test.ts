import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { ClientError, connectDaemon, type DaemonClient, UnreachableError } from '../../src/client/index.ts';
import {
  AlreadyExistsError,
  FailedPreconditionError,
  InvalidArgumentError,
  NotFoundError,
  OutOfRangeError,
  UnavailableError,
} from '../../src/errors.ts';
import { TestDaemon } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';

let daemon: DaemonProcess;
let client: DaemonClient;

beforeAll(async () => {
  daemon = await DaemonProcess.start();
  client = connectDaemon({ socket: daemon.socket });
  await client.createSession('s');
});
afterAll(async () => {
  client?.close();
  await daemon?.stop();
});

const CLIENT = new URL('../../dist/src/index.js', import.meta.url).href;
const FOREVER = 'console.log("ready"); setInterval(() => {}, 1000)';
const execute = (executionId: string, code: string, more: object = {}) =>
  client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code, ...more });

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe.each(['socket', 'tcp'] as const)('over %s', (kind) => {
  test('an execution goes from accepted to its result', async () => {
    using own = connectDaemon(kind === 'socket' ? { socket: daemon.socket } : { tcp: daemon.tcp });
    const snippet = {
      sessionId: 's',
      executionId: `life-${kind}`,
      language: 'js',
      code: 'console.log("hi"); process.exit(3)',
    };

    await own.executeSnippet(snippet);
    const events = await collect(own.watchExecution('s', snippet.executionId));
    const chunks = await collect(own.streamOutput('s', snippet.executionId));
    const execution = await own.wait('s', snippet.executionId);

    expect(events.map(({ sequence, state }) => [sequence, state])).toEqual([
      [1, 'pending'],
      [2, 'running'],
      [3, 'exited'],
    ]);
    expect(chunks).toEqual([{ stream: 'stdout', position: 0, atMs: expect.any(Number), data: Buffer.from('hi\n') }]);
    expect(execution.result).toEqual({
      reason: 'failed',
      rung: undefined,
      exitCode: 3,
      signal: undefined,
      message: undefined,
      usage: expect.objectContaining({ stdoutBytes: 3, droppedBytes: 0 }),
    });
    expect(execution).toEqual(expect.objectContaining({ language: 'javascript', state: 'exited', pid: 0 }));
  });
});

describe('errors', () => {
  test.each([
    ['onTimeout', 'kil', 'config.on_timeout is "kil"; it must be one of cancel, signal, kill'],
    ['outputPolicy', 'drop', 'config.output_policy is "drop"; it must be one of truncate, kill'],
    ['isolation', 'proces', 'config.isolation is "proces"; it must be one of thread, process'],
    ['isolation', 'unspecified', 'config.isolation is "unspecified"; it must be one of thread, process'],
  ])('%s "%s" is no word, and never passes for one that was not said', async (option, word, message) => {
    const options = { [option]: word };

    await expect(execute('x', '1', options)).rejects.toThrow(new InvalidArgumentError(message));
    await expect(client.createSession('x', { executionDefaults: options })).rejects.toThrow(
      new InvalidArgumentError(message.replace('config', 'config.execution_defaults')),
    );
  });

  test('are the classes the daemon threw, with its message', async () => {
    await execute('same', '1');

    await expect(client.wait('s', 'gone')).rejects.toThrow(NotFoundError);
    await expect(client.getSession('gone')).rejects.toThrow('session "gone" not found (elidectl session ls)');
    await expect(execute('same', '2')).rejects.toThrow(AlreadyExistsError);
    await expect(execute('x', '1', { timeoutMs: 0 })).rejects.toThrow(InvalidArgumentError);
    await expect(client.writeInput('s', 'same', Buffer.from('x'))).rejects.toThrow(FailedPreconditionError);
    await expect(collect(client.watchExecution('s', 'same', { fromSequence: 99 }))).rejects.toThrow(OutOfRangeError);
    await expect(collect(client.streamOutput('s', 'same', { stdoutPosition: 99 }))).rejects.toThrow(
      'stdout of execution "same" has 0 bytes, from 0 on; position 99 is in the future',
    );
  });

  test('a request that is too large for the daemon is an InvalidArgumentError', async () => {
    await using own = await TestDaemon.start({ maxCodeBytes: 1000 });
    using other = connectDaemon({ socket: own.endpoints.socket as string });
    const code = 'x'.repeat(17 * 2 ** 20);

    const accepted = other.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code });

    await expect(accepted).rejects.toThrow(InvalidArgumentError);
  });

  test('a stream of what is not there rejects with the same class', async () => {
    await expect(collect(client.watchExecution('s', 'gone'))).rejects.toThrow(NotFoundError);
    await expect(collect(client.streamOutput('s', 'gone'))).rejects.toThrow(NotFoundError);
  });

  test('nobody at the address is an UnreachableError that names it', async () => {
    const socket = join(daemon.directory, 'nobody.sock');
    using nobody = connectDaemon({ socket });

    const failure = await nobody.health().catch((error) => error);

    expect(failure).toBeInstanceOf(UnreachableError);
    expect(failure).toBeInstanceOf(UnavailableError);
    expect(failure.message).toBe(`no daemon answers on unix:${socket} (connect ENOENT ${socket})`);
  });

  test('a daemon that dies under an open stream is an UnreachableError', async () => {
    // Its cells go with it at once: nothing of them is left when the test ends.
    const config = join(daemon.directory, 'doomed.json');
    await writeFile(config, JSON.stringify({ orphanGraceMs: 0 }));
    await using doomed = await DaemonProcess.start('--config', config);
    using own = connectDaemon({ socket: doomed.socket });
    await own.createSession('s');
    await own.executeSnippet({ sessionId: 's', executionId: 'e', language: 'js', code: FOREVER });
    const chunks = own.streamOutput('s', 'e', { patienceMs: 100 });
    await chunks.next();

    doomed.child.kill('SIGKILL');

    await expect(chunks.next()).rejects.toThrow(UnreachableError);
  });

  test('a deadline that passes is a ClientError with the code of gRPC', async () => {
    await execute('deadline', FOREVER);

    const failure = await client.wait('s', 'deadline', { deadlineMs: 20 }).catch((error) => error);

    expect(failure).toBeInstanceOf(ClientError);
    expect(failure).toMatchObject({ code: 'deadline_exceeded', grpcCode: 4 });
    await client.cancelExecution('s', 'deadline');
  });

  test('a deadline that is weeks or years away has not passed', async () => {
    await execute('far', FOREVER);
    const days = [25, 49, 50, 730, Number.POSITIVE_INFINITY];

    const waits = days.map((each) => client.wait('s', 'far', { timeoutMs: 500, deadlineMs: each * 86_400_000 }));

    for (const { state } of await Promise.all(waits)) expect(state).not.toBe('exited');
    await client.cancelExecution('s', 'far');
  });
});

describe('an abort signal', () => {
  test('ends a call with its reason, and leaves the execution alone', async () => {
    await execute('left-alone', FOREVER);
    const leaving = new AbortController();
    const waiting = client.wait('s', 'left-alone', { signal: leaving.signal });

    leaving.abort(new Error('I leave'));

    await expect(waiting).rejects.toThrow('I leave');
    expect((await client.wait('s', 'left-alone', { timeoutMs: 0 })).state).not.toBe('exited');
    await client.cancelExecution('s', 'left-alone');
  });

  test('ends a stream with its reason', async () => {
    await execute('streamed', FOREVER);
    const leaving = new AbortController();
    const chunks = client.streamOutput('s', 'streamed', { signal: leaving.signal });
    await chunks.next();

    const next = chunks.next();
    leaving.abort(new Error('I leave'));

    await expect(next).rejects.toThrow('I leave');
    await client.cancelExecution('s', 'streamed');
  });

  test('that has aborted before lets no call begin', async () => {
    await expect(client.health({ signal: AbortSignal.abort(new Error('never')) })).rejects.toThrow('never');
  });
});

describe('a client that is closed', () => {
  test('ends its open calls, and leaves the execution alone', async () => {
    const own = connectDaemon({ socket: daemon.socket });
    await execute('closed', FOREVER);
    const chunks = own.streamOutput('s', 'closed');
    const events = own.watchExecution('s', 'closed', { fromSequence: 2 });
    const rounds = own.watchExecutionMetrics({ sessionId: 's', executionId: 'closed', intervalMs: 3_600_000 });
    for (const stream of [chunks, events, rounds]) await stream.next();
    const open = [own.wait('s', 'closed'), chunks.next(), events.next(), rounds.next()];
    // What is open has been sent when another call is answered.
    await own.health();

    own.close();

    const closed = { status: 'rejected', reason: new FailedPreconditionError('this client was closed') };
    expect(await Promise.allSettled(open)).toEqual([closed, closed, closed, closed]);
    expect((await client.wait('s', 'closed', { timeoutMs: 0 })).state).toBe('running');
    await client.cancelExecution('s', 'closed');
  });

  test('keeps no program from its end', async () => {
    await execute('held', FOREVER);
    const code = `
      import { connectDaemon } from ${JSON.stringify(CLIENT)};
      const client = connectDaemon({ socket: ${JSON.stringify(daemon.socket)} });
      const events = client.watchExecution('s', 'held');
      await events.next();
      events.next().then(() => events.next()).catch(({ message }) => console.log(message));
      await client.health();
      client.close();`;

    const ended = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', code], {
      timeout: 30_000,
    });

    expect(ended).toEqual({ stdout: 'this client was closed\n', stderr: '' });
    await client.cancelExecution('s', 'held');
  });
});

describe('streams', () => {
  test('output is read again from any position of either stream', async () => {
    await execute('positions', 'console.log("0123456789"); console.error("abcdef")');
    await client.wait('s', 'positions');

    const chunks = await collect(client.streamOutput('s', 'positions', { stdoutPosition: 7, stderrPosition: 4 }));

    expect(chunks.map(({ stream, position, data }) => [stream, position, String(data)])).toEqual([
      ['stdout', 7, '789\n'],
      ['stderr', 4, 'ef\n'],
    ]);
  });

  test('status events are read again from any sequence number', async () => {
    await execute('sequence', '1');
    await client.wait('s', 'sequence');

    const events = await collect(client.watchExecution('s', 'sequence', { fromSequence: 3 }));

    expect(events.map(({ state, result }) => [state, result?.reason])).toEqual([['exited', 'completed']]);
  });

  test('a reader that stops early ends the call, and others go on', async () => {
    await execute('early', FOREVER);

    for await (const { data } of client.streamOutput('s', 'early')) {
      expect(String(data)).toBe('ready\n');
      break;
    }

    expect((await client.health()).healthy).toBe(true);
    await client.cancelExecution('s', 'early');
    expect((await client.wait('s', 'early')).result).toMatchObject({ reason: 'cancelled', rung: 'graceful' });
  });

  test('written input reaches the program, and its end too', async () => {
    await execute(
      'input',
      'process.stdin.on("data", (d) => process.stdout.write(d)).on("end", () => console.log("end"))',
      {
        stdin: true,
      },
    );

    await client.writeInput('s', 'input', Buffer.from('one\n'));
    await client.writeInput('s', 'input', Buffer.from('two\n'), true);

    const chunks = await collect(client.streamOutput('s', 'input'));
    expect(Buffer.concat(chunks.map(({ data }) => data)).toString()).toBe('one\ntwo\nend\n');
  });
});

describe('sessions', () => {
  test('one that is created is listed with its configuration until it is deleted', async () => {
    await client.createSession('listed', { contextPoolSize: 2, enabledLanguages: ['py'], memoryLimitMb: 64 });

    const listed = (await client.listSessions()).find(({ sessionId }) => sessionId === 'listed');
    await client.deleteSession('listed');

    expect(listed).toMatchObject({
      state: 'running',
      config: { contextPoolSize: 2, enabledLanguages: ['python'], memoryLimitMb: 64 },
      counts: { pending: 0, running: 0, exited: 0 },
    });
    await expect(client.getSession('listed')).rejects.toThrow(NotFoundError);
  });

  test('one that is to have another configuration, and gets busy as it is replaced, is kept', async () => {
    await using own = await TestDaemon.start();
    using other = connectDaemon({ socket: own.endpoints.socket as string });
    await other.createSession('s');
    const { daemon: node } = own;
    const deleteSession = node.deleteSession.bind(node);
    const snippet = { sessionId: 's', executionId: 'e', language: 'javascript', code: FOREVER };
    vi.spyOn(node, 'deleteSession').mockImplementationOnce(async (...request) => {
      await other.executeSnippet(snippet);
      await deleteSession(...request);
    });

    const opened = await other.openSession('s', { contextPoolSize: 2 });

    expect(opened).toBe(false);
    expect((await other.getExecutionStatus('s', 'e')).state).not.toBe('exited');
    await other.cancelExecution('s', 'e');
    await other.wait('s', 'e');
    expect(await other.openSession('s', { contextPoolSize: 2 })).toBe(true);
    expect((await other.getSession('s')).config.contextPoolSize).toBe(2);
  });

  test('one that is to have another configuration is not said to be busy by a client that was closed', async () => {
    await client.createSession('other');
    const other = connectDaemon({ socket: daemon.socket });
    const createSession = other.createSession.bind(other);
    vi.spyOn(other, 'createSession').mockImplementationOnce((...request) =>
      createSession(...request).finally(() => other.close()),
    );

    const opened = other.openSession('other', { contextPoolSize: 2 });

    await expect(opened).rejects.toThrow('this client was closed');
    await client.deleteSession('other');
  });
});
