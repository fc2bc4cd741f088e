import { execFile, execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { Agent, until } from './agent.ts';
import { findNomad } from './build-nomad.ts';

const nomad = findNomad();

const LIMIT_MS = 90_000;
const WAIT = {
  javascript: 'process.on("SIGTERM", () => process.exit(3)); console.log("ready"); setInterval(() => {}, 1000)',
  python:
    'import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nprint("ready", flush=True)\nwhile True: time.sleep(60)',
};
const code = (language: string, source: string, more: object = {}) => ({ Config: { language, code: source, ...more } });

describe.skipIf(nomad === undefined)('on a real agent', { timeout: LIMIT_MS }, () => {
  let daemon: DaemonProcess;
  let agent: Agent;

  beforeAll(async () => {
    daemon = await DaemonProcess.start();
    agent = await Agent.start(
      nomad as string,
      temporaryDirectory(),
      `    daemon_socket = "${daemon.socket}"\n    log_max_file_size = "1"`,
    );
  }, LIMIT_MS);
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    await daemon.stop();
  }, LIMIT_MS);

  test('the node has the driver, with its attributes', async () => {
    const [node] = await agent.get<{ ID: string }[]>('/v1/nodes');
    const { Attributes, Drivers } = await agent.get<Record<string, Record<string, unknown>>>(`/v1/node/${node?.ID}`);

    expect(Drivers?.elide).toMatchObject({ Detected: true, Healthy: true });
    expect(Attributes).toMatchObject({ 'driver.elide': '1', 'driver.elide.version': '0.1.0' });
    expect(Attributes?.['driver.elide.language.python']).toMatch(/^3\./);
  });

  test.each([
    ['javascript', 0, 'console.log("out"); console.error("err")'],
    ['typescript', 7, 'console.log("out" as string); console.error("err"); process.exitCode = 7'],
    ['python', 7, 'import sys\nprint("out")\nprint("err", file=sys.stderr)\nsys.exit(7)'],
  ])('%s is placed, started, logged, and exits with %i', async (language, exitCode, source) => {
    const { allocation, end, events } = await agent.ended(await agent.run(code(language, source)));

    expect(allocation.ClientStatus).toBe(exitCode === 0 ? 'complete' : 'failed');
    expect(end).toMatchObject({ ExitCode: exitCode, Signal: 0 });
    expect(events.map(({ Type }) => Type)).toEqual(
      expect.arrayContaining(['Received', 'Started', 'Driver', 'Terminated']),
    );
    expect([await agent.logs(allocation.ID), await agent.logs(allocation.ID, 'stderr')]).toEqual(['out\n', 'err\n']);
  });

  test('an end by a signal, by too much memory and by the run limit is each told as what it is', async () => {
    const killed = await agent.run(
      code('python', 'import os, signal\nprint("last", flush=True)\nos.kill(os.getpid(), signal.SIGKILL)'),
    );
    const hungry = await agent.run(code('python', 'kept = [bytearray(10**6) for _ in range(10**4)]'));
    const long = await agent.run(
      code('javascript', 'for (;;);', { elide_opts: [{ timeout: '500ms', on_timeout: 'kill' }] }),
    );

    const [one, two, three] = [await agent.ended(killed), await agent.ended(hungry), await agent.ended(long)];

    expect(one.end).toMatchObject({ ExitCode: 137, Signal: 9 });
    expect(await agent.logs(one.allocation.ID)).toBe('last\n');
    expect(two.end?.Details.oom_killed).toBe('true');
    expect(three.end?.DisplayMessage).toContain('timed_out');
  });

  describe.each(Object.entries(WAIT))('a %s service', (language, source) => {
    test('stops by its signal, and its exit code is seen', async () => {
      const job = await agent.run(code(language, source), { Type: 'service' });
      const { ID } = await agent.running(job);
      await agent.printed(ID, 'ready');

      await agent.stop(job);

      const { end } = await agent.ended(job);
      expect(end).toMatchObject({ ExitCode: 3, Signal: 0 });
    });

    test('that ignores its kill_signal is killed after its kill_timeout', async () => {
      const deaf = source
        .replace(/SIGTERM/g, 'SIGINT')
        .replace('sys.exit(3)', 'None')
        .replace('process.exit(3)', '0');
      const job = await agent.run(
        { ...code(language, deaf), KillSignal: 'SIGINT', KillTimeout: 1e9 },
        { Type: 'service' },
      );
      await agent.printed((await agent.running(job)).ID, 'ready');

      await agent.stop(job);

      const { events, end } = await agent.ended(job);
      expect(end).toMatchObject({ ExitCode: 137, Signal: 9 });
      const killing = events.find(({ Type }) => Type === 'Killing')?.Time ?? 0;
      expect((end?.Time ?? 0) - killing).toBeGreaterThan(0.9e9);
    });

    test('has its signals, its restart, its commands and its statistics', async () => {
      const heard = source
        .replace(/SIGTERM/g, 'SIGHUP')
        .replace('sys.exit(3)', 'print("heard", flush=True)')
        .replace('process.exit(3)', 'console.log("heard")');
      const job = await agent.run(code(language, heard), { Type: 'service' });
      const { ID } = await agent.running(job);
      await agent.printed(ID, 'ready');

      await agent.put(`/v1/client/allocation/${ID}/signal`, { Signal: 'SIGHUP', TaskName: 't' });
      await agent.printed(ID, 'heard');
      const stats = async () => {
        const { ResourceUsage } = await agent.get<Record<string, { MemoryStats: { RSS: number } }>>(
          `/v1/client/allocation/${ID}/stats`,
        );
        return (ResourceUsage?.MemoryStats.RSS ?? 0) > 100_000;
      };
      await until('there are statistics', stats);
      await agent.put(`/v1/client/allocation/${ID}/restart`, { TaskName: 't' });
      const again = await agent.allocation(
        job,
        ({ TaskStates }) => TaskStates?.t?.Restarts === 1 && TaskStates.t.State === 'running',
      );
      expect(again.ID).toBe(ID);

      const exec = (...args: string[]) =>
        promisify(execFile)(agent.nomad, ['alloc', 'exec', ...args], { env: agent.env });
      const plain = await exec('-t=false', '-i=false', ID, 'sh', '-c', 'pwd; echo err >&2; exit 43').catch(
        (error) => error,
      );
      expect(plain).toMatchObject({ code: 43, stdout: expect.stringMatching(/\/t\n$/), stderr: 'err\n' });
      const evaluated = await exec(
        '-t=false',
        '-i=false',
        ID,
        'elide-eval',
        language === 'python' ? 'print(6 * 7)' : 'console.log(6 * 7)',
      );
      expect(evaluated.stdout).toBe('42\n');
      await agent.stop(job);
      await agent.ended(job);
    });
  });

  test('a command has a terminal where its caller has one', async () => {
    const job = await agent.run(code('javascript', WAIT.javascript), { Type: 'service' });
    const { ID } = await agent.running(job);
    const command = `'${agent.nomad}' alloc exec -i -t ${ID} sh -c 'test -t 0 && tty; exit 5'; echo "code $?"`;

    const stdout = execFileSync('script', ['-qec', command, '/dev/null'], { env: agent.env, input: '' }).toString();

    expect(stdout).toMatch(/\/dev\/pts\/\d+\r\n/);
    expect(stdout).toContain('code 5');
    await agent.stop(job);
  });

  test('logs are followed as they come, over the end of a file', async () => {
    const source =
      'let n = 0; const timer = setInterval(() => { for (let i = 0; i < 2000; i += 1) console.log(String(n++).padStart(99, "0")); if (n === 20000) clearInterval(timer); }, 50)';
    const job = await agent.run({ ...code('javascript', source) });
    const { ID } = await agent.allocation(job, ({ ClientStatus }) => ClientStatus !== 'pending');
    // Nomad's own command ends when there is no file yet.
    await agent.printed(ID, '0');
    const follower = spawn(agent.nomad, ['alloc', 'logs', '-f', ID, 't'], {
      env: agent.env,
      stdio: ['ignore', 'pipe', 'inherit'],
    });

    const chunks: string[] = [];
    follower.stdout.setEncoding('utf8').on('data', (chunk) => chunks.push(chunk));
    await until('all has come', async () => chunks.join('').length >= 20_000 * 100);
    follower.kill();

    expect(chunks.join('')).toBe(Array.from({ length: 20_000 }, (_, n) => `${String(n).padStart(99, '0')}\n`).join(''));
    await agent.stop(job);
  });

  test('a template that changes signals the task, and a check runs in it', async () => {
    const heard = WAIT.javascript.replace('SIGTERM', 'SIGHUP').replace('process.exit(3)', 'console.log("changed")');
    const template = {
      DestPath: 'local/t.conf',
      EmbeddedTmpl: '{{ with nomadVar "nomad/jobs/templated" }}{{ .a }}{{ end }}',
      ChangeMode: 'signal',
      ChangeSignal: 'SIGHUP',
    };
    const Services = [{ Name: 'templated', Provider: 'nomad', Checks: [] }];
    await agent.put('/v1/var/nomad/jobs/templated', { Path: 'nomad/jobs/templated', Items: { a: '1' } });
    const job = await agent.run(
      { ...code('javascript', heard), Templates: [template], Services },
      { Type: 'service' },
      'templated',
    );
    const { ID } = await agent.running(job);
    await agent.printed(ID, 'ready');

    await agent.put('/v1/var/nomad/jobs/templated', { Path: 'nomad/jobs/templated', Items: { a: '2' } });

    await agent.printed(ID, 'changed');
    await agent.stop(job);
  });

  test.each([
    [{ script: 'local/none.py' }, 'script "local/none.py"'],
    [{ code: '1', language: 'cobol' }, 'unknown language "cobol"'],
    [{ code: '1', script: 'a.py' }, 'exactly one of script and code'],
    [{ code: '1', elide_opts: [{ timeout: 'long' }] }, 'it must be a duration'],
    [{ code: '1', colour: 'red' }, 'colour'],
  ])('a job with %o fails at once, with an event that says why', async (config, why) => {
    const { events, allocation } = await agent.ended(await agent.run({ Config: config }));

    expect(allocation.ClientStatus).toBe('failed');
    expect(events.map(({ DisplayMessage }) => DisplayMessage).join('\n')).toContain(why);
  });

  test('200 tasks at once all run, and each has its own result', async () => {
    const task = {
      ...code('javascript', 'console.log(process.env.NOMAD_ALLOC_INDEX)', { isolation: 'thread' }),
      Resources: { CPU: 10, MemoryMB: 32 },
    };
    const job = await agent.run(task, { Count: 200 });

    let all = await agent.allocations(job);
    await until('all have ended', async () => {
      all = await agent.allocations(job);
      return (
        all.length === 200 && all.every(({ ClientStatus }) => ClientStatus === 'complete' || ClientStatus === 'failed')
      );
    });

    expect(all.filter(({ ClientStatus }) => ClientStatus === 'failed')).toEqual([]);
    const printed: string[] = [];
    for (const { ID } of all) printed.push(await agent.logs(ID));
    expect(new Set(printed.map(Number)).size).toBe(200);
  }, 180_000);

  describe('tasks run on, and nothing starts twice', () => {
    test.each([
      [
        'the agent is stopped and started',
        async () => {
          await agent.end();
          await agent.restart();
        },
      ],
      [
        'the agent is killed',
        async () => {
          await agent.end('SIGKILL');
          await agent.restart();
        },
      ],
      [
        'the plugin is killed',
        async () => {
          const before = await pluginOf(agent);
          process.kill(before, 'SIGKILL');
          await until('there is another', async () => agent.pluginPid !== undefined && agent.pluginPid !== before);
        },
      ],
      [
        'agent and plugin are killed',
        async () => {
          const plugin = await pluginOf(agent);
          await agent.end('SIGKILL');
          process.kill(plugin, 'SIGKILL');
          await agent.restart();
        },
      ],
    ])('when %s', async (_name, disturb) => {
      const source =
        'console.log("ready", process.pid); process.on("SIGTERM", () => process.exit(9)); setInterval(() => {}, 1000)';
      const job = await agent.run(code('javascript', source), { Type: 'service' });
      const short = await agent.run(
        code('python', 'import time\nprint("ready", flush=True)\ntime.sleep(4)\nraise SystemExit(6)'),
      );
      const { ID } = await agent.running(job);
      await agent.printed(ID, 'ready');
      await agent.printed((await agent.running(short)).ID, 'ready');

      await disturb();

      const { end } = await agent.ended(short);
      expect(end).toMatchObject({ ExitCode: 6 });
      const after = await agent.running(job);
      expect(after.ID).toBe(ID);
      expect(after.TaskStates?.t?.Restarts).toBe(0);
      await agent.stop(job);
      expect((await agent.ended(job)).end).toMatchObject({ ExitCode: 9 });
      expect((await agent.logs(ID)).match(/ready/g)).toHaveLength(1);
    });
  });

  test('a node is drained, and its tasks end in good order', async () => {
    const job = await agent.run(code('python', WAIT.python), { Type: 'service' });
    await agent.printed((await agent.running(job)).ID, 'ready');
    const [node] = await agent.get<{ ID: string }[]>('/v1/nodes');

    await agent.put(`/v1/node/${node?.ID}/drain`, { DrainSpec: { Deadline: 30e9 }, MarkEligible: false });

    const { end } = await agent.ended(job);
    expect(end).toMatchObject({ ExitCode: 3 });
    await agent.put(`/v1/node/${node?.ID}/drain`, { DrainSpec: null, MarkEligible: true });
    await agent.stop(job);
  });
});

describe.skipIf(nomad === undefined)('an agent without its daemon', { timeout: LIMIT_MS }, () => {
  test('starts, has no driver, and has one as soon as the daemon is there', async () => {
    const directory = temporaryDirectory();
    const socket = join(directory, 'd.sock');
    await using agent = await Agent.start(nomad as string, join(directory, 'n'), `    daemon_socket = "${socket}"`);
    const driver = async () => {
      const [node] = await agent.get<{ ID: string }[]>('/v1/nodes');
      return (await agent.get<{ Drivers: Record<string, { Healthy: boolean }> }>(`/v1/node/${node?.ID}`)).Drivers.elide;
    };
    expect(await driver()).toMatchObject({ Detected: false, Healthy: false });
    const job = await agent.run(code('javascript', 'console.log("at last")'));

    await using _daemon = await DaemonProcess.start('--socket', socket);

    await until('it is healthy', async () => (await driver())?.Healthy === true);
    expect((await agent.ended(job)).end).toMatchObject({ ExitCode: 0 });
  });
});

describe.skipIf(nomad === undefined)('with logs = "nomad"', { timeout: LIMIT_MS }, () => {
  test('everything is in the collector’s files, what was printed before a kill too', async () => {
    await using daemon = await DaemonProcess.start();
    const config = `    daemon_socket = "${daemon.socket}"\n    logs = "nomad"`;
    await using agent = await Agent.start(nomad as string, temporaryDirectory(), config);
    const lines = 'for (let i = 0; i < 20000; i += 1) console.log(i); process.kill(process.pid, "SIGKILL")';

    const { allocation, end } = await agent.ended(await agent.run(code('javascript', lines)));

    expect(end).toMatchObject({ Signal: 9 });
    const wanted = Array.from({ length: 20_000 }, (_, i) => `${i}\n`).join('');
    await until('all is collected', async () => (await agent.logs(allocation.ID)).length === wanted.length);
    expect(await agent.logs(allocation.ID)).toBe(wanted);
  });
});

async function pluginOf(agent: Agent): Promise<number> {
  await until('there is a plugin', async () => agent.pluginPid !== undefined);
  return agent.pluginPid as number;
}
