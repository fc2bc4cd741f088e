import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  ExecTaskStreamingRequest,
  ExecTaskStreamingResponse,
  type TaskConfig,
  TaskState,
} from '../../../src/gen/nomad/driver.ts';
import { eventually, processesWith, TestDaemon } from '../../support/daemon.ts';
import { collect, PluginHost } from '../host.ts';
import { commandsBeside, daemon, host, isolationBeside, javascript, SLEEP, usePlugin } from './fixture.ts';

usePlugin();

describe('a command beside a task', () => {
  let task: TaskConfig;

  beforeAll(async () => {
    task = javascript(SLEEP, { env: { A: 'b' } });
    await host.start(task);
  });
  afterAll(() => host.destroy(task.id));

  test('has its output in one, and its code', async () => {
    const { stdout, result } = await host.exec(task.id, ['sh', '-c', 'pwd; echo "$A" >&2; exit 9']);

    expect(stdout.toString()).toBe(`${join(task.allocDir, 'task')}\nb\n`);
    expect(result?.exitCode).toBe(9);
  });

  test('of many words is cut to the newest', async () => {
    const { stdout } = await host.exec(task.id, ['sh', '-c', 'seq 1 5000']);

    expect(stdout.byteLength).toBe(4096);
    expect(stdout.toString().endsWith('4999\n5000\n')).toBe(true);
  });

  test('is killed when its time is over', async () => {
    const { result } = await host.exec(task.id, ['sleep', '600'], 5_000);

    expect(result).toMatchObject({ exitCode: 137, signal: 9 });
  });

  test('needs a word', async () => {
    await expect(host.exec(task.id, [])).rejects.toThrow('error cmd must have at least one value');
  });

  test('elide-eval runs code in the task’s language', async () => {
    const { stdout } = await host.exec(task.id, ['elide-eval', 'console.log(process.cwd(), process.argv[2])', 'x']);

    expect(stdout.toString()).toBe(`${join(task.allocDir, 'task')} x\n`);
  });

  test.each(['process', 'thread'] as const)('elide-eval runs code as isolated as the task, %s', async (isolation) => {
    const isolated = javascript(SLEEP, { isolation });
    await host.start(isolated);

    expect(await isolationBeside(host, isolated)).toBe(isolation);
    await host.destroy(isolated.id);
  });

  const streamed = (...requests: object[]) => streamedBy(host, ...requests);

  async function streamedBy({ driver }: PluginHost, ...requests: object[]) {
    const call = driver.execTaskStreaming();
    for (const request of requests) call.write(ExecTaskStreamingRequest.fromPartial(request));
    return collect(call as never, (all: ExecTaskStreamingResponse[]) => all.at(-1)?.exited === true);
  }

  const textOf = (all: ExecTaskStreamingResponse[], stream: 'stdout' | 'stderr') =>
    Buffer.concat(all.flatMap((one) => one[stream]?.data ?? [])).toString();

  test('streams both ways, apart, and closes each stream before it exits', async () => {
    const command = ['sh', '-c', 'cat; echo err >&2; exit 43'];
    const all = await streamed(
      { setup: { taskId: task.id, command, tty: false } },
      {},
      { stdin: { data: Buffer.from('a'), close: false } },
      { stdin: { data: Buffer.from('b'), close: true } },
    );

    expect([textOf(all, 'stdout'), textOf(all, 'stderr')]).toEqual(['ab', 'err\n']);
    expect(all.slice(-3)).toMatchObject([{ stdout: { close: true } }, { stderr: { close: true } }, { exited: true }]);
    expect(all.at(-1)?.result?.exitCode).toBe(43);
  });

  test('has a terminal of the size that was said last', async () => {
    const command = ['sh', '-c', 'read x; stty size'];
    const all = await streamed(
      { setup: { taskId: task.id, command, tty: true } },
      { ttySize: { height: 24, width: 80 } },
      { ttySize: { height: 100, width: 100 } },
      { stdin: { data: Buffer.from('go\n') } },
    );

    expect(textOf(all, 'stdout')).toBe('go\r\n100 100\r\n');
    expect(all.every(({ stderr }) => stderr === undefined)).toBe(true);
  });

  describe.each(['process', 'thread'] as const)('elide-eval from a terminal, beside a task in a %s', (isolation) => {
    let own: PluginHost;
    let beside: TaskConfig;

    beforeAll(async () => {
      const sessionId = `patient-${isolation}`;
      // No stop turns to force by itself.
      await daemon.daemon.createSession(sessionId, { executionDefaults: { graceMs: 3_600_000 } });
      own = await PluginHost.start({ daemon_socket: daemon.endpoints.socket, session_id: sessionId });
      beside = javascript(SLEEP, { isolation });
      await own.start(beside);
    });
    afterAll(async () => {
      await own.destroy(beside.id);
      await own[Symbol.asyncDispose]();
    });

    const evalOf = (code: string) => ({ setup: { taskId: beside.id, command: ['elide-eval', code], tty: true } });
    const key = (keys: string) => ({ stdin: { data: Buffer.from(keys) } });
    const IDLE = 'console.log("ready"); setInterval(() => {}, 1000)';
    const BUSY = 'console.log("ready"); for (;;);';
    const STUBBORN = 'process.on("SIGINT", () => {}); console.log("ready"); for (;;);';
    const BY_SIGNAL = { exitCode: 130, signal: 2 };
    const BY_FORCE = { exitCode: 137, signal: 9 };

    test.each([
      ['by its signal', IDLE, '\x03', BY_SIGNAL],
      ['by its signal, after keys that it has not read', BUSY, 'x\r\x03', BY_SIGNAL],
      ['by force the second time', STUBBORN, '\x03\x03', BY_FORCE],
      ['by force the second time, after keys that it has not read', STUBBORN, 'x\r\x03\x03', BY_FORCE],
    ])('ends with Ctrl-C, %s', async (_how, code, keys, result) => {
      const call = own.driver.execTaskStreaming();
      const type = (request: object) => call.write(ExecTaskStreamingRequest.fromPartial(request));
      type(evalOf(code));

      const all = await collect(call as never, (sofar: ExecTaskStreamingResponse[]) => {
        if (sofar.length === 1) for (const one of keys) type(key(one));
        return sofar.at(-1)?.exited === true;
      });

      expect(textOf(all, 'stdout')).toBe('ready\r\n');
      expect(all.at(-1)?.result).toMatchObject(result);
    });

    test('ends with Ctrl-C before it has begun', async () => {
      const all = await streamedBy(own, evalOf(BUSY), key('\x03\x03'));

      expect(all.at(-1)?.exited).toBe(true);
    });

    test('reads lines, and their end at Ctrl-D', async () => {
      const code = 'process.stdin.pipe(process.stdout)';
      const all = await streamedBy(own, evalOf(code), key('a\r'), key('b\r\x04'));

      expect(textOf(all, 'stdout')).toBe('a\r\nb\r\n');
      expect(all.at(-1)?.result?.exitCode).toBe(0);
    });
  });

  test('takes more at once than a terminal holds', async () => {
    const lines = `${'x'.repeat(62)}\n`.repeat(1040);
    const all = await streamed(
      { setup: { taskId: task.id, command: ['tee', 'typed'], tty: true } },
      { stdin: { data: Buffer.from(lines), close: true } },
    );

    expect(all.at(-1)?.result?.exitCode).toBe(0);
    expect(readFileSync(join(task.allocDir, 'task/typed'), 'utf8')).toBe(lines);
    // Of its echo a terminal drops what it has no room for.
    expect(textOf(all, 'stdout').length).toBeGreaterThan(lines.length);
  });

  test.each([
    ['holds that', (mark: string) => `sleep ${mark}`],
    ['writes there without end', (mark: string) => `tty=$(tty); while :; do yes ${mark} > $tty; done`],
  ])('on a terminal ends its call when it ends, and a job in the background that %s', async (_name, jobOf) => {
    const mark = `9${process.pid}`;
    const command = ['sh', '-mc', `{ ${jobOf(mark)}; } & echo last; sleep 1; exit 3`];

    const all = await streamed({ setup: { taskId: task.id, command, tty: true } });

    expect(textOf(all, 'stdout')).toContain('last\r\n');
    expect(all.at(-1)?.result?.exitCode).toBe(3);
    expect(processesWith(mark)).toEqual([]);
  });

  test('ends with its caller', async () => {
    const mark = `8${process.pid}`;
    const call = host.driver.execTaskStreaming();
    call.on('error', () => {});
    call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['sleep', mark] } }));
    await eventually('it runs', () => processesWith(`sleep ${mark}`).length === 1);

    call.cancel();

    await eventually('it is gone', () => processesWith(`sleep ${mark}`).length === 0);
  });

  test('that is silent has empty messages, by which an agent sees that its caller is gone', async () => {
    const call = host.driver.execTaskStreaming();
    call.on('error', () => {});
    call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['cat'] } }));

    const [first] = await once(call, 'data');
    const [second] = await once(call, 'data');

    expect([first, second]).toEqual([ExecTaskStreamingResponse.create(), ExecTaskStreamingResponse.create()]);
    call.cancel();
  });

  test.each([
    ['no setup', { stdin: { data: Buffer.from('x') } }, 'the first message of an exec must have its setup'],
    ['no task', { setup: { taskId: 'none', command: ['true'] } }, 'task not found'],
    ['no command', { setup: { taskId: 'TASK', command: [] } }, 'error cmd must have'],
  ])('with %s is refused', async (_name, request: object, message) => {
    const given = (request as { setup?: { taskId: string; command: string[] } }).setup;
    const setup = given && { ...given, taskId: given.taskId.replace('TASK', task.id) };

    await expect(streamed({ ...request, ...(setup && { setup }) })).rejects.toThrow(message);
  });
});

test('a command that writes without end is ended though nobody reads, and nothing of it is kept', {
  timeout: 300_000,
}, async () => {
  await using own = await TestDaemon.start();
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket });
  const task = javascript(SLEEP);
  await other.start(task);
  const call = other.driver.execTaskStreaming();
  call.on('error', () => {});
  call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['yes'] } }));
  const ended = async () => (await commandsBeside(own, task))[0]?.result?.reason === 'output_exceeded';
  await eventually('it is ended', ended, 180_000);

  call.cancel();

  await eventually('it is forgotten', async () => (await commandsBeside(own, task)).length === 0);
  const kilobytes = () => Number(execFileSync('du', ['-sk', own.root], { encoding: 'utf8' }).split('\t')[0]);
  await eventually('its output is gone', () => kilobytes() < 64 * 1024);
});

test('a command whose caller leaves is ended, and nothing of it is kept', async () => {
  const task = javascript(SLEEP);
  await host.start(task);
  const call = host.driver.execTaskStreaming();
  call.on('error', () => {});
  call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['sleep', '60'] } }));
  await eventually('it runs', async () => (await commandsBeside(daemon, task))[0]?.state === 'running');

  call.cancel();

  await eventually('it is forgotten', async () => (await commandsBeside(daemon, task)).length === 0);
  await host.destroy(task.id);
});

test('a command goes ahead of tasks that wait for a place', async () => {
  await using own = await TestDaemon.start({ maxStarting: 1 });
  const sessionId = 'busy';
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket, session_id: sessionId });
  const task = javascript(SLEEP);
  await other.start(task);
  const submit = (_: unknown, n: number) =>
    own.daemon.executeSnippet({ sessionId, executionId: `waits-${n}`, code: '0', language: 'javascript' });
  await Promise.all(Array.from({ length: 200 }, submit));

  const { result } = await other.exec(task.id, ['true'], 30_000);

  expect(result?.exitCode).toBe(0);
  expect((await own.daemon.getSession(sessionId)).counts.pending).toBeGreaterThan(0);
});

test('a command that the node has no place for waits as long as its caller would, and is told so', async () => {
  await using own = await TestDaemon.start({ maxRunning: 1 });
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket });
  const task = javascript(SLEEP);
  await other.start(task);
  const beganMs = performance.now();

  await expect(other.exec(task.id, ['true'], 6_000)).rejects.toThrow('the node is full');

  expect(performance.now() - beganMs).toBeGreaterThan(5_900);

  expect(await other.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
});

test('a command keeps to the limits of its session where they are lower: what it wrote is there, then why it was ended', async () => {
  const outputLimitBytes = 8 * 2 ** 20;
  const executionCeilings = { outputLimitBytes, queueTimeoutMs: 60_000 };
  await daemon.daemon.createSession('narrow', { executionCeilings });
  await using other = await PluginHost.start({ daemon_socket: daemon.endpoints.socket, session_id: 'narrow' });
  const task = javascript(SLEEP);
  await other.start(task);
  const call = other.driver.execTaskStreaming();
  call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['yes'] } }));
  let bytes = 0;

  const read = collect(call as never, (all: ExecTaskStreamingResponse[]) => {
    bytes += all.at(-1)?.stdout?.data.length ?? 0;
    return false;
  });

  await expect(read).rejects.toThrow(`ended for its output: more than ${outputLimitBytes} bytes`);
  expect(bytes).toBe(outputLimitBytes);
  await eventually('it is forgotten', async () => (await commandsBeside(daemon, task)).length === 0);
  await other.destroy(task.id);
});

test('a command beside a task ends with it', async () => {
  const mark = `7${process.pid}`;
  const task = javascript(SLEEP);
  await host.start(task);
  const answered = host.exec(task.id, ['sleep', mark], 60_000);
  await eventually('it runs', () => processesWith(`sleep ${mark}`).length === 1);

  await host.destroy(task.id);

  expect(await answered).toMatchObject({ result: { signal: 9 } });
  expect(processesWith(`sleep ${mark}`)).toEqual([]);
});
