import { execFile, execFileSync, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectDaemon } from '../../src/client/index.ts';
import { killTrees } from '../../src/processes.ts';
import { Authority } from '../support/certificates.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { cellsBelow, processesWith } from '../support/processes.ts';
import { Agent, type Allocation, until } from './agent.ts';
import { findNomad } from './build-nomad.ts';

const nomad = findNomad();

const LIMIT_MS = 300_000;
const WAIT = {
  javascript: 'process.on("SIGTERM", () => process.exit(3)); console.log("ready"); setInterval(() => {}, 1000)',
  python:
    'import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nprint("ready", flush=True)\nwhile True: time.sleep(60)',
};
const code = (language: string, source: string, more: object = {}) => ({ Config: { language, code: source, ...more } });

describe.skipIf(nomad === undefined)('on a real agent', { timeout: LIMIT_MS }, () => {
  let directory: string;
  let daemon: DaemonProcess;
  let agent: Agent;
  const startDaemon = async () => {
    daemon = await startDaemonIn(directory);
  };

  beforeAll(async () => {
    directory = temporaryDirectory();
    await startDaemon();
    const config = `    daemon_socket = "${join(directory, 'd.sock')}"\n    log_max_file_size = "1"`;
    agent = await Agent.start(nomad as string, join(directory, 'n'), config);
  }, LIMIT_MS);
  afterAll(async () => {
    await agent?.[Symbol.asyncDispose]();
    await daemon.stop();
  }, LIMIT_MS);

  test('the node has the driver, with its attributes', async () => {
    const [node] = await agent.get<{ ID: string }[]>('/v1/nodes');
    const { Attributes, Drivers } = await agent.get<Record<string, Record<string, unknown>>>(`/v1/node/${node?.ID}`);

    expect(Drivers?.elide).toMatchObject({ Detected: true, Healthy: true });
    expect(Attributes).toMatchObject({ 'driver.elide': '1', 'driver.elide.version': '0.1.0' });
    expect(Attributes?.['driver.elide.language.python']).toMatch(/^3\./);
    expect(Attributes?.['unique.driver.elide.session_id']).toMatch(/^nomad-/);
    expect(Attributes).not.toHaveProperty(['driver.elide.session_id']);
    expect(Number(Attributes?.['driver.elide.capacity.running'])).toBeGreaterThan(0);
    expect(Attributes?.['driver.elide.capacity.session.queued']).toBe('10000');
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

  describe.each([
    ['javascript', 'process', WAIT.javascript],
    ['javascript', 'thread', WAIT.javascript],
    ['typescript', 'process', WAIT.javascript.replace('() => {}', '(): void => {}')],
    ['python', 'process', WAIT.python],
  ])('a %s service in a %s', (language, isolation, source) => {
    const task = (text: string) => code(language, text, { isolation });

    test('stops by its signal, and its exit code is seen', async () => {
      const job = await agent.run(task(source), { Type: 'service' });
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
      const job = await agent.run({ ...task(deaf), KillSignal: 'SIGINT', KillTimeout: 1e9 }, { Type: 'service' });
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
      const job = await agent.run(task(heard), { Type: 'service' });
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

  test('a silent command ends with its caller, however that goes', async () => {
    const job = await agent.run(code('javascript', WAIT.javascript), { Type: 'service' });
    const { ID } = await agent.running(job);
    const mark = `7${process.pid}`;
    const caller = spawn(agent.nomad, ['alloc', 'exec', '-t=false', ID, 'sleep', mark], { env: agent.env });
    // The caller has it in its own command line as well.
    await until('it runs', async () => processesWith(`sleep ${mark}`).length > 1);

    caller.kill('SIGKILL');

    await until('it is gone', async () => processesWith(`sleep ${mark}`).length === 0);
    await agent.stop(job);
  });

  test('logs are followed as they come, over the end of a file', async () => {
    const go = join(directory, 'go');
    const source = `console.log("ready"); let n = 0; const timer = setInterval(() => { if (!require("node:fs").existsSync("${go}")) return; for (let i = 0; i < 2000; i += 1) console.log(String(n++).padStart(99, "0")); if (n === 20000) clearInterval(timer); }, 50)`;
    const job = await agent.run(code('javascript', source));
    const { ID } = await agent.running(job);
    // Nomad's own command ends when there is no file yet, and begins with the newest that it finds.
    await agent.printed(ID, 'ready');
    const follower = spawn(agent.nomad, ['alloc', 'logs', '-f', ID, 't'], {
      env: agent.env,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let followed = '';
    follower.stdout.setEncoding('utf8').on('data', (chunk) => {
      followed += chunk;
    });
    await until('the first has come', async () => followed === 'ready\n');

    writeFileSync(go, '');

    const wanted = `ready\n${Array.from({ length: 20_000 }, (_, n) => `${String(n).padStart(99, '0')}\n`).join('')}`;
    await until('all has come', async () => followed.length >= wanted.length);
    follower.kill();
    expect(followed === wanted).toBe(true);
    await agent.stop(job);
  });

  test.each([
    { ChangeMode: 'signal', ChangeSignal: 'SIGHUP' },
    { ChangeMode: 'script', ChangeScript: { Command: '/bin/sh', Args: ['-c', 'kill -HUP $(cat pid)'], Timeout: 1e10 } },
  ])('a template that changes tells the task by its $ChangeMode', async (change) => {
    const name = `templated-${change.ChangeMode}`;
    const heard = WAIT.javascript.replace('SIGTERM', 'SIGHUP').replace('process.exit(3)', 'console.log("changed")');
    const source = `require("node:fs").writeFileSync("pid", String(process.pid)); ${heard}`;
    const EmbeddedTmpl = `{{ with nomadVar "nomad/jobs/${name}" }}{{ .a }}{{ end }}`;
    const Templates = [{ DestPath: 'local/t.conf', EmbeddedTmpl, ...change }];
    const set = (a: string) => agent.put(`/v1/var/nomad/jobs/${name}`, { Path: `nomad/jobs/${name}`, Items: { a } });
    await set('1');
    const job = await agent.run({ ...code('javascript', source), Templates }, { Type: 'service' }, name);
    const { ID } = await agent.running(job);
    await agent.printed(ID, 'ready');

    await set('2');

    await agent.printed(ID, 'changed');
    await agent.stop(job);
  });

  test('a task that fails is started again, as its job says', async () => {
    const source =
      'const { appendFileSync, readFileSync } = require("node:fs"); appendFileSync("tries", "x"); const tries = readFileSync("tries").length; console.log("try", tries); process.exitCode = tries < 3 ? 1 : 0';
    const RestartPolicy = { Attempts: 3, Mode: 'fail', Interval: 6e10, Delay: 1e8 };

    const { allocation } = await agent.ended(await agent.run(code('javascript', source), { Group: { RestartPolicy } }));

    expect(allocation).toMatchObject({ ClientStatus: 'complete', TaskStates: { t: { Restarts: 2, Failed: false } } });
    expect(await agent.logs(allocation.ID)).toBe('try 1\ntry 2\ntry 3\n');
  });

  test('a task that waits for its next try while the agent is restarted has as many ends as tries', async () => {
    const tries = join(directory, `tries-${randomUUID()}`);
    const source = `require("node:fs").appendFileSync("${tries}", "x"); process.exitCode = 1`;
    const RestartPolicy = { Attempts: 5, Mode: 'fail', Interval: 6e11, Delay: 1.2e11 };
    const job = await agent.run(code('javascript', source), { Group: { RestartPolicy } });
    const waits = (ends: number) =>
      agent.allocation(job, ({ TaskStates }) => {
        const types = TaskStates?.t?.Events.map(({ Type }) => Type) ?? [];
        return types.at(-1) === 'Restarting' && types.filter((type) => type === 'Terminated').length === ends;
      });
    await waits(1);

    await agent.end();
    await agent.restart();

    await waits(2);
    expect(readFileSync(tries, 'utf8')).toBe('xx');
    await agent.stop(job);
  });

  test('a job is updated in place where that is enough, else one allocation after the other', async () => {
    const Update = { MaxParallel: 1, HealthCheck: 'task_states', MinHealthyTime: 1e8, HealthyDeadline: 6e10 };
    const run = (more: object) =>
      agent.run(
        { ...code('javascript', WAIT.javascript), ...more },
        { Type: 'service', Count: 2, Group: { Update: { ...Update, ProgressDeadline: 1.2e11 } } },
        'updated',
      );
    const ofVersion = async (version: number) => {
      let found: Allocation[] = [];
      await until(`two of version ${version} run, healthy`, async () => {
        const all = await agent.allocations('updated');
        found = all.filter(({ JobVersion, ClientStatus }) => JobVersion === version && ClientStatus === 'running');
        return found.length === 2 && found.every(({ DeploymentStatus }) => DeploymentStatus?.Healthy === true);
      });
      return found;
    };
    const ids = (all: Allocation[]) => all.map(({ ID }) => ID).sort();
    const timesOf = (all: Allocation[], type: string) =>
      all.map(({ TaskStates }) => TaskStates?.t?.Events.findLast(({ Type }) => Type === type)?.Time ?? Number.NaN);
    await run({});
    const first = await ofVersion(0);

    await run({ KillTimeout: 1e10 });
    const second = await ofVersion(1);
    await run({ Env: { A: '1' } });
    const third = await ofVersion(2);

    expect(ids(second)).toEqual(ids(first));
    expect(second.map(({ TaskStates }) => TaskStates?.t?.Restarts)).toEqual([0, 0]);
    expect(ids(third)).not.toEqual(ids(first));
    let gone: Allocation[] = [];
    await until('the older have ended', async () => {
      gone = (await agent.allocations('updated')).filter(({ JobVersion }) => JobVersion === 1);
      return gone.every(({ ClientStatus }) => ClientStatus === 'complete');
    });
    expect(Math.min(...timesOf(third, 'Started'))).toBeLessThan(Math.max(...timesOf(gone, 'Killing')));
    await agent.stop('updated');
  });

  test.each([
    [{ script: 'local/none.py' }, 'script "local/none.py"'],
    [{ code: '1', language: 'cobol' }, 'unknown language "cobol"'],
    [{ code: '1', script: 'a.py' }, 'exactly one of script and code'],
    [{ code: '1', elide_opts: [{ timeout: 'long' }] }, 'it must be a duration'],
    [{ code: '1', elide_opts: [{ memory_limit: '1' }] }, 'elide_opts.memory_limit: it must be 8 MiB to 1048576 MiB'],
    [{ code: '1', elide_opts: [{ on_timeout: 'SIGFOO' }] }, 'elide_opts.on_timeout: it must be cancel, kill or'],
    [{ code: '1', colour: 'red' }, 'colour'],
  ])('a job with %o fails at once, with an event that says why', async (config, why) => {
    const { events, allocation } = await agent.ended(await agent.run({ Config: config }));

    expect(allocation.ClientStatus).toBe('failed');
    expect(events.map(({ DisplayMessage }) => DisplayMessage).join('\n')).toContain(why);
  });

  describe('tasks run on, nothing starts twice, and nothing of their logs is lost', () => {
    const killDaemon = () => daemon.stop('SIGKILL');
    const killPlugin = async () => {
      const before = await pluginOf(agent);
      process.kill(before, 'SIGKILL');
      return before;
    };
    const anotherPlugin = (before: number) => anotherPluginOf(agent, before);

    // Between the two, a task ends.
    test.each<[string, () => Promise<unknown>, (lost: never) => Promise<unknown>]>([
      ['the agent is stopped and started', () => agent.end(), () => agent.restart()],
      ['the agent is killed', () => agent.end('SIGKILL'), () => agent.restart()],
      ['the plugin is killed', killPlugin, anotherPlugin],
      ['the daemon is killed', killDaemon, startDaemon],
      [
        'the daemon is away for 30 s',
        killDaemon,
        async () => {
          await sleep(30_000);
          await startDaemon();
        },
      ],
      [
        'agent and plugin are killed',
        async () => {
          const plugin = await pluginOf(agent);
          await agent.end('SIGKILL');
          process.kill(plugin, 'SIGKILL');
        },
        () => agent.restart(),
      ],
      [
        'daemon and plugin are killed',
        async () => {
          await killDaemon();
          return killPlugin();
        },
        async (plugin) => {
          await anotherPlugin(plugin);
          await startDaemon();
        },
      ],
      [
        'daemon and agent are killed, and the daemon comes last',
        async () => {
          await killDaemon();
          await agent.end('SIGKILL');
        },
        async () => {
          await agent.restart();
          await startDaemon();
        },
      ],
    ])('when %s', async (_name, disturb, mend) => {
      const go = join(directory, `go-${randomUUID()}`);
      const counter =
        'let n = 0; process.on("SIGTERM", () => { console.log("end"); process.exit(9) }); console.log("ready"); setInterval(() => console.log(n++), 20)';
      const waiter = `import os, sys, time\nprint("ready", flush=True)\nwhile not os.path.exists("${go}"): time.sleep(0.02)\nprint("end", flush=True)\nsys.exit(6)`;
      const service = await agent.run(code('javascript', counter), { Type: 'service' });
      const batch = await agent.run(code('python', waiter));
      const [{ ID }, { ID: batchId }] = [await agent.running(service), await agent.running(batch)];
      await agent.printed(ID, 'ready');
      await agent.printed(batchId, 'ready');

      const lost = await disturb();
      writeFileSync(go, '');
      await mend(lost as never);

      const { end, allocation } = await agent.ended(batch);
      expect(end).toMatchObject({ ExitCode: 6, Signal: 0 });
      expect([allocation.ID, await agent.logs(batchId)]).toEqual([batchId, 'ready\nend\n']);
      const after = await agent.running(service);
      expect([after.ID, after.TaskStates?.t?.Restarts]).toEqual([ID, 0]);
      await agent.stop(service);
      expect((await agent.ended(service)).end).toMatchObject({ ExitCode: 9, Signal: 0 });
      const lines = (await agent.logs(ID)).split('\n');
      const numbers = Array.from({ length: lines.length - 3 }, (_, n) => String(n));
      expect(lines).toEqual(['ready', ...numbers, 'end', '']);
      expect(numbers.length).toBeGreaterThan(0);
    });
  });

  test('tasks that are gone with agent, plugin and daemon, as with the machine, are started anew, uncounted', async () => {
    const source = 'console.log("ready"); setInterval(() => {}, 1000)';
    const jobs: string[] = [];
    for (const Type of ['service', 'batch']) jobs.push(await agent.run(code('javascript', source), { Type }));
    const ids: string[] = [];
    for (const job of jobs) ids.push((await agent.running(job)).ID);
    for (const id of ids) await agent.printed(id, 'ready');

    const plugin = await pluginOf(agent);
    await agent.end('SIGKILL');
    process.kill(plugin, 'SIGKILL');
    await daemon.stop('SIGKILL');
    killTrees(cellsBelow(directory));
    await startDaemon();
    await agent.restart();

    for (const id of ids) await agent.printed(id, 'ready\nready\n');
    for (const [n, job] of jobs.entries()) {
      const { ID, TaskStates } = await agent.running(job);
      expect([ID, TaskStates?.t?.State, TaskStates?.t?.Restarts]).toEqual([ids[n], 'running', 0]);
      await agent.stop(job);
    }
  });

  test('an agent that is stopped does not wait for a daemon that is away', async () => {
    await agent.ended(await agent.run(code('javascript', '1')));
    const job = await agent.run(code('javascript', WAIT.javascript), { Type: 'service' });
    await agent.printed((await agent.running(job)).ID, 'ready');

    await daemon.stop('SIGKILL');
    await agent.stop(job);
    await agent.allocation(job, ({ TaskStates }) => TaskStates?.t?.Events.at(-1)?.Type === 'Killing');
    // First with a stop under way, then with ended tasks that it has found again.
    await agent.end();
    await agent.restart();
    await agent.end();

    await startDaemon();
    await agent.restart();
    expect((await agent.ended(job)).allocation.ClientStatus).toBe('complete');
    using client = connectDaemon({ socket: join(directory, 'd.sock') });
    await until('its execution has ended', async () => {
      const all = await Array.fromAsync(client.listExecutions());
      return all.every(({ state }) => state === 'exited');
    });
  });

  test('200 tasks at once all run, and each has its own result', async () => {
    const task = {
      ...code('javascript', 'console.log(process.env.NOMAD_ALLOC_INDEX)', { isolation: 'thread' }),
      Resources: { CPU: 10, MemoryMB: 32 },
    };
    const job = await agent.run(task, { Count: 200 });

    let all = await agent.allocations(job);
    await until(
      'all have ended',
      async () => {
        all = await agent.allocations(job);
        return (
          all.length === 200 &&
          all.every(({ ClientStatus }) => ClientStatus === 'complete' || ClientStatus === 'failed')
        );
      },
      300_000,
    );

    expect(all.filter(({ ClientStatus }) => ClientStatus === 'failed')).toEqual([]);
    const printed: string[] = [];
    for (const { ID } of all) printed.push(await agent.logs(ID));
    expect(new Set(printed.map(Number)).size).toBe(200);
  }, 600_000);

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
  test('starts when a value of its configuration is wrong, and says which', async () => {
    await using agent = await Agent.start(nomad as string, temporaryDirectory(), '    reconnect_limit = "soon"');
    const [node] = await agent.get<{ ID: string }[]>('/v1/nodes');
    const { Drivers } = await agent.get<{ Drivers: Record<string, object> }>(`/v1/node/${node?.ID}`);

    expect(Drivers.elide).toMatchObject({
      Healthy: false,
      HealthDescription: expect.stringContaining('reconnect_limit: it must be a duration'),
    });
  });

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

  test('nothing is lost nor comes twice when plugin, daemon and agent end and come back', async () => {
    const directory = temporaryDirectory();
    let daemon = await startDaemonIn(directory);
    await using _daemons = { [Symbol.asyncDispose]: () => daemon.stop() };
    const config = `    daemon_socket = "${join(directory, 'd.sock')}"\n    logs = "nomad"`;
    await using agent = await Agent.start(nomad as string, join(directory, 'n'), config);
    const counters = {
      javascript:
        'let n = 0; process.on("SIGTERM", () => { console.log("end"); process.exit(9) }); setInterval(() => console.log(n++), 5)',
      python:
        'import signal, sys, time\ndef end(*_):\n  print("end", flush=True)\n  sys.exit(9)\nsignal.signal(signal.SIGTERM, end)\nn = 0\nwhile True:\n  print(n, flush=True)\n  n += 1\n  time.sleep(0.005)',
    };
    const jobs: string[] = [];
    for (const [language, source] of Object.entries(counters)) {
      jobs.push(await agent.run(code(language, source), { Type: 'service' }));
    }
    const ids = await Promise.all(jobs.map(async (job) => (await agent.running(job)).ID));
    const lengths = () => Promise.all(ids.map(async (id) => (await agent.logs(id)).length));
    const goOn = async () => {
      const before = await lengths();
      await until('both have written on', async () => (await lengths()).every((now, i) => now > (before[i] ?? 0)));
    };
    await goOn();

    const plugin = await pluginOf(agent);
    process.kill(plugin, 'SIGKILL');
    await anotherPluginOf(agent, plugin);
    await goOn();
    await daemon.stop('SIGKILL');
    await goOn();
    daemon = await startDaemonIn(directory);
    await goOn();
    for (const signal of ['SIGINT', 'SIGKILL'] as const) {
      await agent.end(signal);
      await agent.restart();
      await goOn();
    }

    for (const job of jobs) await agent.stop(job);
    for (const [i, job] of jobs.entries()) {
      expect((await agent.ended(job)).end).toMatchObject({ ExitCode: 9, Signal: 0 });
      const id = ids[i] as string;
      await agent.printed(id, 'end');
      const lines = (await agent.logs(id)).split('\n');
      expect(lines).toEqual([...Array.from({ length: lines.length - 2 }, (_, n) => String(n)), 'end', '']);
    }
  });
});

describe.skipIf(nomad === undefined)('with a daemon on TCP', { timeout: LIMIT_MS }, () => {
  test('the driver shows its certificate and token, as the agent’s configuration names them', async () => {
    const directory = temporaryDirectory();
    const authority = await Authority.create(directory, 'authority');
    const own = await authority.issue('driver', []);
    const { certFile, keyFile } = await authority.issue('server', ['127.0.0.1']);
    const token = join(directory, 'token');
    writeFileSync(token, 'correct-horse', { mode: 0o600 });
    const tls = ['--tls-cert', certFile, '--tls-key', keyFile, '--tls-client-ca', authority.certFile];
    await using daemon = await DaemonProcess.start(...tls, '--token-file', token);
    const config = `    daemon_address = "${daemon.tcp}"
    daemon_token_file = "${token}"
    daemon_tls {
      ca_file = "${authority.certFile}"
      cert_file = "${own.certFile}"
      key_file = "${own.keyFile}"
    }`;
    await using agent = await Agent.start(nomad as string, join(directory, 'n'), config);

    const { allocation, end } = await agent.ended(await agent.run(code('javascript', 'console.log("there")')));

    expect(end).toMatchObject({ ExitCode: 0 });
    expect(await agent.logs(allocation.ID)).toBe('there\n');
  });
});

/** One that the next in this directory follows: on its socket, its state and its cells. */
function startDaemonIn(directory: string): Promise<DaemonProcess> {
  const [socket, config] = [join(directory, 'd.sock'), join(directory, 'daemon.json')];
  // Longer than it is ever away; what is left of it when a test fails is gone soon.
  writeFileSync(config, JSON.stringify({ orphanGraceMs: 300_000 }));
  return DaemonProcess.start('--socket', socket, '--state-dir', join(directory, 's'), '--config', config);
}

function anotherPluginOf(agent: Agent, before: number): Promise<void> {
  return until('there is another plugin', async () => agent.pluginPid !== undefined && agent.pluginPid !== before);
}

async function pluginOf(agent: Agent): Promise<number> {
  await until('there is a plugin', async () => agent.pluginPid !== undefined);
  return agent.pluginPid as number;
}
