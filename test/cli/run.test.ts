import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, open, readFile, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { connectDaemon } from '../../src/client/index.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { eventually } from '../support/eventually.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';
import { CTL, Elidectl, type Ended, RunningCtl } from './elidectl.ts';

let daemon: DaemonProcess;
let ctl: Elidectl;

beforeAll(async () => {
  daemon = await DaemonProcess.start();
  ctl = new Elidectl(daemon.socket);
});
afterAll(() => daemon?.stop());

const js = (code: string, ...flags: string[]) => ['run', '-l', 'javascript', '-e', code, ...flags];
const python = (code: string, ...flags: string[]) => ['run', '-l', 'python', '-e', code, ...flags];

/** Bytes of every value, and no UTF-8. */
const BINARY = Buffer.from(Uint8Array.from({ length: 5 * 2 ** 20 }, (_, at) => (at * 7 + (at >> 8) * 13) & 255));
/** A program that writes the same bytes to both streams. */
const WRITE_BINARY = `
  const fs = process.getBuiltinModule('node:fs');
  const data = fs.readFileSync(process.argv[2]);
  for (let at = 0; at < data.length; at += 65536) {
    const piece = data.subarray(at, at + 65536);
    fs.writeSync(1, piece);
    fs.writeSync(2, piece);
  }`;

describe('the exit code', () => {
  test.each([
    ['javascript', 'process.exit(7)', 7],
    ['typescript', 'const code: number = 0; process.exitCode = code;', 0],
    ['python', 'raise SystemExit(9)', 9],
    ['python', 'import os; os.kill(os.getpid(), 9)', 137],
    ['javascript', 'throw new Error("no")', 1],
  ])('is that of the program (%s: %s)', async (language, code, expected) => {
    const ended = await ctl.run(['run', '-l', language, '-e', code]);

    expect(ended.code).toBe(expected);
  });

  test('is 124 when the run limit passed, and stderr says why', async () => {
    const ended = await ctl.run(js('setInterval(() => {}, 1000)', '--timeout', '200ms'));

    expect(ended.code).toBe(124);
    expect(ended.stderr.toString()).toMatch(/^elidectl: execution "\w+" ended: timed_out, graceful, /);
  });

  test('is 137 when the program used too much memory', async () => {
    await ctl.text('session', 'create', 'small', '--memory', '32MiB');

    const ended = await ctl.run(
      js('const all = []; for (;;) all.push(new Array(1e4).fill(all.length))', '-s', 'small'),
    );

    expect(ended.stderr.toString()).toContain('memory_exceeded');
    expect(ended.code).toBe(137);
  });

  test.each([
    ['an unknown language', ['run', '-l', 'cobol', '-e', 'x'], 'unknown language "cobol"'],
    ['a file that is not there', ['run', 'gone.py'], 'cannot read gone.py: there is no such file'],
    ['an ending that says no language', ['run', '/etc/hostname'], 'name it with --language'],
    ['no program', ['run'], 'nothing to run'],
    ['a bad duration', js('1', '--timeout', '5'), "argument '5' is invalid"],
    ['a duration beyond all numbers', js('1', '--timeout', `${'9'.repeat(400)}s`), 'A duration is for example'],
    ['an address that is none', js('1', '--tcp', ''), 'elidectl: tcp "" is not HOST:PORT\n'],
    ['a socket without a path', js('1', '--socket', ''), 'elidectl: --socket names no path\n'],
    [
      'a variable that cannot be passed on',
      js('1', '--env', '__proto__=x'),
      'No variable of that name can be passed on',
    ],
    ['an unknown flag', js('1', '--timeot', '5s'), '(Did you mean --timeout?)'],
    ['a directory that is not there', js('1', '--cwd', '/gone'), 'config.working_directory "/gone": ENOENT'],
    ['a daemon that is not there', js('1', '--socket', '/gone.sock'), 'no daemon answers on unix:/gone.sock'],
  ])('is 125 for %s, and stderr says what is wrong', async (_, args, message) => {
    const ended = await ctl.run(args);

    expect(ended.stderr.toString()).toMatch(/^elidectl: /);
    expect(ended.stderr.toString()).toContain(message);
    expect(ended.stdout.toString()).toBe('');
    expect(ended.code).toBe(125);
  });
});

/** A way to the daemon whose first connection breaks once `count` requests with `text` have passed and `happened`, before it answers the last. */
async function breakingWay(text: string, count: number, happened: () => Promise<void>): Promise<string> {
  const path = join(await mkdtemp(join(daemon.directory, 'way-')), 'd.sock');
  let isBroken = false;
  const way = createServer((client) => {
    const onwards = connect(daemon.socket);
    const close = () => [client, onwards].map((socket) => socket.destroy());
    for (const socket of [client, onwards]) socket.on('error', close).on('close', close);
    onwards.on('data', (data) => client.write(data));
    let said = '';
    client.on('data', (data) => {
      said += data.toString('latin1');
      if (!isBroken && said.split(text).length > count) {
        isBroken = true;
        onwards.removeAllListeners('data').resume();
        void happened().then(close, close);
      }
      onwards.write(data);
    });
  }).listen(path);
  onTestFinished(() => void way.close());
  await once(way, 'listening');
  return path;
}

describe('a connection that breaks while the daemon takes', () => {
  const code = (file: string) =>
    `process.getBuiltinModule('fs').appendFileSync('${file}', 'x'); console.log('ran'); process.exit(7)`;

  test('the program: it runs once, and its output and exit code are there', async () => {
    const file = join(await mkdtemp(join(daemon.directory, 'ran-')), 'file');
    await ctl.text('session', 'create', 'breaks');
    const way = await breakingWay('breaks', 1, () => eventually('it ran', () => existsSync(file)));

    const ended = await new Elidectl(way).run(js(code(file), '-s', 'breaks'));

    expect(ended.stderr.toString()).toBe('');
    expect(ended.stdout.toString()).toBe('ran\n');
    expect(ended.code).toBe(7);
    expect(await readFile(file, 'utf8')).toBe('x');
  });

  test('the session: the program runs in it', async () => {
    const file = join(await mkdtemp(join(daemon.directory, 'ran-')), 'file');
    using client = connectDaemon({ socket: daemon.socket });
    const isMade = () =>
      client.getSession('breaks-too').then(
        () => true,
        () => false,
      );
    const way = await breakingWay('breaks-too', 2, () => eventually('the session', isMade));

    const ended = await new Elidectl(way).run(js(code(file), '-s', 'breaks-too'));

    expect(ended.stderr.toString()).toBe('');
    expect(ended.stdout.toString()).toBe('ran\n');
    expect(ended.code).toBe(7);
  });
});

describe('what the exit code leaves open is said on stderr', () => {
  test('that output was cut', async () => {
    const ended = await ctl.run(python('import sys; print("x" * 99_999); sys.exit(7)', '--output', '10kB'));

    expect(ended.stderr.toString()).toMatch(/^elidectl: execution "\w+": 90000 bytes of output were dropped\n$/);
    expect(ended.stdout.byteLength).toBe(10_000);
    expect(ended.code).toBe(7);
  });

  test('that a limit was not held', async () => {
    const ended = await ctl.run(js('1', '--open-files', '16'));

    expect(ended.stderr.toString()).toMatch(
      /^elidectl: execution "\w+": config\.open_file_limit is not enforced on this node: [^\n]+\n$/,
    );
    expect(ended.code).toBe(0);
  });

  test.runIf(MAY_MOUNT)('that output found no room', async () => {
    const disk = smallDisk(32 * 1024);
    await using narrow = await DaemonProcess.start('--state-dir', disk.directory);
    const code = `import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print("ready", flush=True)
signal.sigwait([signal.SIGHUP])
print("x" * 1_000_000)`;
    const running = new Elidectl(narrow.socket).start(python(code));
    await running.wrote('ready');

    disk.fill();
    running.child.kill('SIGHUP');
    const ended = await running.ended;
    disk.free();

    expect(ended.stderr.toString()).toContain(': output could not be written: ENOSPC');
    expect(ended.code).toBe(0);
  });
});

describe('output and input', () => {
  test('5 MB on each stream arrive byte for byte', async () => {
    const file = join(daemon.directory, 'binary');
    await writeFile(file, BINARY);

    const ended = await ctl.run(js(WRITE_BINARY, '--', file));

    expect(ended.code).toBe(0);
    expect(ended.stdout.equals(BINARY)).toBe(true);
    expect(ended.stderr.equals(BINARY)).toBe(true);
  });

  test.each([
    ['javascript', js('process.stdin.pipe(process.stdout)')],
    ['python', python('import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)')],
  ])('5 MB of stdin go through a %s program byte for byte', async (_, args) => {
    const ended = await ctl.run(args, { input: BINARY });

    expect(ended.stderr.toString()).toBe('');
    expect(ended.code).toBe(0);
    expect(ended.stdout.equals(BINARY)).toBe(true);
  });

  test('a program that reads nothing ends, whatever is on stdin', async () => {
    const ended = await ctl.run(python('print("done")'), { input: BINARY });

    expect(ended.code).toBe(0);
    expect(ended.stdout.toString()).toBe('done\n');
  });

  test('stdin is at its end when there is none', async () => {
    const ended = await ctl.run(python('import sys; print(repr(sys.stdin.read()))'));

    expect(ended.stdout.toString()).toBe("''\n");
  });

  test('a stdin that cannot be read is said so, and at its end to the program', async () => {
    const file = await open(join(daemon.directory, 'unreadable'), 'w');
    onTestFinished(() => file.close());

    const ended = await ctl.run(python('import sys; print(repr(sys.stdin.read()))'), { stdin: file.fd });

    expect(ended.stderr.toString()).toMatch(/^elidectl: cannot read stdin: EBADF[^\n]*\n$/);
    expect(ended.stdout.toString()).toBe("''\n");
    expect(ended.code).toBe(0);
  });

  test('the program itself can come from stdin', async () => {
    const ended = await ctl.run(['run', '-l', 'py', '-', 'one'], { input: 'import sys\nprint(sys.argv[1:])\n' });

    expect(ended.stdout.toString()).toBe("['one']\n");
  });

  test('a reader that leaves ends it without a word, and the execution with it', async () => {
    const forever = js('let at = 0; setInterval(() => console.log(at++), 5)', '--session', 'broken-pipe');
    const env = { ...process.env, ELIDE_DAEMON_SOCKET: daemon.socket };
    const quoted = [process.execPath, CTL, ...forever].map((word) => `'${word}'`).join(' ');
    const shell = spawn('bash', ['-c', `${quoted} < /dev/null | head -1; echo "\${PIPESTATUS[0]}"`], { env });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    shell.stdout.on('data', (data) => stdout.push(data));
    shell.stderr.on('data', (data) => stderr.push(data));

    await once(shell, 'close');

    expect(Buffer.concat(stdout).toString()).toBe('0\n141\n');
    expect(Buffer.concat(stderr).toString()).toBe('');
    using client = connectDaemon({ socket: daemon.socket });
    for await (const { sessionId, executionId } of client.listExecutions('broken-pipe')) {
      const { result } = await client.wait(sessionId, executionId);
      expect(result).toMatchObject({ reason: 'cancelled', rung: 'graceful' });
    }
  });
});

/** Sends a signal until the command ends, slowly enough for each to be heard: one that finds it leaving ends it by itself. */
function insist(running: RunningCtl, signal: NodeJS.Signals): Promise<Ended> {
  const again = setInterval(() => running.child.kill(signal), 300);
  return running.ended.finally(() => clearInterval(again));
}

/** After this, counted from when a signal was heard, the next one is of another act, in s. */
const NEXT_ACT_S = 0.3;

describe('signals', () => {
  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('%s is passed on to the program', async (signal) => {
    const code = `process.on('${signal}', () => { console.log('bye'); process.exit(3); });
      setInterval(() => {}, 1000); console.log('ready')`;
    const running = ctl.start(js(code));
    await running.wrote('ready');

    running.child.kill(signal);
    const ended = await running.ended;

    expect(ended.stdout.toString()).toBe('ready\nbye\n');
    expect(ended.stderr.toString()).toBe('');
    expect(ended.code).toBe(3);
  });

  test('a program without a handler ends by the signal', async () => {
    const running = ctl.start(python('import time; print("ready", flush=True); time.sleep(100)'));
    await running.wrote('ready');

    running.child.kill('SIGTERM');

    expect((await running.ended).code).toBe(143);
  });

  test('a SIGINT that comes twice by one act is one', async () => {
    const code = `process.on('SIGTERM', () => process.exit(4));
      process.on('SIGINT', () => { console.log('asked'); setTimeout(() => process.exit(3), 500); });
      setInterval(() => {}, 1000); console.log('ready')`;
    const running = ctl.start(js(code));
    await running.wrote('ready');

    // Of those that come before it has heard the first it hears one.
    for (const beganMs = performance.now(); performance.now() - beganMs < 50; ) running.child.kill('SIGINT');
    const ended = await running.ended;

    expect(ended.stdout.toString()).toBe('ready\nasked\n');
    expect(ended.code).toBe(3);
  });

  test('a second SIGINT soon after the first stops the program', async () => {
    const code = `import os, signal, time
def say(*_): time.sleep(${NEXT_ACT_S}); os.write(1, b"no")
signal.signal(signal.SIGINT, say)
print("ready", flush=True)
while True: time.sleep(1)`;
    // As soon as that.
    const running = ctl.start(python(code, '--grace', '1m'));
    await running.wrote('ready');

    running.child.kill('SIGINT');
    await running.wrote('no');
    running.child.kill('SIGINT');

    expect((await running.ended).code).toBe(143);
  });

  test('a third SIGINT forces', async () => {
    const code = `import os, signal, time
def say(what): time.sleep(${NEXT_ACT_S}); os.write(1, what)
signal.signal(signal.SIGINT, lambda *_: say(b"no"))
signal.signal(signal.SIGTERM, lambda *_: say(b"never"))
print("ready", flush=True)
while True: pass`;
    const running = ctl.start(python(code, '--grace', '1m'));
    await running.wrote('ready');

    running.child.kill('SIGINT');
    await running.wrote('no');
    running.child.kill('SIGINT');
    await running.wrote('never');
    running.child.kill('SIGINT');

    expect((await running.ended).code).toBe(137);
  });

  test('one that comes while the daemon is away is passed on when it is back', async () => {
    await using before = await DaemonProcess.start();
    using client = connectDaemon({ socket: before.socket });
    await client.health();
    const code = `process.on('SIGTERM', () => { console.log('bye'); process.exit(3); });
      setInterval(() => {}, 1000); console.log('ready')`;
    const running = new Elidectl(before.socket).start(js(code));
    await running.wrote('ready');
    before.child.kill('SIGKILL');
    await once(before.child, 'exit');

    running.child.kill('SIGTERM');
    // For longer than a single call waits for a daemon.
    await expect(client.health()).rejects.toThrow('no daemon answers');
    const places = ['--socket', before.socket, '--state-dir', join(before.directory, 'state')];
    await using _after = await DaemonProcess.start(...places);
    const ended = await running.ended;

    expect(ended.stderr.toString()).toBe('');
    expect(ended.stdout.toString()).toBe('ready\nbye\n');
    expect(ended.code).toBe(3);
  }, 120_000);

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends the command where a daemon accepts nothing and refuses nothing', async (signal, code) => {
    const socket = join(await mkdtemp(join(daemon.directory, 'silent-')), 'd.sock');
    const silent = createServer().listen(socket);
    const connected = once(silent, 'connection');
    const running = new Elidectl(socket).start(js('1'));
    onTestFinished(() => void running.child.kill('SIGKILL'));
    const [connection] = await connected;

    const ended = await insist(running, signal);
    connection.destroy();
    silent.close();

    expect(ended.stderr.toString()).toMatch(
      new RegExp(`^elidectl: no daemon answers: ${signal} is not passed on, and execution "\\w+" may go on\n$`),
    );
    expect([code, signal]).toContain(ended.code ?? ended.signal);
  });

  test('a third SIGINT ends the command where the daemon does not answer any more', async () => {
    await using stopped = await DaemonProcess.start();
    const running = new Elidectl(stopped.socket).start(js('setInterval(() => {}, 1000); console.log("ready")'));
    onTestFinished(() => void running.child.kill('SIGKILL'));
    await running.wrote('ready');
    stopped.child.kill('SIGSTOP');

    const ended = await insist(running, 'SIGINT').finally(() => stopped.child.kill('SIGCONT'));

    expect(ended.stderr.toString()).toContain('no daemon answers: SIGINT is not passed on');
    expect([130, 'SIGINT']).toContain(ended.code ?? ended.signal);
  });
});

describe('the program', () => {
  test('is refused in one line where stdin, which it should come from, cannot be read', async () => {
    const file = await open(join(daemon.directory, 'unreadable-program'), 'w');
    onTestFinished(() => file.close());

    const ended = await ctl.run(['run', '-l', 'js', '-'], { stdin: file.fd });

    expect(ended.stderr.toString()).toMatch(/^elidectl: cannot read stdin: EBADF[^\n]*\n$/);
    expect(ended.code).toBe(125);
  });

  test('is refused in one line in a directory that is gone, unless another is named', async () => {
    const gone = join(await mkdtemp(join(daemon.directory, 'user-')), 'gone');
    const inside = ['-c', 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', gone, process.execPath, CTL];
    const env = { ...process.env, ELIDE_DAEMON_SOCKET: daemon.socket };
    const run = (...flags: string[]) => new RunningCtl(spawn('sh', [...inside, ...js('1', ...flags)], { env })).ended;

    const refused = await run();
    const elsewhere = await run('--cwd', daemon.directory);

    expect(refused.stderr.toString()).toMatch(/^elidectl: the current directory cannot be used: [^\n]+\n$/);
    expect(refused.code).toBe(125);
    expect(elsewhere.stderr.toString()).toBe('');
    expect(elsewhere.code).toBe(0);
  });

  test.each(['a file', 'stdin'])('is refused where %s is not UTF-8', async (source) => {
    const code = Buffer.from('# coding: latin-1\nprint(len("\xe9"))\n', 'latin1');
    const file = join(await mkdtemp(join(daemon.directory, 'user-')), 'main.py');
    await writeFile(file, code);

    const ended = await ctl.run(['run', '-l', 'python', source === 'stdin' ? '-' : file], { input: code });

    expect(ended.code).toBe(125);
    expect(ended.stderr.toString()).toBe(`elidectl: ${source === 'stdin' ? 'what stdin holds' : file} is not UTF-8\n`);
  });

  test('a file runs under its own name, in this directory, and finds what lies beside it', async () => {
    const directory = await mkdtemp(join(daemon.directory, 'user-'));
    await writeFile(join(directory, 'other.mjs'), 'export const word = "beside";');
    await writeFile(
      join(directory, 'main.mts'),
      `import { word } from './other.mjs';
enum Kind { A = 'a' }
console.log(word, Kind.A, process.cwd(), process.argv.slice(1).join(' '));
throw new Error('here');`,
    );

    const ended = await ctl.run(['run', 'main.mts', 'one', '--', '--two'], { cwd: directory });

    expect(ended.stdout.toString()).toBe(`beside a ${directory} ${directory}/main.mts one --two\n`);
    expect(ended.stderr.toString()).toContain(`${directory}/main.mts:4`);
    expect(ended.code).toBe(1);
  });

  test('over TCP it runs under its base name in a fresh directory', async () => {
    const file = join(daemon.directory, 'where.py');
    await writeFile(file, 'import os; print(os.path.basename(__file__), os.listdir("."))');

    const ended = await ctl.run(['run', '--tcp', daemon.tcp, file]);

    expect(ended.stderr.toString()).toBe('');
    expect(ended.stdout.toString()).toBe("where.py ['where.py']\n");
  });

  test('its environment is what --env says and nothing else', async () => {
    const args = python('import os; print(dict(os.environ))', '--env', 'A=1=2', '--env', 'HERE', '--env', 'ABSENT');

    const ended = await ctl.run(args, { env: { HERE: 'yes' } });

    expect(ended.stdout.toString()).toBe("{'A': '1=2', 'HERE': 'yes'}\n");
  });

  test('it runs in a session of another configuration as in any', async () => {
    await ctl.text('session', 'create', 'only-python', '-l', 'python', '--pool-size', '1');

    const allowed = await ctl.run(python('print(1)', '-s', 'only-python'));
    const refused = await ctl.run(js('1', '-s', 'only-python'));

    expect(allowed.code).toBe(0);
    expect(refused.code).toBe(125);
    expect(refused.stderr.toString()).toContain('language "javascript" is not enabled in session "only-python"');
  });
});
