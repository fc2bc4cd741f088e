import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { connectDaemon } from '../../../src/client/index.ts';
import {
  type DriverTaskEvent,
  FingerprintResponse_HealthState as Health,
  type TaskConfig,
  TaskState,
  type TaskStatsResponse,
} from '../../../src/gen/nomad/driver.ts';
import { RpcStatus } from '../../../src/gen/nomad/errors.ts';
import { eventually, processesWith, TestDaemon, temporaryDirectory } from '../../support/daemon.ts';
import { DaemonProcess } from '../../support/daemon-process.ts';
import { collect, detailOf, logsOf, PluginHost, taskIn } from '../host.ts';
import {
  daemon,
  fingerprints,
  host,
  javascript,
  messagesOf,
  placesIn,
  python,
  ready,
  root,
  SLEEP,
  usePlugin,
} from './fixture.ts';

usePlugin();

describe('a task', () => {
  test.each([
    ['javascript', 'console.log("out"); console.error("err"); process.exitCode = 7'],
    ['typescript', 'const code: number = 7; console.log("out"); console.error("err"); process.exitCode = code'],
    ['python', 'import sys\nprint("out")\nprint("err", file=sys.stderr)\nsys.exit(7)'],
  ])('of %s has its logs and its exit code', async (language, code) => {
    const task = taskIn(root, { language, code });

    const { result, err } = await host.run(task);

    expect({ result, err }).toEqual({ result: { exitCode: 7, signal: 0, oomKilled: false }, err: '' });
    expect([logsOf(task), logsOf(task, 'stderr')]).toEqual(['out\n', 'err\n']);
  });

  test('answers for its end until it is destroyed, and is not known after', async () => {
    const task = javascript('0');
    await host.run(task);

    expect(await host.wait(task.id)).toMatchObject({ result: { exitCode: 0 } });
    await host.destroy(task.id, false);

    const gone = 'task not found for given id';
    await expect(host.inspect(task.id)).rejects.toThrow(gone);
    await expect(host.wait(task.id)).rejects.toThrow(gone);
    await expect(host.stop(task.id, '', 0)).rejects.toThrow(gone);
    await expect(host.signal(task.id, 'SIGINT')).rejects.toThrow(gone);
    await expect(host.exec(task.id, ['true'])).rejects.toThrow(gone);
    await expect(host.destroy(task.id)).rejects.toThrow(gone);
    await expect(
      collect(host.driver.taskStats({ taskId: task.id, collectionInterval: undefined }), () => true),
    ).rejects.toThrow(gone);
  });

  test('is running with a start time, then exited with both', async () => {
    const task = python('import sys\nsys.stdin.read()\nimport time\nprint("ready", flush=True)\ntime.sleep(60)');
    await host.start(task);
    await ready(task);

    const running = await host.inspect(task.id);
    expect(running.task).toMatchObject({
      id: task.id,
      name: 'task',
      state: TaskState.RUNNING,
      result: { exitCode: 0 },
    });
    expect(running.task?.startedAt?.getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(running.task?.completedAt?.getUTCFullYear()).toBe(1);
    expect(Number(running.driver?.attributes.pid)).toBeGreaterThan(1);

    await host.stop(task.id, 'SIGINT', 2_000);
    const exited = await host.inspect(task.id);
    expect(exited.task).toMatchObject({ state: TaskState.EXITED, startedAt: running.task?.startedAt });
    expect(exited.task?.completedAt?.getTime()).toBeGreaterThan(running.task?.startedAt?.getTime() as number);
  });

  test('has the directory, the environment and the arguments it was given', async () => {
    const task = javascript(
      'console.log(JSON.stringify([process.cwd(), process.env.A, process.env.B, process.env.PLUGIN_PROTOCOL_VERSIONS, process.argv.slice(2)]))',
      { args: ['x', 'y z'], env: { B: '2' } },
    );
    task.env = { ...task.env, A: '1', B: 'overridden' };

    await host.run(task);

    expect(JSON.parse(logsOf(task))).toEqual([join(task.allocDir, 'task'), '1', '2', null, ['x', 'y z']]);
  });

  test.each([
    [
      'local/main.mjs',
      'import { a } from "./other.mjs"; console.log(a)',
      'local/other.mjs',
      'export const a = 1;',
      '1\n',
    ],
    [
      'local/main.py',
      'from other import a\nprint(a, __file__.endswith("local/main.py"))',
      'local/other.py',
      'a = 1',
      '1 True\n',
    ],
    [
      '../alloc/data/main.ts',
      'import { a } from "./other.ts"; const b: number = a; console.log(b)',
      '../alloc/data/other.ts',
      'export const a: number = 1;',
      '1\n',
    ],
  ])(
    'a script %s has its neighbours, and its language by its ending',
    async (script, code, other, otherCode, printed) => {
      const task = taskIn(root, { script });
      writeFileSync(join(task.allocDir, 'task', script), code);
      writeFileSync(join(task.allocDir, 'task', other), otherCode);

      const { result } = await host.run(task);

      expect([logsOf(task, 'stderr'), logsOf(task), result?.exitCode]).toEqual(['', printed, 0]);
    },
  );

  test.each([
    [{}, 'exactly one of script and code'],
    [{ script: 'a.js', code: '1' }, 'exactly one of script and code'],
    [{ script: 'none.js' }, 'script "none.js": ENOENT'],
    [{ script: '../../outside.js' }, 'leads out of'],
    [{ script: 'link.js' }, 'leads out of'],
    [{ script: 'binary.js' }, 'script "binary.js"'],
    [{ script: 'pipe.js' }, 'is no plain file'],
    [{ code: '1', language: 'cobol' }, 'unknown language "cobol"'],
    [{ code: '1', elide_opts: { timeout: 'long' } }, 'elide_opts.timeout: it must be a duration'],
    [{ code: '1', elide_opts: { memory_limit: 'all' } }, 'elide_opts.memory_limit: it must be a size'],
    [{ code: '1', elide_opts: { memory_limit: '1' } }, 'elide_opts.memory_limit: it must be 8 MiB to 1048576 MiB'],
    [
      { code: '1', elide_opts: { on_timeout: 'SIGNONE', timeout: '1s' } },
      'elide_opts.on_timeout: it must be cancel, kill or the name of a signal',
    ],
    [{ code: '1', isolation: 'vm' }, 'isolation'],
    [Buffer.from([0xc1]), 'failed to decode driver config'],
  ])('%o is refused for good', async (config, message) => {
    const task = taskIn(root, config);
    const directory = join(task.allocDir, 'task');
    writeFileSync(join(root, 'outside.js'), '1');
    symlinkSync(join(root, 'outside.js'), join(directory, 'link.js'));
    execFileSync('mkfifo', [join(directory, 'pipe.js')]);
    writeFileSync(join(directory, 'binary.js'), Buffer.from([0xff, 0xfe, 0x00]));

    const error = await host.start(task).catch((caught) => caught);

    expect(error).toMatchObject({ code: status.UNKNOWN });
    expect(error.details).toContain(message);
    await expect(host.wait(task.id)).rejects.toThrow('task not found');
  });

  test('a script that is too large is refused for good, and fills no memory', async () => {
    await using other = await PluginHost.start({ daemon_socket: daemon.endpoints.socket });
    const task = taskIn(root, { script: 'large.js' });
    const file = join(task.allocDir, 'task/large.js');
    writeFileSync(file, '');
    truncateSync(file, 300 * 2 ** 20);

    const error = await other.start(task).catch((caught) => caught);

    const details = 'script "large.js": it has 314572800 bytes; at most 67108864 are allowed';
    expect(error).toMatchObject({ code: status.UNKNOWN, details });
    const peakKb = /VmHWM:\s*(\d+)/.exec(readFileSync(`/proc/${other.child.pid}/status`, 'utf8'))?.[1];
    expect(Number(peakKb)).toBeLessThan(200 * 1024);
  });

  test('a language that is not enabled is answered with those that are', async () => {
    const session_config = { enabled_languages: ['python'] };
    await using other = await PluginHost.start({
      daemon_socket: daemon.endpoints.socket,
      session_id: 'py',
      session_config,
    });

    await expect(other.start(javascript('1'))).rejects.toThrow(/"javascript" is not enabled .*enabled: python/);
  });

  test('a language that is enabled while a task runs is there for the first task after it', async () => {
    await using own = await TestDaemon.start();
    const withLanguages = (...enabled_languages: string[]) =>
      PluginHost.start({ daemon_socket: own.endpoints.socket, session_id: 's', session_config: { enabled_languages } });
    await using first = await withLanguages('javascript');
    await using next = await withLanguages('javascript', 'python');
    const task = javascript(SLEEP);
    await first.start(task);
    // It is not looked for again after that.
    await fingerprints(next, (all) => all.at(-1)?.health === Health.HEALTHY);
    await expect(next.start(python('1'))).rejects.toThrow('"python" is not enabled');

    await first.destroy(task.id);

    expect(await next.run(python('import sys; sys.exit(3)'))).toMatchObject({ result: { exitCode: 3 } });
    expect(next.log.filter((line) => line.includes('keeps its configuration'))).toHaveLength(1);
  });

  test.each(['nobody-of-ours', 'nobody', '54321'])('of another user, %s, is refused by name', async (user) => {
    const wanted = `unknown user "${user}": this driver runs tasks as the daemon's user, ${process.getuid?.()}`;
    await expect(host.start(taskIn(root, { code: '1' }, { user }))).rejects.toThrow(wanted);
  });

  test.each([userInfo().username, String(userInfo().uid)])('of the daemon’s user, %s, is taken', async (user) => {
    const task = taskIn(root, { code: 'print(1)' }, { user });

    expect(await host.run(task)).toMatchObject({ result: { exitCode: 0 } });
  });

  test('of a user waits for a daemon that is away as any other', async () => {
    await using other = await PluginHost.start({ daemon_socket: join(root, 'nobody.sock') });

    const error = await other.start(taskIn(root, { code: '1' }, { user: 'root' })).catch((caught) => caught);

    expect(error).toMatchObject({ code: status.FAILED_PRECONDITION });
  });

  // Only root may become somebody else.
  describe.skipIf(process.getuid?.() !== 0)('of a plugin whose user has no name', () => {
    let away: TestDaemon;
    let other: PluginHost;

    beforeAll(async () => {
      away = await TestDaemon.start({ tcp: '127.0.0.1:0' });
      const launcher = ['setpriv', '--reuid', '12345', '--clear-groups'];
      other = await PluginHost.start({ daemon_address: away.endpoints.tcp }, {}, launcher);
    });
    afterAll(async () => {
      await other[Symbol.asyncDispose]();
      await away[Symbol.asyncDispose]();
    });

    test('starts where it names none', async () => {
      expect(await other.run(javascript('process.exit(3)'))).toMatchObject({ result: { exitCode: 3 } });
    });

    test.each(['root', '12345'])('is refused where it names one, %s: the daemon is on TCP', async (user) => {
      const task = taskIn(root, { code: '1' }, { user });

      await expect(other.start(task)).rejects.toThrow(`user "${user}" cannot be checked`);
    });
  });

  test('the same id twice is refused, and nothing else starts', async () => {
    const task = javascript(SLEEP);
    await host.start(task);

    await expect(host.start(task)).rejects.toThrow(`task with ID "${task.id}" already started`);

    await host.destroy(task.id);
  });

  test('a daemon that is away is worth another try, and says so as the agent reads it', async () => {
    await using other = await PluginHost.start({ daemon_socket: join(root, 'nobody.sock') });

    const error = await other.start(javascript('1')).catch((caught) => caught);

    expect(error).toMatchObject({ code: status.FAILED_PRECONDITION });
    const detail = RpcStatus.decode(detailOf(error) as Buffer);
    expect(detail).toMatchObject({ code: status.FAILED_PRECONDITION, message: error.details });
    expect(detail.details).toEqual([
      {
        typeUrl: 'type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError',
        value: { recoverable: true },
      },
    ]);
  });

  test('that comes while the session closes starts in the next one', async () => {
    await using other = await PluginHost.start({ daemon_socket: daemon.endpoints.socket, session_id: 'closes' });
    const stubborn = javascript(
      'const { existsSync } = require("node:fs"); process.on("SIGTERM", () => {}); console.log("ready"); setInterval(() => existsSync("go") && process.exit(), 20)',
    );
    await other.start(stubborn);
    await ready(stubborn);
    const closed = daemon.daemon.deleteSession('closes', { graceMs: 60_000 });
    const accepts = vi.spyOn(daemon.daemon, 'executeSnippet');

    const next = other.run(javascript('process.exit(4)'));
    await eventually('it is not accepted', () => accepts.mock.settledResults.some(({ type }) => type === 'rejected'));
    accepts.mockRestore();
    writeFileSync(join(stubborn.allocDir, 'task/go'), '');

    expect(await next).toMatchObject({ result: { exitCode: 4 }, err: '' });
    await closed;
  });

  describe('that a daemon did not answer, as it was stopped: the start was worth another try', () => {
    /** Its answer. */
    const startedWhileStopped = async (own: DaemonProcess, other: PluginHost, task: TaskConfig): Promise<unknown> => {
      await fingerprints(other, (all) => all.at(-1)?.health === Health.HEALTHY);
      own.child.kill('SIGSTOP');
      const late = setTimeout(() => own.child.kill('SIGCONT'), 30_000);
      const error = await other.start(task).catch((caught) => caught);
      clearTimeout(late);
      return error;
    };
    const UNANSWERED = { code: status.FAILED_PRECONDITION, details: 'the daemon does not answer' };

    test('does not run where it takes it after all', { timeout: 180_000 }, async () => {
      await using own = await DaemonProcess.start();
      await using other = await PluginHost.start({ daemon_socket: own.socket, session_id: 's' });
      const task = javascript(SLEEP);

      const error = await startedWhileStopped(own, other, task);
      own.child.kill('SIGCONT');

      expect(error).toMatchObject(UNANSWERED);
      using client = connectDaemon({ socket: own.socket });
      // It may ask before the daemon has taken what it finds in its sockets.
      const reason = () =>
        client.getExecutionStatus('s', task.id).then(
          ({ result }) => result?.reason,
          () => undefined,
        );
      await eventually('it is ended', async () => (await reason()) === 'cancelled');
      await expect(other.inspect(task.id)).rejects.toThrow('task not found');
    });

    test('is not handed in to the next one', { timeout: 180_000 }, async () => {
      const [socket, places] = placesIn(temporaryDirectory());
      const first = await DaemonProcess.start(...places);
      await using other = await PluginHost.start({ daemon_socket: socket, session_id: 's' });
      const [task, next] = [javascript('require("node:fs").writeFileSync("ran", "")'), javascript('process.exit(4)')];

      const error = await startedWhileStopped(first, other, task);
      await first.stop('SIGKILL');
      await using _second = await DaemonProcess.start(...places);

      expect(error).toMatchObject(UNANSWERED);
      expect(await other.run(next)).toMatchObject({ result: { exitCode: 4 } });
      using client = connectDaemon({ socket });
      await expect(client.getExecutionStatus('s', task.id)).rejects.toThrow(`"${task.id}" not found`);
      expect(existsSync(join(task.allocDir, 'task/ran'))).toBe(false);
    });
  });

  test('that begins while its agent dies does not run on: the next agent starts it anew', async () => {
    await using own = await TestDaemon.start({ maxRunning: 1 });
    await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket, session_id: 's' });
    const [first, second] = [javascript(SLEEP), javascript(SLEEP)];
    await other.start(first);
    const call = other.driver.startTask({ task: second }, () => {});
    await eventually('it is accepted', async () => (await own.daemon.listExecutions()).length === 2);

    call.cancel();

    await own.daemon.wait('s', second.id);
    expect(await own.daemon.getExecutionStatus('s', second.id)).toMatchObject({ result: { reason: 'cancelled' } });
    await expect(other.inspect(second.id)).rejects.toThrow('task not found');
    expect(await other.inspect(first.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
  });

  describe('that its agent starts anew, knowing nothing of the first start', () => {
    const anew = (task: TaskConfig): TaskConfig => ({ ...task, id: task.id.replace(/[^/]+$/, 'ffffffff') });

    test('as it was killed with its plugin: the first does not run beside the second', async () => {
      await using own = await TestDaemon.start({ maxRunning: 1 });
      const config = { daemon_socket: own.endpoints.socket, session_id: 's' };
      await using before = await PluginHost.start(config);
      const [running, task] = [javascript(SLEEP), javascript('process.exit(6)')];
      await before.start(running);
      before.driver.startTask({ task }, () => {});
      await eventually('it is accepted', async () => (await own.daemon.listExecutions()).length === 2);
      before.child.kill('SIGKILL');
      await using after = await PluginHost.start(config);

      await after.start(anew(task));

      expect(await own.daemon.getExecutionStatus('s', task.id)).toMatchObject({ result: { reason: 'cancelled' } });
      expect(await own.daemon.getExecutionStatus('s', running.id)).toMatchObject({ state: 'running' });
      await own.daemon.cancelExecution('s', running.id);
      expect(await after.wait(anew(task).id)).toMatchObject({ result: { exitCode: 6 } });
    });

    test('as it was killed before it wrote that down: the first is gone when the second begins', async () => {
      const first = javascript(SLEEP);
      const second = anew(first);
      await host.start(first);
      const ended = host.wait(first.id);
      await ready(first);
      const command = host.exec(first.id, ['sleep', `5${process.pid}`], 60_000);
      await eventually('it runs', () => processesWith(`sleep 5${process.pid}`).length === 1);

      await host.start(second);

      expect(await ended).toMatchObject({ result: { signal: 9 } });
      expect(await command).toMatchObject({ result: { signal: 9 } });
      expect(processesWith(`sleep 5${process.pid}`)).toEqual([]);
      await expect(host.inspect(first.id)).rejects.toThrow('task not found');
      expect(await host.inspect(second.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
      await host.destroy(second.id);
    });

    test('under the same id after its plugin was killed: it is the first', async () => {
      const config = { daemon_socket: daemon.endpoints.socket, session_id: 'again' };
      await using before = await PluginHost.start(config);
      const task = javascript(SLEEP);
      await before.start(task);
      before.child.kill('SIGKILL');
      await using after = await PluginHost.start(config);

      await after.start(task);

      expect(await after.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
      await after.destroy(task.id);
    });
  });

  test('memory beyond its resources is its end, told as such', async () => {
    const allocatedResources = { cpu: undefined, memory: { memoryMb: 48n, memoryMaxMb: 0n }, networks: [] };
    const task = javascript('const all = []; for (;;) all.push(Buffer.alloc(1e6, 1))');
    task.resources = { allocatedResources, linuxResources: undefined, ports: [] };

    const { result } = await host.run(task);

    expect(result).toEqual({ exitCode: 137, signal: 9, oomKilled: true });
  });

  test('memory_max is the limit where there is one, and -1 is none', async () => {
    const code = 'const kept = Buffer.alloc(120e6, 1); setTimeout(() => console.log(kept.length), 300)';
    for (const memoryMaxMb of [256n, -1n]) {
      const task = javascript(code);
      const allocatedResources = { cpu: undefined, memory: { memoryMb: 64n, memoryMaxMb }, networks: [] };
      task.resources = { allocatedResources, linuxResources: undefined, ports: [] };
      expect(await host.run(task)).toMatchObject({ result: { exitCode: 0, oomKilled: false } });
    }
  });

  test.each([
    ['the daemon’s', { executionCeilings: { memoryLimitMb: 64 } }, [undefined, undefined], {}],
    ['its configuration’s', {}, [64, 64], { elide_opts: { memory_limit: '2048' } }],
    ['which it keeps while a task runs', {}, [64, 2048], {}],
  ])('memory beyond its session’s, %s, is cut to that, which is told', async (_whose, node, figures, options) => {
    await using own = await TestDaemon.start(node);
    const [first, next] = figures.map((memory_limit_mb) => ({ session_id: 's', session_config: { memory_limit_mb } }));
    await using before = await PluginHost.start({ daemon_socket: own.endpoints.socket, ...first });
    await before.start(javascript(SLEEP));
    await using after = await PluginHost.start({ daemon_socket: own.endpoints.socket, ...next });
    await fingerprints(after, (all) => all.at(-1)?.health === Health.HEALTHY);
    const task = javascript('const all = []; for (;;) all.push(Buffer.alloc(1e6, 1))', options);
    const allocatedResources = { cpu: undefined, memory: { memoryMb: 2048n, memoryMaxMb: 0n }, networks: [] };
    task.resources = { allocatedResources, linuxResources: undefined, ports: [] };
    const told = messagesOf(after, task);

    const { result } = await after.run(task);

    expect(result).toMatchObject({ oomKilled: true });
    await eventually('it is told', () => told.includes('memory is cut to 64 MiB, the ceiling of session "s"'));
  });

  test('the run limit ends it, as a failure with its reason', async () => {
    const elide_opts = { timeout: '5s', on_timeout: 'SIGUSR2' };
    const task = javascript('process.on("SIGUSR2", () => process.exit(0)); setInterval(() => {}, 1000)', {
      elide_opts,
    });

    const { result, err } = await host.run(task);

    expect(result).toMatchObject({ exitCode: 0 });
    expect(err).toContain('timed_out');
  });
});

test('statistics come at once and at the interval, with all that the agent needs', async () => {
  const task = javascript('console.log("ready"); for (;;);');
  await host.start(task);
  await ready(task);
  const began = performance.now();
  const percentOf = (sample: TaskStatsResponse | undefined) => sample?.stats?.aggResourceUsage?.cpu?.percent ?? 0;

  // However little of a core there is for it, and when.
  const samples = await collect(
    host.driver.taskStats({ taskId: task.id, collectionInterval: { seconds: 0n, nanos: 2e8 } }),
    (all) => all.length >= 3 && percentOf(all.at(-1)) > 1,
  );

  // The first at once, the second after half an interval at least: rounds are shared with others.
  expect(performance.now() - began).toBeGreaterThan(290);
  // Where nobody says how often, a second lies between two.
  const timesMs = samples.map(({ stats }) => stats?.timestamp?.getTime() ?? Number.NaN);
  expect(Math.min(...timesMs.slice(1).map((ms, index) => ms - (timesMs[index] as number)))).toBeLessThan(900);
  const { cpu, memory } = samples.at(-1)?.stats?.aggResourceUsage ?? {};
  expect(samples[0]?.stats?.aggResourceUsage?.cpu?.percent).toBe(0);
  expect(cpu?.totalTicks).toBeCloseTo(((cpu?.percent ?? 0) / 100) * 2000, 3);
  expect(Number(memory?.rss)).toBeGreaterThan(100_000);
  expect(memory?.measuredFields.length).toBeGreaterThan(0);
  expect(Math.abs((samples.at(-1)?.stats?.timestamp?.getTime() ?? 0) - Date.now())).toBeLessThan(60_000);
  await host.destroy(task.id);
});

test('statistics end in good order when their task is destroyed', async () => {
  const task = javascript(SLEEP);
  await host.start(task);
  let destroyed: Promise<unknown> | undefined;

  const samples = await collect(host.driver.taskStats({ taskId: task.id, collectionInterval: undefined }), () => {
    destroyed ??= host.destroy(task.id);
    return false;
  });

  expect(samples.length).toBeGreaterThan(0);
  await destroyed;
});

test('events tell each state, and why it ended', async () => {
  const events: DriverTaskEvent[] = [];
  const call = host.driver.taskEvents({});
  call.on('error', () => {});
  call.on('data', (event) => events.push(event));
  await host.run(javascript('1'));
  const task = javascript('process.exit(4)', { elide_opts: { enable_ai: true, intrinsics: ['net'] } });

  await host.run(task);

  const own = () => events.filter(({ taskId }) => taskId === task.id);
  await eventually('all are told', () => own().some(({ message }) => message.startsWith('Execution exited')));
  expect(own().map(({ message }) => message)).toEqual(
    expect.arrayContaining([
      'Execution running',
      'Execution exited: failed',
      'asked for and not there: net, enable_ai; the daemon has no intrinsics and no AI, the task runs with what its language brings',
    ]),
  );
  expect(own().at(-1)).toMatchObject({ allocId: task.allocId, taskName: 'task', annotations: { exit_code: '4' } });
  expect(own().every(({ timestamp }) => timestamp !== undefined)).toBe(true);
  call.cancel();
});

test.each([
  ['javascript', 'process', ['begins: NODE_OPTIONS, NODE_PATH;']],
  ['javascript', 'thread', ['begins: NODE_OPTIONS, NODE_PATH, TZ;']],
  ['python', 'process', []],
])(
  'variables that Node reads when it starts are told of as without effect: %s, %s',
  async (language, isolation, late) => {
    const env = { NODE_OPTIONS: '--no-deprecation', NODE_PATH: '/x', OTHER: '1', TZ: 'America/New_York' };
    const task = taskIn(root, { language, code: '1', isolation, env });
    const told = messagesOf(host, task);

    await host.run(task);

    await eventually('all is told', () => told.some((message) => message.startsWith('Execution exited')));
    expect(told.filter((message) => message.startsWith('without effect'))).toEqual(
      late.map((names) => expect.stringContaining(names)),
    );
  },
);

test('what the session is to have and the daemon has not is told once of each task, not again by its next driver', async () => {
  const { socket } = daemon.endpoints;
  const config = { daemon_socket: socket, session_id: 'asks', session_config: { enabled_intrinsics: ['io', 'env'] } };
  const task = javascript(SLEEP, { elide_opts: { intrinsics: ['io'] } });
  await using first = await PluginHost.start(config);
  const told = messagesOf(first, task);
  const { handle } = await first.start(task);
  await eventually('it is told', () =>
    told.some((message) => message.startsWith('asked for and not there: io, env; ')),
  );
  await using second = await PluginHost.start(config);
  const toldAgain = messagesOf(second, task);

  await second.recover(handle);
  await second.stop(task.id, '', 0);
  await eventually('the end is told', () => toldAgain.some((message) => message.startsWith('Execution exited')));

  expect(told.filter((message) => message.startsWith('asked for'))).toHaveLength(1);
  expect(toldAgain.filter((message) => message.startsWith('asked for'))).toEqual([]);
});
