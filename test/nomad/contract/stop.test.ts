import { status } from '@grpc/grpc-js';
import { describe, expect, test } from 'vitest';
import { TaskState } from '../../../src/gen/nomad/driver.ts';
import { eventually, processesWith, TestDaemon } from '../../support/daemon.ts';
import { logsOf, PluginHost } from '../host.ts';
import { host, javascript, messagesOf, python, ready, SLEEP, usePlugin } from './fixture.ts';

usePlugin();

describe('a stop', () => {
  test('gives the guest its signal and its time', async () => {
    const task = javascript(
      'process.on("SIGHUP", () => { console.log("bye"); process.exit(3) }); console.log("ready"); setInterval(() => {}, 1000)',
    );
    await host.start(task);
    await ready(task);

    await host.stop(task.id, 'SIGHUP', 50_000);

    expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 3, signal: 0 }, err: '' });
    expect(logsOf(task)).toBe('ready\nbye\n');
  });

  test('is SIGTERM where nobody says, then force when the time is over', async () => {
    const task = python(
      'import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os.write(1, b"no\\n"))\nprint("ready", flush=True)\nwhile True: time.sleep(60)',
    );
    await host.start(task);
    await ready(task);
    const began = performance.now();

    await host.stop(task.id, '', 4_000);

    expect(performance.now() - began).toBeGreaterThan(3_950);
    expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 137, signal: 9 } });
    expect(logsOf(task)).toBe('ready\nno\n');
  });

  test('without time is force at once, for every waiter', async () => {
    const task = python('import time\nprint("ready", flush=True)\ntime.sleep(60)');
    await host.start(task);
    await ready(task);
    const waiters = [host.wait(task.id), host.wait(task.id)];

    await host.stop(task.id, 'SIGINT', 0);

    for (const end of await Promise.all(waiters))
      expect(end.result).toEqual({ exitCode: 137, signal: 9, oomKilled: false });
    await host.stop(task.id, 'SIGTERM', 1_000);
  });

  test('with a signal that cannot be sent is SIGTERM all the same', async () => {
    const task = javascript(SLEEP);
    await host.start(task);
    await ready(task);

    await host.stop(task.id, 'SIGNONE', 50_000);

    expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 143, signal: 15 } });
  });

  test('by destroy needs force', async () => {
    const task = javascript(SLEEP);
    await host.start(task);

    await expect(host.destroy(task.id, false)).rejects.toThrow('cannot destroy running task');
    const end = host.wait(task.id);
    await host.destroy(task.id);

    expect(await end).toMatchObject({ result: { signal: 9 } });
  });

  test('leaves nothing of the guest’s children', async () => {
    const mark = `9${process.pid}`;
    const task = python(
      `import subprocess, time\nsubprocess.Popen(['sleep', '${mark}'], start_new_session=True)\nprint("ready", flush=True)\ntime.sleep(60)`,
    );
    await host.start(task);
    await ready(task);
    expect(processesWith(`sleep ${mark}`).length).toBe(1);

    await host.stop(task.id, '', 1_000);

    expect(processesWith(`sleep ${mark}`)).toEqual([]);
  });
});

test('a signal reaches the guest, an unknown one is said to be', async () => {
  const task = javascript(
    'process.on("SIGUSR1", () => { console.log("usr1"); process.exit(3) }); console.log("ready"); setInterval(() => {}, 1000)',
  );
  await host.start(task);
  await ready(task);

  await expect(host.signal(task.id, 'SIGNONE')).rejects.toThrow('unknown signal "SIGNONE"');
  await host.signal(task.id, 'SIGUSR1');

  expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 3 } });
  expect(logsOf(task)).toBe('ready\nusr1\n');
});

test('a signal to a task that gets no place for long is answered, with an event, and reaches it once it runs', async () => {
  await using own = await TestDaemon.start({ maxRunning: 1 });
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket });
  const [first, second] = [javascript(SLEEP), javascript(SLEEP)];
  await other.start(first);
  await other.start(second);
  const messages = messagesOf(other, second);

  await other.signal(second.id, 'SIGHUP');

  await eventually('it is told', () =>
    messages.some((message) => message.includes('SIGHUP is sent when it has begun')),
  );
  await other.destroy(first.id);
  expect(await other.wait(second.id)).toMatchObject({ result: { signal: 1 } });
});

test('a signal to a task that waits for a place reaches it once it runs', async () => {
  await using own = await TestDaemon.start({ maxRunning: 1 });
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket });
  const [first, second] = [javascript(SLEEP), javascript(SLEEP)];
  await other.start(first);
  await other.start(second);
  const signalled = other.signal(second.id, 'SIGHUP');

  await other.destroy(first.id);

  await signalled;
  expect(await other.wait(second.id)).toMatchObject({ result: { signal: 1 } });
});

test('a wait that is cancelled ends, and the task goes on', async () => {
  const task = javascript(SLEEP);
  await host.start(task);
  const { promise, resolve } = Promise.withResolvers<number | undefined>();
  const call = host.driver.waitTask({ taskId: task.id }, (error) => resolve(error?.code));
  call.cancel();

  expect(await promise).toBe(status.CANCELLED);
  expect(await host.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
  await host.destroy(task.id);
});
