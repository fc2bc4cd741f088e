import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { constants, createServer, type ServerHttp2Stream } from 'node:http2';
import { type AddressInfo, createConnection, createServer as createTcpServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import {
  Command,
  type CommandProgram,
  connectDaemon,
  type DaemonClient,
  presence,
  reconnecting,
  retry,
  UnreachableError,
} from '../../src/client/index.ts';
import { ExecutionApiClient } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import { eventually, TestDaemon, temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';

const FOR_EVER = 'setInterval(() => {}, 1_000_000)';

describe('a daemon that is away', () => {
  test('a call is tried until it answers, or patience ends', async () => {
    const directory = mkdtempSync('/tmp/elide-test-');
    using client = connectDaemon({ socket: join(directory, 'd.sock') });
    await expect(retry(() => client.health(), { limitMs: 600 })).rejects.toThrow('no daemon answers');

    const answered = retry(() => client.health());
    const main = join(import.meta.dirname, '../../dist/src/main.js');
    const places = ['--socket', join(directory, 'd.sock'), '--state-dir', join(directory, 's'), '--log-level', 'error'];
    const child = spawn(process.execPath, [main, ...places], { stdio: 'ignore' });

    expect((await answered).healthy).toBe(true);
    child.kill();
    await once(child, 'exit');
    rmSync(directory, { recursive: true });
  });

  test.each([
    ['by itself', (stream: ServerHttp2Stream) => stream.close(constants.NGHTTP2_NO_ERROR)],
    ['with an error', (stream: ServerHttp2Stream) => stream.close(constants.NGHTTP2_INTERNAL_ERROR)],
    [
      'with its connection',
      ({ session }: ServerHttp2Stream) => {
        session?.goaway(constants.NGHTTP2_CANCEL);
        session?.destroy();
      },
    ],
  ])('a call that is broken off without an answer, %s, is one that found no daemon', async (_how, breakOff) => {
    const directory = mkdtempSync('/tmp/elide-test-');
    const socket = join(directory, 'd.sock');
    const server = createServer();
    // What a daemon does with the calls that are open when it has to go.
    server.on('stream', (stream: ServerHttp2Stream) => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
      stream.on('error', () => {});
      breakOff(stream);
    });
    server.listen(socket);
    await once(server, 'listening');
    using client = connectDaemon({ socket });

    const failure = await client.health().catch((error: unknown) => error);

    expect(failure).toBeInstanceOf(UnreachableError);
    expect(failure).toMatchObject({ isUnsent: false, message: expect.stringContaining(socket) });
    client.close();
    server.close();
    rmSync(directory, { recursive: true });
  });

  test('is not waited for by a client that was closed', async () => {
    const client = connectDaemon({ socket: '/tmp/none.sock' });
    client.close();
    let calls = 0;
    const call = () => {
      calls += 1;
      return client.health();
    };

    await expect(retry(call, { signal: AbortSignal.timeout(20_000) })).rejects.toThrow('this client was closed');

    expect(calls).toBe(1);
  });

  test('is waited for anew each time that it goes', async () => {
    let opened = 0;
    const open = async function* () {
      opened += 1;
      if (opened === 5) yield 'the end';
      // As a call is held that nothing comes of, until its connection breaks.
      else await new Promise((resolve) => setTimeout(resolve, 1_500));
      if (opened < 5) throw new UnreachableError('it went', { isUnsent: false });
    };

    expect(await Array.fromAsync(reconnecting(open, { limitMs: 4_000 }))).toEqual(['the end']);
  });

  test('is waited for before it was ever there where the caller says how long', async () => {
    const directory = mkdtempSync('/tmp/elide-test-');
    const socket = join(directory, 'd.sock');
    using client = connectDaemon({ socket });
    await expect(client.wait('s', 'e')).rejects.toThrow('no daemon answers');
    const waiting = client.wait('s', 'e', { patienceMs: 600_000 });

    await using _daemon = await DaemonProcess.start('--socket', socket);

    await expect(waiting).rejects.toThrow('not found');
    rmSync(directory, { recursive: true });
  });

  test.each([
    ['stopped', 'SIGSTOP', { code: 'deadline_exceeded' }],
    ['killed', 'SIGKILL', { code: 'unavailable' }],
  ] as const)('is waited for no longer than a wait that has a limit: %s', async (_how, signal, failure) => {
    await using daemon = await DaemonProcess.start();
    using client = connectDaemon({ socket: daemon.socket });
    await client.createSession('s');
    await client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code: FOR_EVER });

    const waiting = client.wait('s', 'e', { timeoutMs: 500, patienceMs: 600_000 });
    daemon.child.kill(signal);

    await expect(waiting.finally(() => daemon.child.kill('SIGCONT'))).rejects.toMatchObject(failure);
  });

  test.each([
    [
      'watchExecution',
      (client: DaemonClient, patienceMs: number) => client.watchExecution('s', 'e', { patienceMs }).next(),
    ],
    ['waitExecution', (client: DaemonClient, patienceMs: number) => client.wait('s', 'e', { patienceMs })],
  ] as const)('is looked for by one of all that wait, which go on together: %s', async (method, wait) => {
    const socket = join(temporaryDirectory(), 'd.sock');
    using client = connectDaemon({ socket });
    using calls = vi.spyOn(ExecutionApiClient.prototype, method);
    const answersOf = (patienceMs: number) =>
      Array.from({ length: 100 }, async () => {
        const { message } = (await wait(client, patienceMs).catch((error: Error) => error)) as Error;
        return { message, atMs: performance.now() };
      });

    const without = await Promise.all(answersOf(3_000));

    for (const { message } of without) expect(message).toContain('no daemon answers');
    // Each by itself would make twelve.
    expect(calls.mock.calls.length).toBeLessThan(300);

    const waiting = answersOf(60_000);
    await using _daemon = await DaemonProcess.start('--socket', socket);
    const answers = await Promise.all(waiting);

    for (const { message } of answers) expect(message).toContain('not found');
    const atMs = answers.map((answer) => answer.atMs);
    expect(Math.max(...atMs) - Math.min(...atMs)).toBeLessThan(5_000);
  });

  test('is missed over TCP also where nothing says that its machine is gone', async () => {
    await using daemon = await DaemonProcess.start();
    using direct = connectDaemon({ socket: daemon.socket });
    await direct.createSession('s');
    const code = "process.stdin.on('data', () => process.exit(7))";
    await direct.executeSnippet({ sessionId: 's', executionId: 'e', language: 'js', code, stdin: true });
    const network = await startNetwork(daemon.tcp);
    using client = connectDaemon({ tcp: network.address, keepaliveMs: 500 });
    const events = client.watchExecution('s', 'e');
    await events.next();
    const waiting = client.wait('s', 'e', { signal: AbortSignal.timeout(50_000) });

    network.loseAll();
    await direct.writeInput('s', 'e', Buffer.from('x'));

    expect((await waiting).result?.exitCode).toBe(7);
    client.close();
    network.close();
  });

  test('is given up over TCP in time where connections are taken and nothing is said on them', async () => {
    await using daemon = await DaemonProcess.start();
    using direct = connectDaemon({ socket: daemon.socket });
    await direct.createSession('s');
    await direct.executeSnippet({
      sessionId: 's',
      executionId: 'e',
      language: 'js',
      code: 'process.stdin',
      stdin: true,
    });
    const network = await startNetwork(daemon.tcp);
    using client = connectDaemon({ tcp: network.address, keepaliveMs: 500 });
    await client.health();
    const waiting = client.wait('s', 'e', { patienceMs: 1_000 });

    network.isSilent = true;
    network.loseAll();

    await expect(waiting).rejects.toThrow(`no daemon answers on tcp:${network.address} (the connection was given up)`);
    await expect(client.health()).rejects.toThrow(UnreachableError);
    network.close();
  });

  test('is found over TCP when it answers again, after connections that nothing was said on', async () => {
    await using daemon = await DaemonProcess.start();
    using direct = connectDaemon({ socket: daemon.socket });
    await direct.createSession('s');
    const code = "process.stdin.on('data', () => process.exit(7))";
    await direct.executeSnippet({ sessionId: 's', executionId: 'e', language: 'js', code, stdin: true });
    const network = await startNetwork(daemon.tcp);
    using client = connectDaemon({ tcp: network.address, keepaliveMs: 500 });
    await client.health();
    const waiting = client.wait('s', 'e', { patienceMs: 600_000 });
    network.isSilent = true;
    network.loseAll();
    await eventually('connections that nothing is said on', () => network.silent >= 2);
    await direct.writeInput('s', 'e', Buffer.from('x'));

    network.isSilent = false;

    expect((await waiting).result?.exitCode).toBe(7);
    network.close();
  });

  test('has nothing left of a command that it was to forget meanwhile', { timeout: 180_000 }, async () => {
    const directory = temporaryDirectory();
    const socket = join(directory, 'd.sock');
    const places = ['--socket', socket, '--state-dir', join(directory, 's')];
    const first = await DaemonProcess.start(...places);
    using client = connectDaemon({ socket });
    await client.createSession('s');
    const tried = Promise.withResolvers<void>();
    const release = client.releaseExecution.bind(client);
    vi.spyOn(client, 'releaseExecution').mockImplementationOnce(async (...args) => {
      await first.stop('SIGKILL');
      await release(...args).finally(tried.resolve);
    });
    const place = { sessionId: 's', executionId: 'of', language: 'javascript' };
    const options = { stdin: false, signal: new AbortController().signal, limitMs: 0 };

    await Array.fromAsync(new Command(client, place, { code: 'console.log(1)', args: [] }, options).run());
    await tried.promise;
    await using _second = await DaemonProcess.start(...places);

    await eventually('it is forgotten', async () => (await Array.fromAsync(client.listExecutions('s'))).length === 0);
  });

  test('is noticed at once when it goes', async () => {
    await using daemon = await DaemonProcess.start();
    using client = connectDaemon({ socket: daemon.socket });
    await client.createSession('s');
    const seen: (string | undefined)[] = [];
    const stop = new AbortController();
    const look = async () => {
      const present = await client.health().then(
        () => 's',
        () => undefined,
      );
      if (present !== seen.at(-1)) seen.push(present);
      return { present };
    };
    const watching = (async () => {
      for await (const _ of presence(() => client, look, stop.signal));
    })();
    await eventually('the daemon is seen', () => seen.length === 1);

    daemon.child.kill('SIGKILL');
    // It would be looked for again after 30 s.
    await eventually('its end is seen', () => seen.length === 2, 20_000);

    expect(seen).toEqual(['s', undefined]);
    stop.abort();
    await watching;
  });
});

/**
 * Leads to an address until its connections are lost: they stay open then, and nothing arrives. New ones work, unless it is
 * silent: they are taken, and lead nowhere.
 */
async function startNetwork(tcp: string) {
  const links: [near: Socket, far: Socket][] = [];
  const silent = new Set<Socket>();
  const port = Number(tcp.split(':').at(-1));
  const server = createTcpServer((near) => {
    if (network.isSilent) {
      silent.add(near.on('error', () => {}).resume());
      return;
    }
    const far = createConnection(port, '127.0.0.1');
    for (const each of [near, far]) each.on('error', () => {});
    near.pipe(far).pipe(near);
    links.push([near, far]);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const network = {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    isSilent: false,
    get silent() {
      return silent.size;
    },
    loseAll() {
      for (const [near, far] of links) {
        near.unpipe(far).resume();
        far.unpipe(near).resume();
      }
    },
    close() {
      for (const each of [...links.flat(), ...silent]) each.destroy();
      server.close();
    },
  };
  return network;
}

describe('beside an execution', () => {
  let daemon: TestDaemon;
  let client: DaemonClient;

  beforeAll(async () => {
    daemon = await TestDaemon.start();
    client = connectDaemon({ socket: daemon.endpoints.socket as string });
    await client.createSession('s');
  });
  afterAll(async () => {
    client.close();
    await daemon[Symbol.asyncDispose]();
  });

  async function run(
    program: CommandProgram,
    use: (command: Command) => void = () => {},
    signal = new AbortController().signal,
    heard: () => void = () => {},
  ) {
    const place = {
      sessionId: 's',
      executionId: 'of',
      language: 'javascript',
      env: { PATH: process.env.PATH ?? '', A: 'b' },
    };
    const command = new Command(client, place, program, { stdin: true, signal, limitMs: 0 });
    use(command);
    const written = { stdout: '', stderr: '' };
    for (const output = command.run(); ; ) {
      const { done, value } = await output.next();
      if (done) return { ...written, result: value };
      written[value.stream] += value.data.toString();
      heard();
    }
  }

  test('a command has its streams, its environment and its exit code', async () => {
    const argv = ['sh', '-c', 'cat; echo "$A" >&2; exit 43'];

    const { stdout, stderr, result } = await run({ argv, terminal: false }, (command) => {
      command.write(Buffer.from('one '), false);
      command.write(Buffer.from('two'), true);
    });

    expect([stdout, stderr, result?.exitCode]).toEqual(['one two', 'b\n', 43]);
  });

  test('a command on a terminal has one stream, with echo and the size it was given last', async () => {
    const argv = ['sh', '-c', 'read line; stty size; echo err >&2; exit 5'];

    const { stdout, stderr, result } = await run({ argv, terminal: true }, (command) => {
      command.resize(20, 40);
      command.resize(33, 77);
      command.write(Buffer.from('typed\n'), false);
    });

    expect([stdout, stderr, result?.exitCode]).toEqual(['typed\r\n33 77\r\nerr\r\n', '', 5]);
  });

  test('the end of a terminal’s input is what a person would type', async () => {
    const { stdout, result } = await run({ argv: ['cat'], terminal: true }, (command) => {
      command.write(Buffer.from('x\n'), true);
    });

    expect([stdout, result?.exitCode]).toEqual(['x\r\nx\r\n', 0]);
  });

  test('only the command itself is waited for, not what it left on the terminal', async () => {
    const { result } = await run({ argv: ['sh', '-c', 'sleep 600 & exit 4'], terminal: true });

    expect(result?.exitCode).toBe(4);
  });

  test('code runs in the language of the place', async () => {
    const { stdout } = await run({ code: 'console.log(process.argv[2], process.env.A)', args: ['x'] });

    expect(stdout).toBe('x b\n');
  });

  test('a command that is not there ends as in a shell', async () => {
    const { stderr, result } = await run({ argv: ['no-such-command'], terminal: false });

    expect([stderr, result?.exitCode]).toEqual(['no-such-command: No such file or directory\n', 127]);
  });

  test('an abort ends the command by force', async () => {
    const leaving = new AbortController();
    const argv = ['sh', '-c', 'echo ready; sleep 600'];

    const { result } = await run({ argv, terminal: false }, undefined, leaving.signal, () => leaving.abort());

    expect(result?.signal).toBe('SIGKILL');
  });
});
