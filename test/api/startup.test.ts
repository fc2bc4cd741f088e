import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join, relative } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { checkConfig, type DaemonConfig, readConfigFile } from '../../src/config.ts';
import { createDaemon } from '../../src/create-daemon.ts';
import { TestClient } from '../support/client.ts';
import { eventually, TestDaemon, temporaryDirectory } from '../support/daemon.ts';
import { processesWith } from '../support/processes.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';

const DIST = join(import.meta.dirname, '../../dist/src');

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may mount it: a /proc without sys');

/** Starts a daemon that must refuse; resolves with its message. */
async function refusal(config: Parameters<typeof createDaemon>[0]): Promise<string> {
  try {
    const daemon = createDaemon({ logLevel: 'silent', ...config });
    await daemon.start();
    await daemon.stop();
  } catch (error) {
    expect(error).toMatchObject({ code: 'startup' });
    return (error as Error).message;
  }
  throw new Error('the daemon started');
}

const places = () => {
  const root = temporaryDirectory();
  return { root, stateDir: join(root, 's'), socket: join(root, 'd.sock') };
};

test('a socket path of more than 107 bytes is refused with its length', async () => {
  const { root, stateDir } = places();
  const socket = join(root, 'é'.repeat(60));

  expect(await refusal({ stateDir, socket })).toMatch(/has \d+ bytes; at most 107/);
  expect(existsSync(socket)).toBe(false);
});

test('a socket in a directory that is not there is refused with the directory', async () => {
  const { root, stateDir } = places();

  expect(await refusal({ stateDir, socket: join(root, 'none', 'd.sock') })).toBe(
    `socket ${root}/none/d.sock: there is no directory ${root}/none`,
  );
});

test('a socket path of exactly 107 bytes works', async () => {
  const { root, stateDir } = places();
  const socket = join(root, 'x'.repeat(107 - root.length - 1));
  await using node = await TestDaemon.start({ stateDir, socket });
  await using client = new TestClient(`unix:${node.endpoints.socket}`);

  expect(Buffer.byteLength(socket)).toBe(107);
  expect(await client.call('health', {})).toMatchObject({ healthy: true });
});

test('a state directory too long for the sockets below it is refused', async () => {
  const { root, socket } = places();

  expect(await refusal({ stateDir: join(root, 'x'.repeat(90)), socket })).toMatch(/state directory .* is too long/);
});

test('a socket that another daemon answers on is not replaced', async () => {
  await using node = await TestDaemon.start();
  const { stateDir } = places();

  expect(await refusal({ stateDir, socket: node.endpoints.socket as string })).toMatch(/another daemon answers on/);

  await using client = new TestClient(`unix:${node.endpoints.socket}`);
  expect(await client.call('health', {})).toMatchObject({ healthy: true });
});

test('a stale socket is replaced', async () => {
  const { stateDir, socket } = places();
  const script = `require('node:net').createServer().listen(${JSON.stringify(socket)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script]);
  expect(lstatSync(socket).isSocket()).toBe(true);

  await using node = await TestDaemon.start({ stateDir, socket });
  await using client = new TestClient(`unix:${node.endpoints.socket}`);
  expect(await client.call('health', {})).toMatchObject({ healthy: true });
});

test.each([
  ['a regular file', (path: string) => writeFileSync(path, 'precious')],
  ['a directory', (path: string) => mkdirSync(path)],
  ['a link to a file', (path: string) => symlinkSync('/etc/passwd', path)],
])('%s at the socket path is not replaced', async (_, make) => {
  const { stateDir, socket } = places();
  make(socket);
  const before = lstatSync(socket).ino;

  expect(await refusal({ stateDir, socket })).toContain(`${socket} is there and is no socket`);

  expect(lstatSync(socket).ino).toBe(before);
});

test('a daemon that could not start has let its state directory go', async () => {
  const { stateDir, socket } = places();
  writeFileSync(socket, '');
  await refusal({ stateDir, socket });

  await using node = await TestDaemon.start({ stateDir });
  expect(node.daemon.healthy).toBe(true);
});

test('a state directory below a file is refused', async () => {
  const { root, socket } = places();
  writeFileSync(join(root, 'file'), '');

  expect(await refusal({ stateDir: join(root, 'file', 's'), socket })).toMatch(/state directory .*file\/s.*ENOTDIR/);
  expect(await refusal({ stateDir: join(root, 'file'), socket })).toMatch(/state directory .*file/);
});

test('a state directory of a running daemon is refused, and that daemon goes on', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready')");

  const message = await refusal({ stateDir: node.daemon.config.stateDir, socket: places().socket });

  expect(message).toMatch(/is in use by another daemon/);
  expect((await running.snapshot()).state).toBe('running');
  expect((await session.run('0')).result.reason).toBe('completed');
});

test('a daemon that was refused for a directory in use starts with every language once that is free', async () => {
  const { root, stateDir, socket } = places();
  const first = await TestDaemon.start({ stateDir, socket });
  await using daemon = createDaemon({ logLevel: 'silent', stateDir, socket: join(root, 'second.sock') });
  await expect(daemon.start()).rejects.toThrow('is in use by another daemon');
  await first[Symbol.asyncDispose]();

  await daemon.start();

  expect(daemon.languages()).toContainEqual(expect.objectContaining({ name: 'python', available: true, message: '' }));
});

test('a state directory that holds something else is left as it is', async () => {
  const { root, socket } = places();
  writeFileSync(join(root, 'thesis.txt'), 'precious');

  expect(await refusal({ stateDir: root, socket })).toMatch(/holds something else \(thesis\.txt\)/);

  expect(readdirSync(root)).toEqual(['thesis.txt']);
});

test.each([['daemon/'], ['daemon/cells/', 'daemon/output/', 'work/']])(
  'a state directory that has no more of a daemon than it makes before its lock (%s) can be used',
  async (...begun) => {
    const { root, stateDir, socket } = places();
    for (const path of begun) mkdirSync(join(stateDir, path), { recursive: true, mode: 0o700 });

    await using daemon = await TestDaemon.start({ stateDir, socket });

    expect(daemon.daemon.languages()).not.toEqual([]);
    expect(await refusal({ stateDir, socket: join(root, 'other.sock') })).toContain('is in use by another daemon');
  },
);

test.each([
  ['daemon/thesis.txt', 'daemon/thesis.txt'],
  ['work/thesis/chapter', 'work/thesis'],
])('a directory of somebody else is left as it is, also where its names are those of ours: %s', async (path, told) => {
  const { stateDir, socket } = places();
  mkdirSync(dirname(join(stateDir, path)), { recursive: true });
  writeFileSync(join(stateDir, path), 'precious');
  const before = readdirSync(stateDir, { recursive: true });

  expect(await refusal({ stateDir, socket })).toContain(`holds something else (${told})`);

  expect(readdirSync(stateDir, { recursive: true })).toEqual(before);
});

test.skipIf(!MAY_MOUNT)(
  'a start that finds no room for its directories is refused, and the next one has room',
  async () => {
    const { directory: stateDir } = smallDisk(64 * 1024);
    const { socket } = places();

    for (const inodes of [2, 3, 4, 5]) {
      execFileSync('mount', ['-o', `remount,nr_inodes=${inodes}`, stateDir]);
      expect(await refusal({ stateDir, socket }), `${inodes} inodes`).toContain('cannot be used');
    }
    execFileSync('mount', ['-o', 'remount,nr_inodes=10000', stateDir]);

    await (await TestDaemon.start({ stateDir, socket }))[Symbol.asyncDispose]();
  },
);

test('a state directory that others can look into is refused', async () => {
  const { stateDir, socket } = places();
  await (await TestDaemon.start({ stateDir }))[Symbol.asyncDispose]();
  chmodSync(join(stateDir, 'daemon'), 0o755);

  expect(await refusal({ stateDir, socket })).toMatch(/open to others/);
});

test.skipIf(process.getuid?.() !== 0)('a state directory of another user is refused, and named with both', async () => {
  const { stateDir, socket } = places();
  await (await TestDaemon.start({ stateDir }))[Symbol.asyncDispose]();
  chownSync(join(stateDir, 'daemon'), 65_534, 65_534);

  expect(await refusal({ stateDir, socket })).toMatch(/daemon belongs to user 65534, this daemon runs as user 0$/);
});

test('an unknown key of the configuration is named, with the nearest there is', async () => {
  const { root } = places();
  const file = join(root, 'config.json');
  for (const [text, message] of [
    ['{ "graceMS": 5 }', /unknown key "graceMS" \(did you mean "graceMs"\?\)/],
    ['{ "sokcet": "/tmp/x" }', /unknown key "sokcet" \(did you mean "socket"\?\)/],
    ['{ "zzzzzzzzzzzz": 1 }', /unknown key "zzzzzzzzzzzz"$/],
    ['{ "graceMs": -1 }', /graceMs is -1/],
    ['{ "graceMs": "5s" }', /graceMs is "5s"/],
    ['{ "logLevel": "loud" }', /logLevel is "loud"/],
    ['{ "controlGroups": "elide.slice" }', /controlGroups is "elide.slice": .*"\/"/],
    ['{ "maxRunning": 0 }', /maxRunning is 0/],
    ['{ "maxCodeBytes": 67108865 }', /maxCodeBytes is 67108865/],
    ['{ "tls": { "certFile": 1 } }', /tls\.certFile is 1/],
    [
      '{ "tls": { "certFile": "/c", "keyFile": "/k", "clientCa": "/a" } }',
      /"tls\.clientCa" \(did you mean "tls\.clientCaFile"/,
    ],
    ['[]', /not a JSON object/],
    ['{', /JSON/],
  ] as const) {
    writeFileSync(file, text);
    await expect(readConfigFile(file)).rejects.toMatchObject({
      code: 'startup',
      message: expect.stringMatching(message),
    });
  }
  await expect(readConfigFile(join(root, 'none.json'))).rejects.toMatchObject({
    message: expect.stringContaining(join(root, 'none.json')),
  });
});

const BEYOND_LOOPBACK = ['0.0.0.0:80', '192.168.1.1:80', '[::]:80', 'example.com:80', '127.0.0.1.evil.com:80'];

test.each(BEYOND_LOOPBACK)('tcp on %s, beyond loopback, needs a token or client certificates', (tcp) => {
  const tls = { certFile: '/c', keyFile: '/k' };

  for (const config of [{ tcp }, { tcp, tls }]) {
    expect(() => checkConfig(config)).toThrow(
      `tcp "${tcp}" is not a loopback address: it needs tokenFile or tls.clientCaFile`,
    );
  }
  expect(checkConfig({ tcp, tokenFile: '/t' })).toMatchObject({ tcp });
  expect(checkConfig({ tcp, tls: { ...tls, clientCaFile: '/ca' } })).toMatchObject({ tcp });
});

test.each([{ tcp: '0.0.0.0:80' }, { tcp: '127.0.0.1:80', tls: { certFile: '/c' } }])(
  'a file that leaves the credentials to the flags is read: %o',
  async (config) => {
    const file = join(places().root, 'config.json');
    writeFileSync(file, JSON.stringify(config));

    expect(await readConfigFile(file)).toEqual(config);
  },
);

test('half of a key pair is refused', () => {
  const tls = { certFile: '/c' } as DaemonConfig['tls'];

  expect(() => checkConfig({ tls })).toThrow('tls.keyFile is missing');
});

test.each(['127.0.0.1', 'localhost:', ':80', '127.0.0.1:70000', '127.0.0.1:x', 'localhost:80:80'])(
  'tcp %s, which is no address, is refused',
  (tcp) => {
    expect(() => checkConfig({ tcp })).toThrow(`tcp "${tcp}" is not HOST:PORT`);
  },
);

test('a TCP port that is taken is refused, and leaves no socket behind', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const { stateDir, socket } = places();

  expect(await refusal({ stateDir, socket, tcp: `127.0.0.1:${port}` })).toContain(`127.0.0.1:${port}`);

  server.close();
  expect(existsSync(socket)).toBe(false);
});

test('a daemon that is stopped while it starts ends when it has started, and leaves nothing', async () => {
  const { stateDir, socket } = places();
  const daemon = createDaemon({ logLevel: 'silent', stateDir, socket });
  const starting = daemon.start();

  await daemon.stop();

  await expect(starting).resolves.toMatchObject({ socket });
  expect(existsSync(socket)).toBe(false);
  await using again = await TestDaemon.start({ stateDir, socket });
  expect(again.daemon.healthy).toBe(true);
});

test('a daemon that was stopped does not start', async () => {
  const { stateDir, socket } = places();
  const daemon = createDaemon({ logLevel: 'silent', stateDir, socket });
  await daemon.stop();

  await expect(daemon.start()).rejects.toThrow('the daemon was stopped');

  expect(existsSync(stateDir)).toBe(false);
});

describe('an interpreter', () => {
  const { root } = places();
  const venv = join(root, 'venv');
  beforeAll(() => {
    execFileSync('python3', ['-m', 'venv', '--without-pip', venv]);
  });

  test.each([
    ['is the first of its name on the PATH', 'python3'],
    ['may be named by a path from here', relative(process.cwd(), join(venv, 'bin', 'python3'))],
  ])('that is found is the one that runs: it %s', async (_, python) => {
    vi.stubEnv('PATH', `${join(venv, 'bin')}:${process.env.PATH}`);
    onTestFinished(() => void vi.unstubAllEnvs());
    await using node = await TestDaemon.start({ python });
    const session = await node.session();

    const { stdout } = await session.run({
      language: 'python',
      code: 'import sys\nprint(sys.prefix, "%d.%d.%d" % sys.version_info[:3])',
    });

    const version = node.daemon.languages().find(({ name }) => name === 'python')?.version;
    expect(stdout).toBe(`${venv} ${version}\n`);
  });
});

/** A launcher that leaves a process, which has its output, and ends so; and whether it has ended. */
function leaving(root: string, end: string): { python: string; hasEnded(): boolean } {
  const [python, sleep] = [join(root, 'python'), `sleep ${600 + Math.random()}`];
  writeFileSync(python, `#!/bin/sh\n${sleep} &\n${end}\n`, { mode: 0o755 });
  onTestFinished(() => {
    for (const pid of processesWith(sleep)) process.kill(pid, 'SIGKILL');
  });
  return { python, hasEnded: () => processesWith(sleep).length > 0 && processesWith(python).length === 0 };
}

test('an interpreter whose launcher leaves a process that has its output is there once it has said its version', async () => {
  const { python } = leaving(places().root, 'exec python3 "$@"');

  await using node = await TestDaemon.start({ python });

  const version = expect.stringMatching(/^\d+\.\d+\.\d+$/);
  expect(node.daemon.languages()).toContainEqual(expect.objectContaining({ name: 'python', version, available: true }));
});

describe('an interpreter that does not say its version', () => {
  /** One that never does, with a process of its own as a launcher has, and whether that is there. */
  const hanging = (root: string) => {
    const [python, sleep] = [join(root, 'python'), `sleep ${600 + Math.random()}`];
    writeFileSync(python, `#!/bin/sh\n${sleep}\n`, { mode: 0o755 });
    return { python, isThere: () => processesWith(sleep).length > 0 };
  };

  test('does not hold up the stop of a daemon that starts, and ends with it', async () => {
    const { root, stateDir, socket } = places();
    const { python, isThere } = hanging(root);
    const daemon = createDaemon({ logLevel: 'silent', stateDir, socket, python });
    const starting = daemon.start();
    await eventually('it is asked', isThere);

    await daemon.stop();

    await starting;
    const message = `${python}: did not say its version before the daemon was stopped (set python in the configuration)`;
    expect(daemon.languages()).toContainEqual(expect.objectContaining({ name: 'python', message }));
    await eventually('it is gone', () => !isThere());
  });

  test('does not hold up that stop either where it has ended, and what it has started has its output', async () => {
    const { root, stateDir, socket } = places();
    const { python, hasEnded } = leaving(root, 'exit 0');
    const daemon = createDaemon({ logLevel: 'silent', stateDir, socket, python });
    const starting = daemon.start();
    await eventually('it has ended', hasEnded);

    await daemon.stop();

    await starting;
    const message = `${python}: did not say its version before the daemon was stopped (set python in the configuration)`;
    expect(daemon.languages()).toContainEqual(expect.objectContaining({ name: 'python', message }));
  });

  test('does not hold up a start that is refused, and ends with it', async () => {
    await using node = await TestDaemon.start();
    const { root, socket } = places();
    const { python, isThere } = hanging(root);

    const refused = refusal({ stateDir: node.daemon.config.stateDir, socket, python });

    expect(await refused).toMatch(/is in use by another daemon/);
    await eventually('it is gone', () => !isThere());
  });
});

test.each([
  ['an unknown flag', ['--bogus'], "elide-daemon: unknown option '--bogus'\n"],
  ['a word that is none', ['start'], 'elide-daemon: too many arguments. Expected 0 arguments but got 1: start.\n'],
  [
    'a level that is none',
    ['--log-level', 'loud'],
    "elide-daemon: option '--log-level <level>' argument 'loud' is invalid.",
  ],
])('%s is refused in the name of the daemon', (_, flags, message) => {
  const { status, stderr } = spawnSync(process.execPath, [join(DIST, 'main.js'), ...flags], { encoding: 'utf8' });

  expect(status).toBe(1);
  expect(stderr.startsWith(message)).toBe(true);
});

test('an interpreter that says it is too old is not asked again', async () => {
  const { root } = places();
  const [python, asked] = [join(root, 'python'), join(root, 'asked')];
  writeFileSync(python, `#!/bin/sh\necho x >> ${asked}\necho 3.8.0 /none\n`, { mode: 0o755 });
  await using node = await TestDaemon.start({ python });
  const known = () => node.daemon.languages().find(({ name }) => name === 'python');
  const startedMs = performance.now();

  await eventually(
    'it would be looked for again',
    () => known() !== undefined && performance.now() - startedMs > 2_500,
  );

  expect(known()?.message).toBe(`${python} is 3.8.0; 3.9 is the oldest`);
  expect(readFileSync(asked, 'utf8')).toBe('x\n');
});

test('an interpreter that is not found as the daemon starts is found later, also for a session that is there', async () => {
  const { root } = places();
  const python = join(root, 'python');
  await using node = await TestDaemon.start({ python });
  const session = await node.session();
  const isAvailable = () => node.daemon.languages().find(({ name }) => name === 'python')?.available;
  const refused = await session.run({ language: 'python', code: '0' }).catch(({ message }: Error) => message);

  symlinkSync(execFileSync('python3', ['-c', 'import sys; print(sys.executable)']).toString().trim(), python);

  await eventually('it is found', () => isAvailable() === true);
  expect(refused).toContain(`language "python" is not available on this node: ${python}: not found`);
  expect(await session.run({ language: 'python', code: 'print("hello")' })).toMatchObject({ stdout: 'hello\n' });
});

test('an interpreter that cannot run guests says why, in its own words', async () => {
  const { root } = places();
  execFileSync('python3', ['-m', 'venv', '--without-pip', root]);
  const packages = execFileSync(join(root, 'bin', 'python3'), ['-c', 'import site; print(site.getsitepackages()[0])']);
  // As where Python was built without libffi.
  writeFileSync(join(packages.toString().trim(), 'x.pth'), "import sys; sys.modules['_ctypes'] = None\n");
  await using node = await TestDaemon.start({ python: join(root, 'bin', 'python3') });
  const session = await node.session();

  const { result } = await session.run({ language: 'python', code: '0' });

  expect(result).toMatchObject({
    reason: 'start_failed',
    message: expect.stringMatching(/ended with exit code 1 at start: ModuleNotFoundError: .*_ctypes/),
  });
});

test.skipIf(process.getuid?.() !== 0)('a user without a home directory is told to name a state directory', () => {
  const nobodys = { uid: 54_321, gid: 54_321, env: {}, encoding: 'utf8' } as const;
  const run = (...args: string[]) => spawnSync(process.execPath, args, nobodys);
  const [daemon, ctl] = [join(DIST, 'main.js'), join(DIST, 'cli', 'main.js')];

  const version = run(ctl, '--version');
  const refused = [run(daemon), run(ctl, 'journal', 'verify')];

  expect(version).toMatchObject({ status: 0, stderr: '' });
  const why = 'this user has no home directory: name a state directory (--state-dir)\n';
  expect(refused.map(({ stderr }) => stderr)).toEqual([`elide-daemon: ${why}`, `elidectl: ${why}`]);
});

test('a state directory may be named by a path from here', async () => {
  const { root } = places();
  await using node = await TestDaemon.start({ stateDir: relative(process.cwd(), join(root, 's')) });
  const session = await node.session();

  expect(await session.run({ code: 'console.log("here")' })).toMatchObject({ stdout: 'here\n' });
});

test('the state directory of a stopped daemon can be used again', async () => {
  const { stateDir } = places();
  await (await TestDaemon.start({ stateDir }))[Symbol.asyncDispose]();

  await using again = await TestDaemon.start({ stateDir });
  const session = await again.session();
  expect((await session.run('console.log(1)')).stdout).toBe('1\n');
});

test('so can that of a daemon which could not write its journal to the end', async () => {
  const { stateDir, socket } = places();
  const daemon = createDaemon({ logLevel: 'silent', stateDir, socket });
  await daemon.start();
  // Another writer holds the file.
  const other = new DatabaseSync(join(stateDir, 'daemon', 'journal.db'));
  other.exec('BEGIN IMMEDIATE');
  void daemon.createSession('s');

  await expect(daemon.stop()).rejects.toThrow('1 entries of the journal were not written');

  other.close();
  await using again = await TestDaemon.start({ stateDir });
  expect(again.daemon.healthy).toBe(true);
});

/** A Node of this machine that is too old, or, where there is none, this one with the word of such a one. */
function olderNode(): string[] {
  const programs = (process.env.PATH ?? '').split(':').map((directory) => join(directory, 'node'));
  const major = (node: string) => Number.parseInt(execFileSync(node, ['-p', 'process.versions.node']).toString(), 10);
  const older = programs.filter((path) => existsSync(path)).find((node) => major(node) < 24);
  const pretence = 'Object.defineProperty(process.versions, "node", { value: "20.0.0" })';
  return older === undefined ? [process.execPath, '--import', `data:text/javascript,${pretence}`] : [older];
}

test.each(['main.js', 'cli/main.js'])('%s says in one line that a Node is too old', (program) => {
  const [node = '', ...flags] = olderNode();

  const { status, stderr } = spawnSync(node, [...flags, join(DIST, program), '--version'], { encoding: 'utf8' });

  expect(stderr).toMatch(/^elide-daemon needs Node 24 or later; \S+ is v[\d.]+\n$/);
  expect(status).toBe(1);
});

test.skipIf(!isRoot)(
  'where nothing names the start of the machine a daemon is refused with the file, and makes nothing',
  () => {
    const { socket, stateDir } = places();
    // As systemd's ProcSubset=pid has it.
    const daemon = 'mount -t proc -o subset=pid proc /proc && exec "$@"';
    const args = [process.execPath, join(DIST, 'main.js'), '--socket', socket, '--state-dir', stateDir];

    const { status, stderr } = spawnSync('unshare', ['--mount', 'sh', '-c', daemon, 'sh', ...args], {
      encoding: 'utf8',
      timeout: 20_000,
    });

    expect(stderr).toMatch(/^elide-daemon: \/proc\/sys\/kernel\/random\/boot_id cannot be read: /m);
    expect(status).toBe(1);
    expect(existsSync(stateDir)).toBe(false);
  },
);
