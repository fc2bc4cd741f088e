import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { credentials, status } from '@grpc/grpc-js';
import { describe, expect, test } from 'vitest';
import { connectDaemon } from '../../../src/client/index.ts';
import { HealthClient } from '../../../src/gen/grpc/health/v1/health.ts';
import { PluginType } from '../../../src/gen/nomad/base.ts';
import {
  type FingerprintResponse,
  FingerprintResponse_HealthState as Health,
  TaskState,
} from '../../../src/gen/nomad/driver.ts';
import { GRPCStdioClient } from '../../../src/gen/nomad/go_plugin.ts';
import type { Spec } from '../../../src/gen/nomad/hclspec.ts';
import { Authority } from '../../support/certificates.ts';
import { eventually, isAlive, TestDaemon, temporaryDirectory } from '../../support/daemon.ts';
import { DaemonProcess } from '../../support/daemon-process.ts';
import { listensOnTcp } from '../../support/processes.ts';
import { AGENT_ENV, COOKIE, logsOf, PLUGIN, PluginHost, refusedWith, taskIn } from '../host.ts';
import { daemon, fingerprints, host, javascript, LANGUAGES, root, SLEEP, usePlugin } from './fixture.ts';

usePlugin();

describe('the handshake', () => {
  test('is one line that names a socket which accepts', async () => {
    expect(host.line).toMatch(/^1\|2\|unix\|\/[^|]{1,106}\|grpc$/);
    expect(existsSync(host.line.split('|')[3] as string)).toBe(true);
  });

  test.each([
    ['no cookie', { ...AGENT_ENV, NOMAD_PLUGIN_MAGIC_COOKIE: '' }, 'put it into the plugin_dir'],
    ['another cookie', { ...AGENT_ENV, NOMAD_PLUGIN_MAGIC_COOKIE: `${COOKIE}0` }, 'put it into the plugin_dir'],
    ['another protocol', { ...AGENT_ENV, PLUGIN_PROTOCOL_VERSIONS: '1,3' }, '"1,3"'],
    ['a TMPDIR that is not there', { ...AGENT_ENV, TMPDIR: '/nowhere' }, /^TMPDIR \/nowhere cannot be used: E.*\n$/],
  ])('%s is refused with a hint', async (_name, env, hint) => {
    const { code, stdout, stderr } = await refusedWith({ ...process.env, ...env });

    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(hint);
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

  test('what many calls have left is given back once none come', { timeout: 120_000 }, async () => {
    await using other = await PluginHost.start({}, { NODE_OPTIONS: '--expose-gc' });
    const status = `/proc/${other.child.pid}/status`;
    const heldKib = () => Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(status, 'utf8'))?.[1]);
    const restKib = heldKib();
    const args = Array.from({ length: 2_000 }, (_, index) => `${'x'.repeat(20)}${index}`);
    const wrong = taskIn(root, { language: 'javascript', code: '1', args, isolation: 'none' });

    for (let call = 0; call < 80; call += 1) await expect(other.start(wrong)).rejects.toThrow(/isolation/);

    const leftKib = heldKib();
    expect(leftKib).toBeGreaterThan(restKib);
    await eventually('memory is given back', () => heldKib() < (restKib + leftKib) / 2, 90_000);
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
    [{ log_max_file_size: '1000B' }, /log_max_file_size: it must be 1024 bytes to/],
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
    const main = join(import.meta.dirname, '../../../dist/src/main.js');
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
    await expect(endless).rejects.toThrow(/unknown language "x+\.\.\. \(of 200\d\d\d characters\)$/);
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
