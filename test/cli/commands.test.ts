import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { JournalStore } from '../../src/journal/store.ts';
import { eventually, temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { CTL, Elidectl } from './elidectl.ts';

let daemon: DaemonProcess;
let ctl: Elidectl;

beforeAll(async () => {
  daemon = await DaemonProcess.start();
  ctl = new Elidectl(daemon.socket);
});
afterAll(() => daemon?.stop());

/** Starts an execution and leaves it; resolves with its id. */
async function detached(language: string, code: string, ...flags: string[]): Promise<string> {
  return (await ctl.text('run', '--detach', '-l', language, '-e', code, ...flags)).trim();
}

const FOREVER = 'setInterval(() => {}, 1000)';

describe('a detached execution', () => {
  test('can be followed from its beginning and waited for', async () => {
    const code = 'import sys, time\nfor at in range(3):\n  print(at, flush=True)\n  time.sleep(0.1)\nsys.exit("end")';
    const id = await detached('python', code);

    const logs = await ctl.run(['logs', '-f', id]);
    const wait = await ctl.run(['wait', id]);

    expect(logs.code).toBe(0);
    expect(logs.stdout.toString()).toBe('0\n1\n2\n');
    expect(logs.stderr.toString()).toBe('end\n');
    expect(wait.code).toBe(1);
    expect(wait.stdout.toString()).toMatch(/^failed, exit code 1, ran [\d.]+m?s\n$/);
  });

  test('names itself as a JSON document with --json', async () => {
    const document = await ctl.json('run', '--detach', '-l', 'js', '-e', '1', '-s', 'named');

    expect(document).toEqual({ sessionId: 'named', executionId: expect.stringMatching(/^[0-9a-z]{12}$/) });
  });
});

describe('ps', () => {
  test('lists what runs, and with --all what has exited too', async () => {
    const running = await detached('js', FOREVER, '-s', 'ps');
    const exited = await detached('py', 'raise SystemExit(4)', '-s', 'ps');
    await ctl.run(['wait', exited]);

    const some = await ctl.text('ps', '--session', 'ps');
    const all = await ctl.text('ps', '--all', '--session', 'ps');

    expect(some).toMatch(/^SESSION +EXECUTION +LANGUAGE +STATE +REASON +RUNG +EXIT +AGE +RAN\n/);
    expect(some).toMatch(new RegExp(`^ps +${running} +javascript +(pending|running) +- +- +- +`, 'm'));
    expect(some).not.toContain(exited);
    expect(all).toMatch(new RegExp(`^ps +${exited} +python +exited +failed +- +4 +`, 'm'));
    await ctl.text('stop', running);
  });

  test('shows executions as JSON with the same keys in every state', async () => {
    const id = await detached('js', 'process.exit(5)', '-s', 'ps-json');
    await ctl.run(['wait', id]);

    const document = await ctl.json('ps', '--all', '-s', 'ps-json');

    expect(document).toEqual([
      {
        sessionId: 'ps-json',
        executionId: id,
        language: 'javascript',
        state: 'exited',
        rung: null,
        result: {
          reason: 'failed',
          rung: null,
          exitCode: 5,
          signal: null,
          message: null,
          usage: expect.objectContaining({ userSeconds: expect.any(Number), stdoutBytes: 0, droppedBytes: 0 }),
        },
        times: {
          acceptedAtMs: expect.any(Number),
          startedAtMs: expect.any(Number),
          signaledAtMs: null,
          exitedAtMs: expect.any(Number),
        },
        warnings: [],
        pid: 0,
      },
    ]);
  });
});

describe('logs', () => {
  test('writes one stream when asked for one', async () => {
    const id = await detached('js', 'console.log("out"); console.error("err")');
    await ctl.run(['wait', id]);

    const out = await ctl.run(['logs', '--stdout', id]);
    const err = await ctl.run(['logs', '--stderr', id]);

    expect([out.stdout.toString(), out.stderr.toString()]).toEqual(['out\n', '']);
    expect([err.stdout.toString(), err.stderr.toString()]).toEqual(['', 'err\n']);
  });

  test('writes one JSON object a line with --json', async () => {
    const id = await detached('js', 'console.log("out"); console.error("err")');

    const lines = (await ctl.text('logs', '-f', '--json', id)).trimEnd().split('\n');

    expect(lines.map((line) => JSON.parse(line))).toEqual([
      { stream: 'stdout', position: 0, bytes: 4, atMs: expect.any(Number), text: 'out\n' },
      { stream: 'stderr', position: 0, bytes: 4, atMs: expect.any(Number), text: 'err\n' },
    ]);
  });

  test('leaves nothing out of the text with --json, neither a mark at its beginning nor half a character at its end', async () => {
    const id = await detached('js', "process.stdout.write(Buffer.from('efbbbf616263e282', 'hex'))");

    const lines = (await ctl.text('logs', '-f', '--json', id)).trimEnd().split('\n');

    expect(lines.map((line) => JSON.parse(line))).toEqual([
      { stream: 'stdout', position: 0, bytes: 8, atMs: expect.any(Number), text: '\ufeffabc' },
      { stream: 'stdout', position: 8, bytes: 0, atMs: expect.any(Number), text: '\ufffd' },
    ]);
  });
});

describe('wait', () => {
  test('exits with 125 when its own time passed first', async () => {
    const id = await detached('js', FOREVER);

    const ended = await ctl.run(['wait', '--timeout', '50ms', id]);

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toMatch(/^elidectl: execution "\w+" is (pending|running) after 50ms\n$/);
    await ctl.text('stop', id);
  });

  test('exits as run would have when the run limit passed', async () => {
    const id = await detached('js', FOREVER, '--timeout', '50ms');

    expect((await ctl.run(['wait', id])).code).toBe(124);
  });
});

describe('stop and signal', () => {
  test('stop returns when a program that does not listen has been forced', async () => {
    const id = await detached(
      'py',
      'import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\nwhile True: pass',
    );
    const follower = ctl.start(['logs', '-f', id]);
    await follower.wrote('1');

    const document = await ctl.json('stop', '--grace', '100ms', id);

    expect(document).toMatchObject({
      state: 'exited',
      result: { reason: 'cancelled', rung: 'forced', exitCode: 137, signal: 'SIGKILL' },
    });
    expect((await follower.ended).code).toBe(0);
  });

  test('stop begins with the signal it is told', async () => {
    const id = await detached('js', `process.on('SIGHUP', () => process.exit(6)); console.log('ready'); ${FOREVER}`);
    const follower = ctl.start(['logs', '-f', id]);
    await follower.wrote('ready');

    expect(await ctl.text('stop', '--signal', 'HUP', id)).toMatch(/^cancelled, graceful, exit code 6, ran /);
  });

  test('stop of an execution that has exited says how it did', async () => {
    const id = await detached('js', '1');
    await ctl.run(['wait', id]);

    expect(await ctl.text('stop', id)).toMatch(/^completed, exit code 0, ran /);
  });

  test('signal delivers one signal and stops nothing', async () => {
    const id = await detached(
      'js',
      `process.on('SIGUSR2', () => console.log('heard')); console.log('ready'); ${FOREVER}`,
    );
    const follower = ctl.start(['logs', '-f', id]);
    await follower.wrote('ready');

    await ctl.text('signal', id, 'usr2');
    await follower.wrote('heard');

    expect(await ctl.json('inspect', id)).toMatchObject({ state: 'running', rung: null, result: null });
    await ctl.text('stop', id);
    const late = await ctl.run(['signal', id, 'usr2']);
    expect(late.code).toBe(125);
    expect(late.stderr.toString()).toBe(`elidectl: execution "${id}" has exited (elidectl inspect ${id})\n`);
  });
});

describe('inspect', () => {
  test('shows what is known, for people and as JSON', async () => {
    const id = await detached('js', 'console.log("four"); process.exit(2)');
    await ctl.run(['wait', id]);

    const text = await ctl.text('inspect', id);
    const document = await ctl.json('inspect', id);

    expect(text).toMatch(new RegExp(`^execution +${id}$`, 'm'));
    expect(text).toMatch(/^result +failed, exit code 2, ran /m);
    expect(text).toMatch(/^stdout +5 bytes$/m);
    expect(document).toMatchObject({ executionId: id, state: 'exited', stdoutBytes: 5, stderrBytes: 0, sequence: 3 });
  });

  test('finds an execution in the only session that has it', async () => {
    const id = await detached('js', '1', '-s', 'elsewhere');

    expect(await ctl.json('inspect', id)).toMatchObject({ sessionId: 'elsewhere' });
    const wrong = await ctl.run(['inspect', id, '--session', 'default']);
    expect(wrong.stderr.toString()).toMatch(/^elidectl: (execution|session) ".*" not found/);
  });

  test('of an execution that is not there exits with 125 and names the next step', async () => {
    const ended = await ctl.run(['inspect', 'gone']);

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toBe('elidectl: execution "gone" not found (elidectl ps --all)\n');
  });
});

describe('release', () => {
  test('gives up what has finished, and nothing else', async () => {
    const id = await detached('js', FOREVER, '-s', 'released');
    const early = await ctl.run(['release', id]);
    expect(early.code).toBe(125);
    expect(early.stderr.toString()).toMatch(/^elidectl: execution ".*" has not exited/);
    await ctl.text('stop', '--grace', '0', id);

    expect(await ctl.text('release', id)).toBe('');

    const late = await ctl.run(['release', id]);
    expect(late.code).toBe(125);
    expect(late.stderr.toString()).toBe(`elidectl: execution "${id}" not found (elidectl ps --all)\n`);
  });
});

describe('evicted output', () => {
  test('is named as such by inspect, and refused by logs with what is left', async () => {
    await ctl.text('session', 'create', 'narrow', '--output-budget', '3kB');
    const write = 'process.stdout.write("x".repeat(2000))';
    const first = await detached('js', write, '-s', 'narrow');
    await ctl.run(['wait', first]);
    await ctl.run(['wait', await detached('js', write, '-s', 'narrow')]);

    await eventually('the first is evicted', async () =>
      (await ctl.text('inspect', first)).includes('2000 bytes, removed to make room'),
    );
    const logs = await ctl.run(['logs', first]);

    expect(logs.code).toBe(125);
    expect(logs.stderr.toString()).toBe(
      `elidectl: stdout of execution "${first}" was evicted to make room: position 0 is gone, it now begins at 2000, its end\n`,
    );
    expect(await ctl.json('inspect', first)).toMatchObject({
      outputEvicted: true,
      result: { reason: 'completed' },
    });
  });
});

describe('session', () => {
  test('create, ls, inspect and rm take a session through its life', async () => {
    await ctl.text('session', 'create', 'life', '--language', 'js', '--memory', '1GiB', '--pool-size', '3');
    const id = await detached('js', FOREVER, '-s', 'life');

    expect(await ctl.text('session', 'ls')).toMatch(/^life +running +\d +\d +0 +/m);
    expect(await ctl.json('session', 'inspect', 'life')).toMatchObject({
      sessionId: 'life',
      state: 'running',
      config: { enabledLanguages: ['javascript'], memoryLimitMb: 1024, contextPoolSize: 3 },
    });
    const busy = await ctl.run(['session', 'rm', '--if-idle', 'life']);
    expect(busy.code).toBe(125);
    expect(busy.stderr.toString()).toMatch(/^elidectl: session "life" is busy: \d executions run, and \d wait\n$/);
    await ctl.text('session', 'rm', '--force', 'life');
    expect(await ctl.text('session', 'ls')).not.toContain('life');
    expect(await ctl.json('inspect', id, '-s', 'life')).toMatchObject({ result: { reason: 'session_closed' } });
  });

  test('its life is set when it is created, and shown', async () => {
    const flags = ['--idle-ttl', '10m', '--ttl', '24h', '--keep', '1h', '--keep-executions', '9', '--output-budget'];
    await ctl.text('session', 'create', 'lasting', ...flags, '64MiB');

    expect(await ctl.json('session', 'inspect', 'lasting')).toMatchObject({
      config: {
        idleTtlMs: 600_000,
        totalTtlMs: 86_400_000,
        retainedAgeMs: 3_600_000,
        retainedExecutions: 9,
        outputBudgetBytes: 67_108_864,
      },
    });
    expect(await ctl.text('session', 'inspect', 'lasting')).toMatch(
      /^idle ttl +10m00s\nttl +24h00m\nkept for +1h00m\nkept at most +9\noutput budget +64\.0 MiB$/m,
    );
    expect(await ctl.json('session', 'ls')).toContainEqual(expect.objectContaining({ sessionId: 'lasting' }));
    const none = await ctl.run(['session', 'create', 'none', '--idle-ttl', '0']);
    expect(none.stderr.toString()).toBe(
      'elidectl: config.idle_ttl_ms is 0 ms; it must be 1 to 2073600000 ms (24 days)\n',
    );
  });

  test('create with another configuration is refused', async () => {
    await ctl.text('session', 'create', 'twice', '--pool-size', '3');

    expect(await ctl.text('session', 'create', 'twice', '--pool-size', '3')).toBe('twice\n');
    const other = await ctl.run(['session', 'create', 'twice', '--pool-size', '4']);
    expect(other.code).toBe(125);
    expect(other.stderr.toString()).toBe('elidectl: session "twice" exists with another configuration\n');
  });

  test('rm of a session that is not there names the next step', async () => {
    const ended = await ctl.run(['session', 'rm', 'gone']);

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toBe('elidectl: session "gone" not found (elidectl session ls)\n');
  });
});

describe('languages and health', () => {
  test('languages lists what the node can run', async () => {
    expect(await ctl.text('languages')).toMatch(/^typescript +ts +\d+\.\d+\.\d+ +yes$/m);
    expect(await ctl.json('languages')).toContainEqual({
      name: 'javascript',
      aliases: ['js', 'node', 'nodejs'],
      version: expect.any(String),
      available: true,
      message: '',
    });
  });

  test('health says what answers, over both kinds of address', async () => {
    expect(await ctl.text('health')).toMatch(new RegExp(`^healthy: elide-daemon \\S+ on unix:${daemon.socket}\n$`));
    expect(await ctl.json('health', '--tcp', daemon.tcp)).toEqual({
      healthy: true,
      version: expect.any(String),
      address: `tcp:${daemon.tcp}`,
    });
  });

  test.each([
    ['--socket', '/gone.sock', 'unix:/gone.sock (connect ENOENT /gone.sock)'],
    ['--tcp', '127.0.0.1:1', 'tcp:127.0.0.1:1 (connect ECONNREFUSED 127.0.0.1:1)'],
  ])('health exits with 125 when nobody answers on %s %s', async (flag, address, place) => {
    const ended = await ctl.run(['health', flag, address]);

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toBe(
      `elidectl: no daemon answers on ${place}: start elide-daemon, or name another with --socket or --tcp\n`,
    );
  });
});

describe('the command line', () => {
  test.each([
    [['rnu'], "elidectl: unknown command 'rnu'\n(Did you mean run?)\n"],
    [['ps', '--al'], "elidectl: unknown option '--al'\n(Did you mean --all?)\n"],
    [
      ['health', '--socket', 'a', '--tcp', 'b'],
      "option '--socket <path>' cannot be used with option '--tcp <host:port>'",
    ],
    [['stop', 'x', '--grace', '2'], "argument '2' is invalid. A duration is for example 1500ms, 5s or 1m30s.\n"],
    [['stats', '--interval', '0', '--once'], "argument '0' is invalid. It must be 100ms to 1h.\n"],
    [['stop'], "elidectl: missing required argument 'execution'\n"],
  ])('%j is refused with 125 and a hint', async (args, message) => {
    const ended = await ctl.run(args);

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toContain(message);
  });

  test('--help goes to stdout and is no failure', async () => {
    const ended = await ctl.run(['run', '--help']);

    expect(ended.code).toBe(0);
    expect(ended.stderr.toString()).toBe('');
    expect(ended.stdout.toString()).toContain('124 when the run limit passed');
  });

  test.each(['--help', '--version'])('%s that cannot be written is a failure', async (flag) => {
    const ended = await promisify(execFile)('sh', [
      '-c',
      'exec "$@" > /dev/full',
      'sh',
      process.execPath,
      CTL,
      flag,
    ]).catch((error) => error);

    expect(ended.stderr).toMatch(/^elidectl: cannot write to stdout: ENOSPC[^\n]*\n$/);
    expect(ended.code).toBe(125);
  });
});

describe('journal', () => {
  const stateDir = () => ['--state-dir', `${daemon.directory}/state`];

  test('export writes what the daemon knows, an object a line, and no environment', async () => {
    const id = await detached('js', '1', '-s', 'journaled', '--env', 'KEY=secret-value');
    await ctl.run(['wait', id]);

    const text = await ctl.text('journal', 'export', ...stateDir());

    const rows = text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(rows).toContainEqual(expect.objectContaining({ type: 'session', sessionId: 'journaled' }));
    const found = rows.find(({ type, executionId }) => type === 'execution' && executionId === id);
    expect(found.events.map(({ state }: { state: string }) => state)).toEqual(['pending', 'running', 'exited']);
    expect(found.events.at(-1).result).toMatchObject({ reason: 'completed', exitCode: 0 });
    expect(text).not.toContain('secret-value');
  });

  test('verify finds a journal sound, also beside its daemon', async () => {
    expect(await ctl.text('journal', 'verify', ...stateDir())).toBe('sound\n');
  });

  test('vacuum leaves a journal alone that a daemon uses', async () => {
    const { code, stderr } = await ctl.run(['journal', 'vacuum', ...stateDir()]);

    expect(code).toBe(125);
    expect(stderr.toString()).toMatch(/in use by another daemon/);
  });

  const change = (path: string, sql: string) => {
    const database = new DatabaseSync(path);
    database.exec(sql);
    database.close();
  };
  /** A state directory that no daemon uses, with this in its journal. */
  const left = (sql: string) => {
    const root = temporaryDirectory();
    mkdirSync(join(root, 'daemon'), { mode: 0o700 });
    writeFileSync(join(root, 'daemon', 'lock.db'), '');
    const path = join(root, 'daemon', 'journal.db');
    JournalStore.open(path, 'normal').store.close();
    change(path, sql);
    return { flags: ['--state-dir', root], path };
  };

  test('verify names what is wrong, and exits with 1', async () => {
    const { flags } = left("INSERT INTO events VALUES (7, 1, '{}')");

    const { code, stdout, stderr } = await ctl.run(['journal', 'verify', ...flags]);

    expect(code).toBe(1);
    expect(stdout.toString()).toBe('');
    expect(stderr.toString()).toBe('elidectl: events of execution 7, which is not there\n');
  });

  test('vacuum makes one small that no daemon uses, and says so', async () => {
    const { flags, path } = left('INSERT INTO room VALUES (zeroblob(4000000)); DELETE FROM room');
    const before = statSync(path).size;

    const said = await ctl.text('journal', 'vacuum', ...flags);

    const after = statSync(path).size;
    expect(said).toBe(`${before} bytes before, ${after} now\n`);
    expect(after).toBeLessThan(before / 10);
    expect(await ctl.text('journal', 'verify', ...flags)).toBe('sound\n');
  });

  test.each([
    ['garbage', (path: string) => writeFileSync(path, Buffer.alloc(8192, 'garbage')), /journal\.db.*not a database/],
    [
      'of another version',
      (path: string) => change(path, 'PRAGMA user_version = 99'),
      /journal\.db was written by another version/,
    ],
  ])('one that is %s is refused by name, and left alone', async (_, spoil, message) => {
    const { flags, path } = left('');
    spoil(path);
    const before = readFileSync(path);

    for (const verb of ['export', 'verify', 'vacuum']) {
      const { code, stderr } = await ctl.run(['journal', verb, ...flags]);
      expect(code, verb).toBe(125);
      expect(stderr.toString(), verb).toMatch(message);
    }

    expect(readFileSync(path)).toEqual(before);
  });

  test('a directory without one is named', async () => {
    const { code, stderr } = await ctl.run(['journal', 'export', '--state-dir', '/nonexistent']);

    expect(code).toBe(125);
    expect(stderr.toString()).toBe('elidectl: there is no journal at /nonexistent/daemon/journal.db (--state-dir)\n');
  });
});
