import { once } from 'node:events';
import { copyFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { connectDaemon, type DaemonClient } from '../../../src/client/index.ts';
import {
  type DriverTaskEvent,
  ExecTaskStreamingRequest,
  type ExecTaskStreamingResponse,
  FingerprintResponse_HealthState as Health,
  type TaskConfig,
  TaskState,
} from '../../../src/gen/nomad/driver.ts';
import { killTrees } from '../../../src/processes.ts';
import { Authority, type KeyPairFiles } from '../../support/certificates.ts';
import { eventually, isAlive, processesWith, TestDaemon, temporaryDirectory } from '../../support/daemon.ts';
import { DaemonProcess } from '../../support/daemon-process.ts';
import { cellsBelow } from '../../support/processes.ts';
import { logsOf, PluginHost, taskIn } from '../host.ts';
import {
  commandsBeside,
  daemon,
  fingerprints,
  host,
  isolationBeside,
  javascript,
  LANGUAGES,
  placesIn,
  ready,
  root,
  SLEEP,
  usePlugin,
} from './fixture.ts';

usePlugin();

describe('a recovery', () => {
  async function handleOf(task: TaskConfig) {
    const { handle } = await host.start(task);
    if (handle === undefined) throw new Error('no handle');
    // As an agent has it after its own restart: the task's configuration is not kept.
    return { ...handle, config: { ...(handle.config as TaskConfig), msgpackDriverConfig: Buffer.alloc(0) } };
  }

  const another = () =>
    PluginHost.start({ daemon_socket: daemon.endpoints.socket, session_config: { enabled_languages: LANGUAGES } });

  test('by another plugin finds the task as it was, and can do everything with it', async () => {
    const task = javascript(
      'process.on("SIGTERM", () => process.exit(5)); console.log("ready"); setInterval(() => {}, 1000)',
    );
    const handle = await handleOf(task);
    await ready(task);
    const before = await host.inspect(task.id);
    await using other = await another();

    await other.recover(handle);
    await other.recover(handle);

    expect(await other.inspect(task.id)).toEqual(before);
    expect((await other.exec(task.id, ['pwd'])).stdout.toString()).toBe(`${join(task.allocDir, 'task')}\n`);
    await other.stop(task.id, '', 50_000);
    expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 5 } });
    expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 5 } });
    await other.destroy(task.id, false);
  });

  test('by another plugin isolates code beside the task as the task', async () => {
    const task = javascript(SLEEP, { isolation: 'thread' });
    const handle = await handleOf(task);
    await using other = await another();

    await other.recover(handle);

    expect(await isolationBeside(other, task)).toBe('thread');
    await other.destroy(task.id);
  });

  test('of a task that ended meanwhile has its recorded end', async () => {
    const task = javascript('process.exit(6)');
    const handle = await handleOf(task);
    await host.wait(task.id);
    await using other = await another();
    const events: DriverTaskEvent[] = [];
    const call = other.driver.taskEvents({});
    call.on('error', () => {});
    call.on('data', (event) => events.push(event));

    await other.recover(handle);

    expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
    // Told as of when it was.
    await eventually('its end is told', () => events.length > 0);
    expect(events[0]?.timestamp).toEqual((await other.inspect(task.id)).task?.completedAt);
  });

  test.each(['by itself', 'by force'])('of a task that has ended %s, and was destroyed, is refused', async (how) => {
    const task = javascript(how === 'by itself' ? 'process.exit(1)' : SLEEP);
    const handle = await handleOf(task);
    if (how === 'by itself') await host.wait(task.id);
    await host.destroy(task.id);
    await using other = await another();

    await expect(other.recover(handle)).rejects.toThrow(`"${task.id}" not found`);
  });

  test('of a task that is gone with its daemon, as with the machine, is refused: the agent starts it anew', async () => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const first = await DaemonProcess.start(...places);
    const config = { daemon_socket: socket };
    await using before = await PluginHost.start(config);
    const [task, ended] = [javascript(SLEEP), javascript('process.exit(6)')];
    const [{ handle }, { handle: endedHandle }] = [await before.start(task), await before.start(ended)];
    await ready(task);
    await before.wait(ended.id);
    const { sessionId = '' } = JSON.parse(String(handle?.driverState)).place;
    const isGone = async (client: DaemonClient) =>
      (await client.getExecutionStatus(sessionId, task.id)).state === 'exited';

    first.child.kill('SIGKILL');
    killTrees(cellsBelow(directory));
    await first.stop();
    await using _second = await DaemonProcess.start(...places);
    using client = connectDaemon({ socket });
    await eventually('it is gone', () => isGone(client));
    await using after = await PluginHost.start(config);

    await expect(after.recover(handle)).rejects.toThrow('it ended while no daemon was there to see');
    await expect(after.inspect(task.id)).rejects.toThrow('task not found');
    await after.recover(endedHandle);
    expect(await after.wait(ended.id)).toMatchObject({ result: { exitCode: 6 } });
  });

  test('ends the commands beside the task that nobody can follow any more, and nothing of them is kept', async () => {
    const mark = `6${process.pid}`;
    const task = javascript(SLEEP);
    await using first = await another();
    const { handle } = await first.start(task);
    const call = first.driver.execTaskStreaming();
    call.on('error', () => {});
    call.write(ExecTaskStreamingRequest.fromPartial({ setup: { taskId: task.id, command: ['sleep', mark] } }));
    await eventually('it runs', () => processesWith(`sleep ${mark}`).length === 1);
    const { sessionId = '' } = (await commandsBeside(daemon, task))[0] ?? {};
    const ended = `${task.id}/exec/other/1`;
    await daemon.daemon.executeSnippet({ sessionId, executionId: ended, language: 'javascript', code: '1' });
    await daemon.daemon.wait(sessionId, ended);
    first.child.kill('SIGKILL');
    await using second = await another();

    await second.recover(handle);

    await eventually('it is gone', () => processesWith(`sleep ${mark}`).length === 0);
    await eventually('they are forgotten', async () => (await commandsBeside(daemon, task)).length === 0);
    expect((await second.exec(task.id, ['echo', 'x'])).stdout.toString()).toBe('x\n');
    await second.destroy(task.id);
  });

  test('of tasks that wait for a place does not wait with them', async () => {
    await using own = await TestDaemon.start({ maxRunning: 1 });
    const config = { daemon_socket: own.endpoints.socket };
    await using first = await PluginHost.start(config);
    const tasks = Array.from({ length: 8 }, () => javascript(SLEEP));
    const handles = await Promise.all(tasks.map(async (task) => (await first.start(task)).handle));
    await using second = await PluginHost.start(config);
    const began = performance.now();

    // One after the other, as an agent does.
    for (const handle of handles) await second.recover(handle);

    // Eight times the driver's limit for each would be 24 s.
    expect(performance.now() - began).toBeLessThan(20_000);
    const states = await Promise.all(tasks.map(async ({ id }) => (await second.inspect(id)).task?.state));
    expect(states).toEqual(tasks.map(() => TaskState.RUNNING));
  });

  test('of many tasks does not wait for each where the daemon is stopped', { timeout: 120_000 }, async () => {
    await using own = await DaemonProcess.start();
    const config = { daemon_socket: own.socket };
    await using first = await PluginHost.start(config);
    const go = join(own.directory, 'go');
    const code = `setInterval(() => require("node:fs").existsSync("${go}") && process.exit(6), 20)`;
    const tasks = Array.from({ length: 8 }, (_, n) => javascript(n === 0 ? code : SLEEP));
    const handles = await Promise.all(tasks.map(async (task) => (await first.start(task)).handle));
    await using second = await PluginHost.start(config);
    const tookMs: number[] = [];
    own.child.kill('SIGSTOP');
    try {
      // One after the other, as an agent does: by one that is new, and by one that knows them.
      for (const host of [second, first]) {
        const began = performance.now();
        for (const handle of handles) await host.recover(handle);
        tookMs.push(performance.now() - began);
      }
    } finally {
      own.child.kill('SIGCONT');
    }

    // Eight times the driver's limit for each would be 24 s.
    expect(Math.max(...tookMs)).toBeLessThan(6_000);
    writeFileSync(go, '');
    for (const host of [second, first]) {
      expect(await host.wait(tasks[0]?.id as string)).toMatchObject({ result: { exitCode: 6 }, err: '' });
      const states = await Promise.all(tasks.map(async ({ id }) => (await host.inspect(id)).task?.state));
      expect(states).toEqual(tasks.map((_, n) => (n === 0 ? TaskState.EXITED : TaskState.RUNNING)));
    }
  });

  test('by one whose configuration is wrong finds the task all the same', async () => {
    const task = javascript(SLEEP);
    const handle = await handleOf(task);
    await using other = await PluginHost.start({ daemon_socket: daemon.endpoints.socket, logs: 'both' });

    await other.recover(handle);

    await other.stop(task.id, 'SIGKILL', 0);
    expect(await other.wait(task.id)).toMatchObject({ result: { signal: 9 }, err: '' });
  });

  test('without the daemon waits for it', async () => {
    const task = javascript('1');
    const handle = await handleOf(task);
    await using other = await PluginHost.start({ daemon_socket: join(root, 'none.sock'), reconnect_limit: '3s' });

    await other.recover(handle);
    expect(await other.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });

    const { result, err } = await other.wait(task.id);
    expect(result?.exitCode).toBe(-1);
    expect(err).toContain('no daemon answers');
  });

  test('of what nobody knows fails', async () => {
    const handle = await handleOf(javascript('1'));
    await using other = await another();
    const config = handle.config;

    await expect(other.recover(undefined)).rejects.toThrow('handle cannot be nil');
    await expect(other.recover({ ...handle, config: undefined })).rejects.toThrow('handle cannot be nil');
    await expect(other.recover({ ...handle, driverState: Buffer.from('{') })).rejects.toThrow();
    await expect(other.recover({ ...handle, driverState: Buffer.from('{"version":9}') })).rejects.toThrow(
      'another version',
    );
    await expect(other.recover({ ...handle, config: { ...config, id: 'gone' } })).rejects.toThrow('"gone" not found');
  });
});

describe('a daemon that goes and comes back', () => {
  const CODE = {
    javascript:
      'process.on("SIGTERM", () => { console.log("bye"); process.exit(5) }); console.log("ready"); setInterval(() => {}, 1000)',
    python:
      'import os, signal, sys, time\ndef bye(*_):\n  os.write(1, b"bye\\n")\n  sys.exit(5)\nsignal.signal(signal.SIGTERM, bye)\nprint("ready", flush=True)\nwhile True: time.sleep(60)',
  };

  test.each(['SIGKILL', 'SIGTERM'] as const)('after %s: tasks run on, and their ends are their own', async (signal) => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const first = await DaemonProcess.start(...places);
    await using other = await PluginHost.start({ daemon_socket: socket });
    const tasks = Object.entries(CODE).map(([language, code]) => taskIn(directory, { language, code }));
    const short = taskIn(directory, {
      language: 'javascript',
      code: `console.log("ready"); const { existsSync } = require("node:fs"); setInterval(() => existsSync(${JSON.stringify(join(directory, 'go'))}) && process.exit(6), 20)`,
    });
    for (const task of [...tasks, short]) await other.start(task);
    for (const task of [...tasks, short]) await ready(task);
    const ends = [...tasks, short].map(({ id }) => other.wait(id));

    await first.stop(signal);
    writeFileSync(join(directory, 'go'), '');
    for (const { id } of tasks) expect(await other.inspect(id)).toMatchObject({ task: { state: TaskState.RUNNING } });
    await using _second = await DaemonProcess.start(...places);

    // One ended while there was no daemon.
    expect(await ends[2]).toMatchObject({ result: { exitCode: 6 }, err: '' });
    for (const [index, task] of tasks.entries()) {
      expect((await other.exec(task.id, ['pwd'])).stdout.toString()).toBe(`${join(task.allocDir, 'task')}\n`);
      await other.stop(task.id, '', 50_000);
      expect(await ends[index]).toMatchObject({ result: { exitCode: 5, signal: 0 }, err: '' });
      expect(logsOf(task)).toBe('ready\nbye\n');
    }
  });

  test('again, long after the first time: a task that had nothing to say in between runs on', {
    timeout: 360_000,
  }, async () => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const startedAtMs = performance.now();
    const first = await DaemonProcess.start(...places);
    // More than any of the restarts takes, on a busy machine too.
    const limitMs = Math.round(2_000 + 3 * (performance.now() - startedAtMs));
    await using other = await PluginHost.start({ daemon_socket: socket, reconnect_limit: `${limitMs}ms` });
    const task = taskIn(directory, { language: 'javascript', code: CODE.javascript });
    await other.start(task);
    await ready(task);
    const end = other.wait(task.id);

    await first.stop('SIGTERM');
    const wentAtMs = performance.now();
    const second = await DaemonProcess.start(...places);
    await eventually('the first limit is over', () => performance.now() - wentAtMs > limitMs + 1_000, 180_000);
    await second.stop('SIGTERM');
    await using _third = await DaemonProcess.start(...places);

    await other.stop(task.id, '', 50_000);
    expect(await end).toMatchObject({ result: { exitCode: 5, signal: 0 }, err: '' });
  });

  test('tasks run on that a plugin had before it was configured anew', async () => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const first = await DaemonProcess.start(...places);
    await using other = await PluginHost.start({ daemon_socket: socket });
    const task = taskIn(directory, { language: 'javascript', code: CODE.javascript });
    await other.start(task);
    await ready(task);
    const end = other.wait(task.id);

    await other.setConfig({ daemon_socket: socket });
    await first.stop('SIGKILL');
    await using _second = await DaemonProcess.start(...places);

    expect((await other.exec(task.id, ['echo', 'there'])).stdout.toString()).toBe('there\n');
    await other.stop(task.id, '', 50_000);
    expect(await end).toMatchObject({ result: { exitCode: 5, signal: 0 }, err: '' });
  });

  test('a signal that it was not there for reaches the task when it is', async () => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const first = await DaemonProcess.start(...places);
    await using other = await PluginHost.start({ daemon_socket: socket });
    const task = taskIn(directory, {
      language: 'javascript',
      code: 'process.on("SIGHUP", () => process.exit(6)); console.log("ready"); setInterval(() => {}, 1000)',
    });
    await other.start(task);
    await ready(task);

    await first.stop('SIGKILL');
    const signalled = other.signal(task.id, 'SIGHUP');
    // It is answered when the daemon has been looked for in vain.
    await other.inspect(task.id);
    await using _second = await DaemonProcess.start(...places);

    await signalled;
    expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
  });

  describe('and commands beside a task', () => {
    const LONG = `9${process.pid}`;
    const running = () => processesWith(`sleep ${LONG}`).length;

    test('one that comes while it is away runs when it is back', async () => {
      const [socket, places] = placesIn(temporaryDirectory());
      const first = await DaemonProcess.start(...places);
      await using other = await PluginHost.start({ daemon_socket: socket });
      const task = taskIn(temporaryDirectory(), { language: 'javascript', code: SLEEP });
      await other.start(task);

      await first.stop('SIGKILL');
      const answered = other.exec(task.id, ['echo', 'late']);
      await other.inspect(task.id);
      await using _second = await DaemonProcess.start(...places);

      expect((await answered).stdout.toString()).toBe('late\n');
    });

    test('one runs on though it is away longer than a client waits by itself', { timeout: 180_000 }, async () => {
      const [socket, places] = placesIn(temporaryDirectory());
      const first = await DaemonProcess.start(...places);
      await using other = await PluginHost.start({ daemon_socket: socket });
      const task = taskIn(temporaryDirectory(), { language: 'javascript', code: SLEEP });
      await other.start(task);
      const call = other.driver.execTaskStreaming();
      let written = '';
      call.on('data', ({ stdout }: ExecTaskStreamingResponse) => {
        written += stdout?.data ?? '';
      });
      const ended = new Promise((resolve) => call.on('end', resolve).on('error', resolve));
      const write = (request: object) => call.write(ExecTaskStreamingRequest.fromPartial(request));
      write({ setup: { taskId: task.id, command: ['cat'] } });
      write({ stdin: { data: Buffer.from('early ') } });
      await eventually('it runs', () => written === 'early ');

      await first.stop('SIGKILL');
      await sleep(11_000);
      await using _second = await DaemonProcess.start(...places);
      write({ stdin: { data: Buffer.from('late'), close: true } });

      await ended;
      expect(written).toBe('early late');
    });

    test('what is written to one while it is away is there when it is back, once', async () => {
      const [socket, places] = placesIn(temporaryDirectory());
      const first = await DaemonProcess.start(...places);
      await using other = await PluginHost.start({ daemon_socket: socket });
      const task = taskIn(temporaryDirectory(), { language: 'javascript', code: SLEEP });
      await other.start(task);
      const call = other.driver.execTaskStreaming();
      let written = '';
      call.on('error', () => {});
      call.on('data', ({ stdout }: ExecTaskStreamingResponse) => {
        written += stdout?.data ?? '';
      });
      const write = (request: object) => call.write(ExecTaskStreamingRequest.fromPartial(request));
      write({ setup: { taskId: task.id, command: ['cat'] } });
      write({ stdin: { data: Buffer.from('early ') } });
      await eventually('it runs', () => written === 'early ');

      await first.stop('SIGKILL');
      write({ stdin: { data: Buffer.from('late ') } });
      await other.inspect(task.id);
      await using _second = await DaemonProcess.start(...places);
      write({ stdin: { data: Buffer.from('last'), close: true } });

      await once(call, 'end');
      expect(written).toBe('early late last');
    });

    test.each(['its time is over', 'its caller leaves'])(
      'when %s its call ends, and it is not forgotten',
      async (why) => {
        const [socket, places] = placesIn(temporaryDirectory());
        const first = await DaemonProcess.start(...places);
        await using other = await PluginHost.start({ daemon_socket: socket });
        const task = taskIn(temporaryDirectory(), { language: 'javascript', code: SLEEP });
        await other.start(task);
        const timed = why === 'its time is over';
        const call = other.driver.execTaskStreaming();
        call.on('error', () => {});
        const setup = { taskId: task.id, command: ['sleep', LONG] };
        if (!timed) call.write(ExecTaskStreamingRequest.fromPartial({ setup }));
        const answered = timed ? other.exec(task.id, setup.command, 6_000) : undefined;
        await eventually('it runs', () => running() === 1);

        await first.stop('SIGKILL');
        const wentAtMs = performance.now();
        call.cancel();
        await Promise.allSettled([answered, other.inspect(task.id)]);
        // Nobody waits for the daemon: that would be 10 s, or more.
        expect(performance.now() - wentAtMs).toBeLessThan(9_500);
        expect(running()).toBe(1);
        await using _second = await DaemonProcess.start(...places);

        await eventually('it is gone', () => running() === 0);
      },
    );
  });

  describe.each([
    ['is gone', 'SIGKILL'],
    ['stands still', 'SIGSTOP'],
  ] as const)('holds up no agent while it %s, which waits for', (_how, signal) => {
    const running = (task: TaskConfig) => isAlive(Number(/ready (\d+)/.exec(logsOf(task))?.[1]));

    /** A task of a daemon that then goes; `back` is another one in its place, or the same. */
    async function without() {
      const directory = temporaryDirectory();
      const [socket, places] = placesIn(directory);
      const first = await DaemonProcess.start(...places);
      const other = await PluginHost.start({ daemon_socket: socket });
      const code = 'console.log("ready", process.pid); setInterval(() => {}, 1000)';
      const task = taskIn(directory, { language: 'javascript', code });
      const { handle } = await other.start(task);
      await ready(task);
      if (signal === 'SIGKILL') await first.stop(signal);
      else first.child.kill(signal);
      const back = async () => {
        if (signal === 'SIGKILL') return DaemonProcess.start(...places);
        first.child.kill('SIGCONT');
        return first;
      };
      return { socket, other, task, handle, back };
    }

    test('the stop of a task: it takes effect when the daemon is back', async () => {
      const { other, task, back } = await without();
      await using _other = other;

      await other.stop(task.id, '', 50_000);

      expect(running(task)).toBe(true);
      await using _second = await back();
      expect(await other.wait(task.id)).toMatchObject({ result: { signal: 15 }, err: '' });
      expect(running(task)).toBe(false);
    });

    test('the end of a task that it has found again: it is gone when the daemon is back', async () => {
      const { socket, other, task, handle, back } = await without();
      await using _other = other;
      await using after = await PluginHost.start({ daemon_socket: socket });
      await after.recover(handle);
      const waited = after.wait(task.id);

      await after.destroy(task.id);

      expect((await waited).result?.exitCode).toBe(-1);
      await expect(after.inspect(task.id)).rejects.toThrow('task not found');
      expect(running(task)).toBe(true);
      await using _second = await back();
      await eventually('it is gone', () => !running(task));
    });
  });

  test('after the limit: a task that has failed for it does not run on beside the next', async () => {
    const directory = temporaryDirectory();
    const [socket, places] = placesIn(directory);
    const first = await DaemonProcess.start(...places);
    await using other = await PluginHost.start({ daemon_socket: socket, reconnect_limit: '1s' });
    const code = 'console.log("ready", process.pid); setInterval(() => {}, 1000)';
    const task = taskIn(directory, { language: 'javascript', code });
    await other.start(task);
    await ready(task);
    const pid = Number(/ready (\d+)/.exec(logsOf(task))?.[1]);

    await first.stop('SIGKILL');
    expect((await other.wait(task.id)).err).toContain('no daemon answers');
    await other.destroy(task.id);
    expect(isAlive(pid)).toBe(true);
    await using _second = await DaemonProcess.start(...places);

    await eventually('it is gone', () => !isAlive(pid));
  });

  test('without its state: a task that it does not know has failed, and says why', async () => {
    const directory = temporaryDirectory();
    const socket = join(directory, 'd.sock');
    const config = join(directory, 'config.json');
    // What the first leaves behind is nobody's.
    writeFileSync(config, JSON.stringify({ orphanGraceMs: 0 }));
    const first = await DaemonProcess.start('--socket', socket, '--config', config);
    await using other = await PluginHost.start({ daemon_socket: socket });
    const task = taskIn(directory, { language: 'javascript', code: SLEEP });
    await other.start(task);

    await first.stop('SIGKILL');
    await using _second = await DaemonProcess.start('--socket', socket);

    const { result, err } = await other.wait(task.id);
    expect(result?.exitCode).toBe(-1);
    expect(err).toContain('not found');
  });
});

describe('a daemon on TCP that comes back, and does not let the driver in', () => {
  interface Credentials {
    first: string[];
    second: string[];
    config: object;
    /** What the agent's configuration names is what the second wants. */
    mend: () => void;
    /** As the agent is told. */
    why: RegExp;
  }

  const credentials: Record<string, (directory: string) => Promise<Credentials>> = {
    'its token is another': async (directory) => {
      const [own, daemons, others] = ['own', 'first', 'second'].map((name) => join(directory, name)) as [
        string,
        string,
        string,
      ];
      const write = (path: string, token: string) => writeFileSync(path, token, { mode: 0o600 });
      for (const path of [own, daemons]) write(path, 'correct-horse');
      write(others, 'battery-staple');
      return {
        first: ['--token-file', daemons],
        second: ['--token-file', others],
        config: { daemon_token_file: own },
        mend: () => write(own, 'battery-staple'),
        why: /wants its token/,
      };
    },
    'the file with its token is gone': async (directory) => {
      const [own, daemons] = [join(directory, 'own'), join(directory, 'token')];
      const write = (path: string) => writeFileSync(path, 'correct-horse', { mode: 0o600 });
      write(own);
      write(daemons);
      const flags = ['--token-file', daemons];
      return {
        first: flags,
        get second() {
          rmSync(own);
          return flags;
        },
        config: { daemon_token_file: own },
        mend: () => write(own),
        why: /tokenFile .*ENOENT/,
      };
    },
    'its certificate is of another authority': async (directory) => {
      const [one, two] = [await Authority.create(directory, 'one'), await Authority.create(directory, 'two')];
      const flags = ({ certFile, keyFile }: KeyPairFiles) => ['--tls-cert', certFile, '--tls-key', keyFile];
      const [first, second] = [await one.issue('a', ['127.0.0.1']), await two.issue('b', ['127.0.0.1'])];
      const ca = join(directory, 'ca.crt');
      copyFileSync(one.certFile, ca);
      return {
        first: flags(first),
        second: flags(second),
        config: { daemon_tls: { ca_file: ca } },
        mend: () => copyFileSync(two.certFile, ca),
        why: /certificate/,
      };
    },
    'it wants a certificate of another authority': async (directory) => {
      const [one, two] = [await Authority.create(directory, 'one'), await Authority.create(directory, 'two')];
      const { certFile, keyFile } = await one.issue('server', ['127.0.0.1']);
      const [own, others] = [await one.issue('own', []), await two.issue('other', [])];
      const flags = ['--tls-cert', certFile, '--tls-key', keyFile, '--tls-client-ca'];
      return {
        first: [...flags, one.certFile],
        second: [...flags, two.certFile],
        config: { daemon_tls: { ca_file: one.certFile, cert_file: own.certFile, key_file: own.keyFile } },
        mend: () => {
          copyFileSync(others.certFile, own.certFile);
          copyFileSync(others.keyFile, own.keyFile);
        },
        why: /no daemon answers/,
      };
    },
  };

  test.each(Object.entries(credentials))('%s: tasks wait, also those of the next plugin', async (_name, make) => {
    const directory = temporaryDirectory();
    const [, places] = placesIn(directory);
    const given = await make(directory);
    const daemon = await DaemonProcess.start(...places, ...given.first);
    const config = { daemon_address: daemon.tcp, ...given.config };
    await using before = await PluginHost.start(config);
    const go = join(directory, 'go');
    const task = taskIn(directory, {
      language: 'javascript',
      code: `console.log("ready"); setInterval(() => require("node:fs").existsSync("${go}") && process.exit(6), 20)`,
    });
    const { handle } = await before.start(task);
    await ready(task);
    const waited = before.wait(task.id);

    await daemon.stop('SIGKILL');
    await using _second = await DaemonProcess.start(...places, '--tcp', daemon.tcp, ...given.second);
    await using after = await PluginHost.start(config);
    await after.recover(handle);
    const [found] = await fingerprints(after, () => true);
    expect([found?.health === Health.HEALTHY, found?.healthDescription]).toEqual([
      false,
      expect.stringMatching(given.why),
    ]);
    for (const host of [before, after]) {
      expect(await host.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
    }

    given.mend();
    await fingerprints(after, (all) => all.at(-1)?.health === Health.HEALTHY);
    writeFileSync(go, '');
    expect(await waited).toMatchObject({ result: { exitCode: 6 }, err: '' });
    expect(await after.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
  });
});
