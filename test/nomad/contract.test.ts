import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { credentials, status } from '@grpc/grpc-js';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { connectDaemon } from '../../src/client/index.ts';
import { HealthClient } from '../../src/gen/grpc/health/v1/health.ts';
import { PluginType } from '../../src/gen/nomad/base.ts';
import {
  type DriverTaskEvent,
  ExecTaskStreamingRequest,
  type ExecTaskStreamingResponse,
  type FingerprintResponse,
  FingerprintResponse_HealthState as Health,
  type TaskConfig,
  TaskState,
  type TaskStatsResponse,
} from '../../src/gen/nomad/driver.ts';
import { RpcStatus } from '../../src/gen/nomad/errors.ts';
import { GRPCStdioClient } from '../../src/gen/nomad/go_plugin.ts';
import type { Spec } from '../../src/gen/nomad/hclspec.ts';
import { Authority, type KeyPairFiles } from '../support/certificates.ts';
import { eventually, isAlive, processesWith, TestDaemon, temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { listensOnTcp } from '../support/processes.ts';
import { AGENT_ENV, COOKIE, collect, detailOf, logsOf, PLUGIN, PluginHost, refusedWith, taskIn } from './host.ts';

const LANGUAGES = ['python', 'javascript', 'typescript'];
let daemon: TestDaemon;
let host: PluginHost;
let root: string;

beforeAll(async () => {
  root = temporaryDirectory();
  daemon = await TestDaemon.start();
  host = await PluginHost.start({
    daemon_socket: daemon.endpoints.socket,
    session_config: { enabled_languages: LANGUAGES },
  });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  await daemon[Symbol.asyncDispose]();
});

const javascript = (code: string, more: object = {}) => taskIn(root, { language: 'javascript', code, ...more });
const python = (code: string, more: object = {}) => taskIn(root, { language: 'python', code, ...more });
const SLEEP = 'console.log("ready"); setInterval(() => {}, 1000)';
const ready = (task: TaskConfig) => eventually('the task is ready', () => logsOf(task).includes('ready'));

describe('the handshake', () => {
  test('is one line that names a socket which accepts', async () => {
    expect(host.line).toMatch(/^1\|2\|unix\|\/[^|]{1,106}\|grpc$/);
    expect(existsSync(host.line.split('|')[3] as string)).toBe(true);
  });

  test.each([
    ['no cookie', { ...AGENT_ENV, NOMAD_PLUGIN_MAGIC_COOKIE: '' }, 'put it into the plugin_dir'],
    ['another cookie', { ...AGENT_ENV, NOMAD_PLUGIN_MAGIC_COOKIE: `${COOKIE}0` }, 'put it into the plugin_dir'],
    ['another protocol', { ...AGENT_ENV, PLUGIN_PROTOCOL_VERSIONS: '1,3' }, '"1,3"'],
  ])('%s is refused with a hint', async (_name, env, hint) => {
    const { code, stdout, stderr } = await refusedWith({ ...process.env, ...env });

    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain(hint);
  });

  test('the socket lies where the agent says, and goes with the process', async () => {
    const directory = temporaryDirectory();
    await using other = await PluginHost.start({}, { PLUGIN_UNIX_SOCKET_DIR: directory });
    const [, , , socket = ''] = other.line.split('|');
    expect(socket.startsWith(`${directory}/`)).toBe(true);

    const exited = once(other.child, 'exit');
    await other.call(other.controller, other.controller.shutdown, {});

    expect(await exited).toEqual([0, null]);
    expect(existsSync(socket)).toBe(false);
  });

  test('a terminal’s interrupt does not end it', async () => {
    await using other = await PluginHost.start({});

    other.child.kill('SIGINT');

    const info = await other.call(other.base, other.base.pluginInfo, {});
    expect(info.name).toBe('elide');
  });

  test('SIGUSR1 opens no debugger', async () => {
    await using other = await PluginHost.start({});

    other.child.kill('SIGUSR1');

    for (let round = 0; round < 20; round += 1) await other.call(other.base, other.base.pluginInfo, {});
    expect(listensOnTcp(other.child.pid as number)).toEqual([]);
  });

  test('a plugin whose host has died, and that no other finds, ends', { timeout: 120_000 }, async () => {
    const agent = spawn('sh', ['-c', '"$0" "$1" & wait', process.execPath, PLUGIN], {
      env: { ...process.env, ...AGENT_ENV },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const [line] = await once(agent.stdout, 'data');
    const socket = String(line).split('|')[3] as string;
    const stdio = new GRPCStdioClient(`unix:${socket}`, credentials.createInsecure());
    // On the same connection: once the second is answered, the first is there.
    const health = new HealthClient(`unix:${socket}`, credentials.createInsecure());
    const stream = stdio.streamStdio({});
    stream.on('error', () => {});
    await host.call(health, health.check, { service: 'plugin' });
    const ended = once(agent, 'close');

    agent.kill('SIGKILL');
    for (const client of [stdio, health]) client.close();
    stream.cancel();

    // Its standard output is closed with it.
    await ended;
    expect(existsSync(socket)).toBe(false);
  });

  test('health, stdio and broker are there', async () => {
    expect(await host.call(host.health, host.health.check, { service: 'plugin' })).toEqual({ status: 1 });
    for (const call of [host.stdio.streamStdio({}), host.broker.startStream()]) {
      const failed = once(call, 'error');
      await new Promise((resolve) => setImmediate(resolve));
      call.cancel();
      expect((await failed)[0]).toMatchObject({ code: status.CANCELLED });
    }
  });
});

describe('the base plugin', () => {
  test('says who it is', async () => {
    const info = await host.call(host.base, host.base.pluginInfo, {});

    expect(info).toEqual({
      type: PluginType.DRIVER,
      pluginApiVersions: ['v0.1.0'],
      pluginVersion: '0.1.0',
      name: 'elide',
    });
  });

  test('every attribute of a schema has its name and a type', async () => {
    const { spec } = await host.call(host.base, host.base.configSchema, {});
    const { spec: task } = await host.call(host.driver, host.driver.taskConfigSchema, {});

    for (const one of [spec, task]) {
      const { value } = (one as Spec).block as { value: { attributes: Record<string, { block?: { value: object } }> } };
      for (const [name, { block }] of Object.entries(value.attributes)) expect(block?.value).toMatchObject({ name });
      expect(JSON.stringify(one, (_, field) => (typeof field === 'bigint' ? String(field) : field))).not.toContain(
        '"type":""',
      );
    }
  });

  test.each([
    [{ logs: 'both' }, /logs: .*direct.*nomad/],
    [{ reconnect_limit: 'soon' }, /reconnect_limit: it must be a duration/],
    [{ daemon_tls: { ca_file: 5 } }, /daemon_tls\.ca_file: /],
    [{ log_max_files: 5000 }, /log_max_files: .*1000/],
    [{ log_max_file_size: '1000B' }, /log_max_file_size: it must be 1024 to/],
    [{ log_max_files: -1, log_max_file_size: 'big' }, /log_max_files: .*log_max_file_size: it must be a size/],
    [{ daemon: 'spawn' }, /daemon = "spawn" needs daemon_path/],
    [{ daemon_token_file: '/token' }, /daemon_token_file .*daemon_address/],
    [{ daemon_tls: {}, daemon_address: '127.0.0.1:1' }, /daemon_tls .*daemon_socket/],
  ])('a configuration with %o does not stop the agent: the driver is unhealthy, and says why', async (wrong, why) => {
    await using other = await PluginHost.start({ daemon_socket: daemon.endpoints.socket, ...wrong });

    const [found] = await fingerprints(other, () => true);

    expect([found?.health, found?.healthDescription]).toEqual([Health.UNHEALTHY, expect.stringMatching(why)]);
    await expect(other.start(javascript('1'))).rejects.toThrow(why);
  });

  test('bytes that are no configuration are refused, none are one', async () => {
    await using other = await PluginHost.start();

    await expect(other.setConfig(Buffer.from([0xc1, 0xff, 0x00]))).rejects.toThrow('failed to decode driver config');
    await expect(other.setConfig(Buffer.alloc(0), undefined)).resolves.toEqual({});
  });

  test('what the first driver could be told is taken', async () => {
    await using other = await PluginHost.start();

    const session_config = {
      context_pool_size: '10',
      enabled_languages: ['python'],
      enabled_intrinsics: ['io'],
      memory_limit_mb: 512,
      enable_ai: false,
    };
    await other.setConfig({
      elide_binary: '/usr/local/bin/elide',
      daemon_socket: '/tmp/x.sock',
      daemon_address: null,
      session_config,
    });
  });
});

async function fingerprints(of: PluginHost, enough: (all: FingerprintResponse[]) => boolean) {
  return collect(of.driver.fingerprint({}), enough);
}

describe('the fingerprint', () => {
  test('comes at once, with what a job may ask for', async () => {
    const [found] = await fingerprints(host, () => true);

    expect(found).toMatchObject({ health: Health.HEALTHY, healthDescription: 'Healthy', err: '' });
    const { maxRunning, maxQueued, maxQueuedInAll } = daemon.daemon.config;
    const values = Object.fromEntries(
      Object.entries(found?.attributes ?? {}).map(([name, { value }]) => [name, value?.value]),
    );
    expect(values).toMatchObject({
      'driver.elide': 'true',
      'driver.elide.version': '0.1.0',
      'driver.elide.language.javascript': process.versions.node,
      'driver.elide.isolation': 'process,thread',
      'driver.elide.capacity.running': String(maxRunning),
      'driver.elide.capacity.queued': String(maxQueuedInAll),
      'driver.elide.capacity.session.running': String(maxRunning),
      'driver.elide.capacity.session.queued': String(maxQueued),
    });
    expect(values['driver.elide.limit.memory_limit_mb']).toContain('thread: ');
  });

  test('is undetected while no daemon answers, and changes as soon as one comes and goes', async () => {
    const directory = temporaryDirectory();
    await using other = await PluginHost.start({ daemon_socket: join(directory, 'd.sock') });
    const seen: FingerprintResponse[] = [];
    const call = other.driver.fingerprint({});
    call.on('error', () => {});
    call.on('data', (one) => seen.push(one));
    await eventually('it is said to be away', () => seen.length === 1);
    expect(seen[0]).toMatchObject({ health: Health.UNDETECTED });
    expect(seen[0]?.healthDescription).toContain(`no daemon answers on unix:${join(directory, 'd.sock')}`);

    const second = await DaemonProcess.start('--socket', join(directory, 'd.sock'));
    // It would be looked for again after 30 s.
    await eventually('it is found', () => seen.length === 2, 20_000);
    await second.stop('SIGKILL');
    await eventually('it is missed', () => seen.length === 3, 20_000);

    expect(seen.map(({ health }) => health)).toEqual([Health.UNDETECTED, Health.HEALTHY, Health.UNDETECTED]);
    call.cancel();
  });

  test('says that it is disabled', async () => {
    await using other = await PluginHost.start({ enabled: false });

    const [found] = await fingerprints(other, () => true);

    expect(found).toMatchObject({ health: Health.UNDETECTED, healthDescription: 'disabled', attributes: {} });
    await expect(other.start(javascript('1'))).rejects.toThrow('disabled');
  });

  test('a language that nobody knows makes it unhealthy, with its name', async () => {
    await using other = await PluginHost.start({
      daemon_socket: daemon.endpoints.socket,
      session_id: 'wrong',
      session_config: { enabled_languages: ['cobol'] },
    });

    const [found] = await fingerprints(other, () => true);

    expect(found?.health).toBe(Health.UNHEALTHY);
    expect(found?.healthDescription).toContain('cobol');
  });

  test('a daemon on TCP is known by its certificate, and knows the driver by its own and the token', async () => {
    const directory = temporaryDirectory();
    const authority = await Authority.create(directory, 'authority');
    const own = await authority.issue('driver', []);
    const tokenFile = join(directory, 'token');
    writeFileSync(tokenFile, 'correct-horse\n', { mode: 0o600 });
    const tls = { ...(await authority.issue('server', ['127.0.0.1'])), clientCaFile: authority.certFile };
    await using node = await TestDaemon.start({ tcp: '127.0.0.1:0', tls, tokenFile });
    const config = {
      daemon_address: node.endpoints.tcp,
      daemon_tls: { ca_file: authority.certFile, cert_file: own.certFile, key_file: own.keyFile },
      daemon_token_file: tokenFile,
    };
    await using other = await PluginHost.start(config);
    const look = async (changed: object) => {
      await other.setConfig({ ...config, ...changed });
      const [found] = await fingerprints(other, () => true);
      return [found?.health, found?.healthDescription];
    };

    expect(await look({})).toEqual([Health.HEALTHY, 'Healthy']);
    expect((await other.run(javascript('process.exit(3)'))).result?.exitCode).toBe(3);
    expect(await look({ daemon_token_file: '' })).toEqual([Health.UNHEALTHY, expect.stringContaining('has none')]);
    expect(await look({ daemon_token_file: '/nowhere' })).toEqual([
      Health.UNHEALTHY,
      expect.stringContaining('tokenFile /nowhere: ENOENT'),
    ]);
    expect(await look({ daemon_tls: { ca_file: authority.certFile } })).toEqual([
      Health.UNDETECTED,
      expect.stringContaining(`no daemon answers on tcp:${node.endpoints.tcp}`),
    ]);
  });

  test('a daemon is started where that is configured, and outlives the plugin', async () => {
    const directory = temporaryDirectory();
    const socket = join(directory, 'd.sock');
    const main = join(import.meta.dirname, '../../dist/src/main.js');
    const program = join(directory, 'elide-daemon');
    writeFileSync(program, `#!/bin/sh\necho $$ > '${directory}/pid'\nexec '${process.execPath}' '${main}' "$@"\n`);
    chmodSync(program, 0o755);
    const config = { daemon: 'spawn', daemon_socket: socket, daemon_path: program };
    const other = await PluginHost.start({ ...config, daemon_args: ['--state-dir', join(directory, 's')] });

    const found = await fingerprints(other, (all) => all.at(-1)?.health === Health.HEALTHY);
    await other[Symbol.asyncDispose]();

    expect(found[0]).toMatchObject({ health: Health.UNDETECTED, healthDescription: 'the daemon is starting' });
    using client = connectDaemon({ socket });
    expect((await client.health()).healthy).toBe(true);
    const pid = Number(readFileSync(join(directory, 'pid'), 'utf8'));
    const descriptors = [0, 1, 2].map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
    expect(descriptors).toEqual(['/dev/null', expect.stringContaining('.log'), expect.stringContaining('.log')]);
    process.kill(pid);
    await eventually('it has stopped', () => !isAlive(pid));
  });
});

describe('a daemon that is to be started', () => {
  const programIn = (directory: string, script: string): string => {
    const program = join(directory, 'program');
    writeFileSync(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    return program;
  };

  test('by a program that is not there is said to be', async () => {
    const directory = temporaryDirectory();
    const config = { daemon: 'spawn', daemon_socket: join(directory, 'd.sock'), daemon_path: join(directory, 'none') };
    await using other = await PluginHost.start(config);

    const found = await fingerprints(other, (all) => all.length === 2);

    expect(found.map(({ health }) => health)).toEqual([Health.UNDETECTED, Health.UNDETECTED]);
    expect(found[1]?.healthDescription).toBe(`the daemon cannot be started: spawn ${config.daemon_path} ENOENT`);
  });

  test('and ends at once is told of once, and started again', { timeout: 120_000 }, async () => {
    const directory = temporaryDirectory();
    const starts = join(directory, 'starts');
    const program = programIn(directory, `echo >> '${starts}'; exit 3`);
    const config = { daemon: 'spawn', daemon_socket: join(directory, 'd.sock'), daemon_path: program };
    await using other = await PluginHost.start(config, { TMPDIR: directory });
    const told: string[] = [];
    const call = other.driver.fingerprint({});
    call.on('error', () => {});
    call.on('data', ({ healthDescription }) => told.push(healthDescription));

    const isStartedAgain = () => existsSync(starts) && readFileSync(starts).length === 2;
    await eventually('it is started again', () => told.length > 1 && isStartedAgain(), 90_000);
    call.cancel();

    const log = join(directory, `elide-daemon-${process.getuid?.()}.log`);
    expect(told).toEqual(['the daemon is starting', `the daemon ended with 3, see ${log}`]);
  });

  test('is not, where the driver would look for it elsewhere: both settings are named', async () => {
    const directory = temporaryDirectory();
    const program = programIn(directory, `touch '${join(directory, 'started')}'`);
    await using other = await PluginHost.start({
      daemon: 'spawn',
      daemon_path: program,
      daemon_address: '127.0.0.1:1',
    });

    const [found] = await fingerprints(other, () => true);

    const why = /daemon = "spawn" .*daemon_address/;
    expect([found?.health, found?.healthDescription]).toEqual([Health.UNHEALTHY, expect.stringMatching(why)]);
    await expect(other.start(javascript('1'))).rejects.toThrow(why);
    expect(existsSync(join(directory, 'started'))).toBe(false);
  });
});

/** What a plugin tells of a task from now on. */
function messagesOf(plugin: PluginHost, task: TaskConfig): string[] {
  const messages: string[] = [];
  const call = plugin.driver.taskEvents({});
  call.on('error', () => {});
  call.on('data', ({ taskId, message }) => taskId === task.id && messages.push(message));
  return messages;
}

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
    [{ code: '1', elide_opts: { on_timeout: 'SIGNONE', timeout: '1s' } }, 'SIGNONE'],
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

  async function streamed(...requests: object[]) {
    const call = host.driver.execTaskStreaming();
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

/** The executions that are there for commands beside a task. */
const commandsBeside = async ({ daemon: at }: TestDaemon, { id }: TaskConfig) =>
  (await at.listExecutions()).filter(({ executionId }) => executionId.startsWith(`${id}/`));

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

test('a command that the node has no place for is told so', async () => {
  await using own = await TestDaemon.start({ maxRunning: 1 });
  await using other = await PluginHost.start({ daemon_socket: own.endpoints.socket });
  const task = javascript(SLEEP);
  await other.start(task);

  await expect(other.exec(task.id, ['true'], 60_000)).rejects.toThrow('the node is full');

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

  test('of a task that ended meanwhile has its recorded end', async () => {
    const task = javascript('process.exit(6)');
    const handle = await handleOf(task);
    await host.wait(task.id);
    await using other = await another();

    await other.recover(handle);

    expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
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

/** A socket, and the flags of daemons that follow each other on it and on their state; what they leave is soon gone. */
function placesIn(directory: string): [string, string[]] {
  const [socket, config] = [join(directory, 'd.sock'), join(directory, 'config.json')];
  writeFileSync(config, JSON.stringify({ onStop: 'detach', orphanGraceMs: 60_000 }));
  return [socket, ['--socket', socket, '--state-dir', join(directory, 's'), '--config', config]];
}

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

describe('what only newer agents, or nobody, would ask', () => {
  test('Init and Shutdown are answered, and tasks run on', async () => {
    const task = javascript(SLEEP);
    await host.start(task);

    await host.call(host.driver, host.driver.init, {});
    await host.call(host.driver, host.driver.shutdown, {});

    expect(await host.inspect(task.id)).toMatchObject({ task: { state: TaskState.RUNNING } });
    await host.destroy(task.id);
  });

  test('networks are not made', async () => {
    await expect(
      host.call(host.driver, host.driver.createNetwork, { allocId: 'a', hostname: '' }),
    ).rejects.toMatchObject({
      code: status.UNIMPLEMENTED,
    });
  });

  test('capabilities are what the driver keeps', async () => {
    const { capabilities } = await host.call(host.driver, host.driver.capabilities, {});

    expect(capabilities).toMatchObject({
      sendSignals: true,
      exec: true,
      fsIsolation: 0,
      networkIsolationModes: [0],
      mountConfigs: 1,
      disableLogCollection: true,
    });
  });

  test('a start without a task, an endless id or language and 20 MB of code harm nobody', async () => {
    await expect(host.call(host.driver, host.driver.startTask, { task: undefined })).rejects.toThrow(
      'task cannot be nil',
    );
    await expect(host.start({ ...javascript('1'), id: 'x'.repeat(5_000) })).rejects.toThrow('1024');
    const endless = host.start(taskIn(root, { code: '1', language: 'x'.repeat(200_000) }));
    await expect(endless).rejects.toThrow(/unknown language "x+… \(of 200\d\d\d characters\)$/);
    const task = javascript(`/*${'x'.repeat(20e6)}*/ console.log("big")`);

    expect(await host.run(task)).toMatchObject({ result: { exitCode: 0 } });
    expect(logsOf(task)).toBe('big\n');
  });

  test('a plugin whose agent is gone goes on when nobody reads its log', async () => {
    await using other = await PluginHost.start({
      daemon_socket: daemon.endpoints.socket,
      session_config: { enabled_languages: LANGUAGES },
    });
    other.child.stderr?.destroy();
    other.child.stdout?.destroy();

    await fingerprints(other, () => true);
    await other.setConfig({ daemon_socket: join(root, 'nobody.sock') });
    await fingerprints(other, () => true);

    expect((await other.call(other.base, other.base.pluginInfo, {})).name).toBe('elide');
  });

  test('a log line is what the agent can read', async () => {
    await fingerprints(host, () => true);

    const line = JSON.parse(host.log.at(-1) as string);
    expect(line).toMatchObject({ '@level': 'info', '@message': 'Healthy' });
    expect(line['@timestamp']).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
  });
});

test('with logs = "nomad" output goes into the agent’s pipes, also while there is no daemon', async () => {
  const directory = temporaryDirectory();
  const [socket, places] = placesIn(directory);
  const go = join(directory, 'go');
  const first = await DaemonProcess.start(...places);
  await using other = await PluginHost.start({ daemon_socket: socket, logs: 'nomad' });
  const { capabilities } = await other.call(other.driver, other.driver.capabilities, {});
  expect(capabilities?.disableLogCollection).toBe(false);
  const code = `console.log("ready"); console.error("err"); setInterval(() => { if (!require("node:fs").existsSync("${go}")) return; console.log("last"); process.exit(6); }, 20)`;
  const task = taskIn(directory, { language: 'javascript', code });
  execFileSync('mkfifo', [task.stdoutPath, task.stderrPath]);
  const readers = [task.stdoutPath, task.stderrPath].map((path) => spawn('cat', [path]).stdout);
  const read = readers.map((reader) => text(reader));
  const begun = Promise.all(readers.map((reader) => once(reader, 'readable')));
  await other.start(task);
  await begun;

  await first.stop('SIGKILL');
  writeFileSync(go, '');

  expect(await Promise.all(read)).toEqual(['ready\nlast\n', 'err\n']);
  await using _second = await DaemonProcess.start(...places);
  expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
});

test.each(['', '/dev/null'])('a task whose log path is "%s" has no files', async (path) => {
  const task = taskIn(root, { language: 'javascript', code: 'console.log(1)' }, { stdoutPath: path, stderrPath: path });

  expect(await host.run(task)).toMatchObject({ result: { exitCode: 0 } });

  expect(logsOf(task)).toBe('');
  // Nor does the daemon keep it.
  const [session] = await daemon.daemon.listSessions();
  for await (const _ of daemon.daemon.streamOutput(session?.sessionId as string, task.id)) expect.unreachable();
});

test('with logs = "nomad" a pipe that the daemon may not write to is named, and nothing starts', async () => {
  await using own = await DaemonProcess.startWithoutRights();
  await using other = await PluginHost.start({ daemon_socket: own.socket, logs: 'nomad' });
  const task = taskIn(own.directory, { language: 'javascript', code: 'console.log("lost")' });
  execFileSync('mkfifo', ['-m', '400', task.stdoutPath, task.stderrPath]);

  await expect(other.start(task)).rejects.toThrow(`"${task.stdoutPath}": EACCES`);
  await expect(other.inspect(task.id)).rejects.toThrow('task not found');
});
