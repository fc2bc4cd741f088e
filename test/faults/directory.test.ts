import { execFileSync, spawnSync } from 'node:child_process';
import {
  chownSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { createDaemon } from '../../src/create-daemon.ts';
import { PROTOCOL_VERSION } from '../../src/wire/framing.ts';
import { descendants, eventually, isAlive, temporaryDirectory } from '../support/daemon.ts';
import { endsWritten, FaultNode } from './node.ts';

const PACKAGE = fileURLToPath(new URL('../..', import.meta.url));
const MAIN = join(PACKAGE, 'dist', 'src', 'main.js');
const NOBODY = 65_534;
const LIMIT_MS = 50_000;
const IDLE = "setInterval(() => {}, 1000); console.log('ready');";

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.info('left out, as only root may: a daemon of another user');

/** Starts a daemon that must refuse, with a socket of its own; what it says. */
function refusal(
  node: FaultNode,
  stateDir: string,
  { uid, main = MAIN, flags = [] }: { uid?: number; main?: string; flags?: string[] } = {},
): string {
  const own = ['--socket', join(node.root, 'other.sock'), '--state-dir', stateDir, '--log-level', 'error'];
  const args = [main, ...own, ...flags];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: LIMIT_MS, uid });
  expect(status).toBe(1);
  return stderr.trim();
}

test('a second daemon on a state directory is refused, also while the first one stands still, which goes on', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });
  const cells = node.cellPids();
  const inUse = `elide-daemon: state directory ${node.stateDir} is in use by another daemon`;

  expect(refusal(node, node.stateDir)).toBe(inUse);
  process.kill(node.pid, 'SIGSTOP');
  const second = refusal(node, node.stateDir);
  process.kill(node.pid, 'SIGCONT');

  expect(second).toBe(inUse);
  expect(node.cellPids()).toEqual(cells);
  expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
  // The kernel has let the lock go with the first.
  await node.restart();
  expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
});

test.each(['ENOLCK', 'ENOSYS'] as const)(
  'a state directory on a file system without locks (%s) is refused as that, and nothing in it is touched',
  async (locks) => {
    await using node = await FaultNode.start();
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: IDLE });
    const cells = node.cellPids();
    await node.end();
    const before = readdirSync(join(node.stateDir, 'daemon'));

    const refused = await node.start(undefined, { locks }).catch((error: Error) => error.message);

    expect(refused).toMatch(
      /^elide-daemon: state directory \S+ cannot be used: no file in it can be locked \(.+\); name/m,
    );
    expect(readdirSync(join(node.stateDir, 'daemon'))).toEqual(before);
    expect(node.cellPids()).toEqual(cells);
    await node.start();
    expect((await node.client.getExecutionStatus('s', 'e')).state).toBe('running');
  },
);

/** One of each engine; what says so starts them, and each ends with code 7 once its input ends. */
const KINDS = {
  thread: { language: 'javascript', isolation: 'thread' },
  process: { language: 'javascript', isolation: 'process' },
  python: { language: 'python' },
} as const;
const UNTIL_INPUT_ENDS = {
  javascript: "process.stdin.on('end', () => process.exit(7)).resume(); console.log('ready');",
  python: "import sys\nprint('ready', flush=True)\nsys.stdin.read()\nsys.exit(7)",
};

async function startKinds(node: FaultNode): Promise<void> {
  await node.client.createSession('s');
  for (const [executionId, kind] of Object.entries(KINDS)) {
    await node.ready({ executionId, ...kind, code: UNTIL_INPUT_ENDS[kind.language], stdin: true });
  }
}

/** They have run on, and end when they are told to. */
async function expectKindsRunning(node: FaultNode): Promise<void> {
  for (const executionId of Object.keys(KINDS)) {
    expect((await node.client.getExecutionStatus('s', executionId)).state, executionId).toBe('running');
    await node.client.writeInput('s', executionId, Buffer.alloc(0), true);
    const { result } = await node.client.wait('s', executionId);
    expect(result, executionId).toMatchObject({ reason: 'failed', exitCode: 7 });
  }
}

test('a daemon on a copy of a directory whose cells run is refused by name of that, and they run on; then it is its own', async () => {
  await using node = await FaultNode.start();
  await startKinds(node);
  const cells = node.cellPids();
  const { stateDir } = node;
  const copy = join(node.root, 'copy');
  execFileSync('cp', ['-a', stateDir, copy]);

  const refused = refusal(node, copy);

  expect(refused).toMatch(
    new RegExp(`^elide-daemon: state directory ${copy} is a copy of ${stateDir}, whose cells run \\(process \\d+\\);`),
  );
  expect(refusal(node, copy)).toBe(refused);
  expect(node.cellPids()).toEqual(cells);
  await expectKindsRunning(node);
  await node.end('SIGTERM');

  node.stateDir = copy;
  await node.start();
  for (const executionId of Object.keys(KINDS)) {
    expect((await node.client.wait('s', executionId)).result?.reason, executionId).toBe('daemon_lost');
  }
  // And so are the cells that it has from here on.
  await node.ready({ executionId: 'own', code: IDLE });
  await node.restart();
  expect((await node.client.getExecutionStatus('s', 'own')).state).toBe('running');
});

test.each([
  ['in its place', 's'],
  ['beside it', 'moved'],
])(
  'a directory that is restored from a copy %s, the original gone, ends what nobody can reach any more',
  async (_, name) => {
    await using node = await FaultNode.start();
    await startKinds(node);
    const left = node.cellPids().flatMap((cell) => [cell, ...descendants(cell)]);
    await node.end();
    const { stateDir } = node;
    const copy = join(node.root, 'copy');
    execFileSync('cp', ['-a', stateDir, copy]);
    rmSync(stateDir, { recursive: true });
    node.stateDir = join(node.root, name);
    renameSync(copy, node.stateDir);

    await node.start();

    for (const executionId of Object.keys(KINDS)) {
      expect((await node.client.wait('s', executionId)).result?.reason, executionId).toBe('daemon_lost');
    }
    expect(left.filter(isAlive)).toEqual([]);
    await node.ready({ executionId: 'own', code: IDLE });
  },
);

test('guests of a daemon that was started by a link to its directory are taken over by one started without', async () => {
  await using node = await FaultNode.start();
  const { stateDir } = node;
  await node.end('SIGTERM');
  node.stateDir = join(node.root, 'l');
  symlinkSync(stateDir, node.stateDir);
  await node.start({ onStop: 'detach' });
  await startKinds(node);
  const cells = node.cellPids();
  await node.end('SIGTERM');

  node.stateDir = stateDir;
  await node.start();

  const { cells: adopted } = await node.client.getSession('s');
  expect(adopted.map(({ pid }) => pid).toSorted()).toEqual(cells.toSorted());
  await expectKindsRunning(node);
});

test('guests of a directory that is moved while there is no daemon are taken over where it is then', async () => {
  await using node = await FaultNode.start();
  await startKinds(node);
  const cells = node.cellPids();
  await node.end();
  const { stateDir } = node;
  node.stateDir = join(node.root, 'moved');
  renameSync(stateDir, node.stateDir);

  await node.start();

  const { cells: adopted } = await node.client.getSession('s');
  expect(adopted.map(({ pid }) => pid).toSorted()).toEqual(cells.toSorted());
  // What older cells run they find there no more.
  await node.ready({ executionId: 'later', code: IDLE });
  await expectKindsRunning(node);
});

/** The source of this program, of the next version of the protocol between daemon and cell; its main file. */
function nextVersion(node: FaultNode): string {
  const root = join(node.root, 'next');
  for (const name of ['src', 'machines', 'workers', 'package.json']) {
    cpSync(join(PACKAGE, name), join(root, name), { recursive: true });
  }
  for (const name of ['dist', 'node_modules', 'proto']) symlinkSync(join(PACKAGE, name), join(root, name));
  const framing = join(root, 'src', 'wire', 'framing.ts');
  const text = readFileSync(framing, 'utf8');
  writeFileSync(
    framing,
    text.replace(`PROTOCOL_VERSION = ${PROTOCOL_VERSION}`, `PROTOCOL_VERSION = ${PROTOCOL_VERSION + 1}`),
  );
  return join(root, 'src', 'main.ts');
}

/** Changes a journal that no daemon uses; its version then. */
function changeJournal(directory: string, sql: string): unknown {
  using database = new DatabaseSync(join(directory, 'journal.db'));
  database.exec(sql);
  return database.prepare('PRAGMA user_version').get()?.user_version;
}

test('a daemon that speaks another version than the cells there are names one and leaves all alone', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: IDLE });
  const [cell] = node.cellPids();
  await node.client.createSession('deaf');
  await node.client.executeSnippet({ sessionId: 'deaf', executionId: 'e', language: 'javascript', code: IDLE });
  await eventually('both run', async () => (await node.client.getExecutionStatus('deaf', 'e')).state === 'running');
  const cells = node.cellPids();
  const [deaf = ''] = (await node.client.getSession('deaf')).cells.map(({ cellKey }) => cellKey);
  await node.end();
  const directory = join(node.stateDir, 'daemon');
  const journal = readFileSync(join(directory, 'journal.db'));
  const tokenFile = join(directory, 'cells', `${deaf}.token`);
  const token = readFileSync(tokenFile);
  writeFileSync(tokenFile, 'another');

  const refused = refusal(node, node.stateDir, { main: nextVersion(node) });

  const versions = `speaks version ${PROTOCOL_VERSION} of the protocol, this daemon version ${PROTOCOL_VERSION + 1}`;
  expect(refused).toMatch(
    new RegExp(`^elide-daemon: cell \\S+ \\(process ${cell}\\) of an older daemon ${versions}; it was left`),
  );
  expect(node.cellPids()).toEqual(cells);
  expect(readFileSync(join(directory, 'journal.db'))).toEqual(journal);
  writeFileSync(tokenFile, token);
  await node.start();
  for (const sessionId of ['s', 'deaf']) {
    expect((await node.client.getExecutionStatus(sessionId, 'e')).state).toBe('running');
  }
  expect(node.cellPids()).toEqual(cells);
});

/** Makes a start be refused; what it says, and what makes the next one work. */
const REFUSALS = {
  journal: (node: FaultNode) => {
    const directory = join(node.stateDir, 'daemon');
    const version = changeJournal(directory, '');
    changeJournal(directory, 'PRAGMA user_version = 99');
    return { why: 'another version', mend: () => changeJournal(directory, `PRAGMA user_version = ${version}`) };
  },
  socket: (node: FaultNode) => {
    const socket = join(node.root, 'other.sock');
    writeFileSync(socket, '');
    return { why: 'is no socket', mend: () => rmSync(socket) };
  },
};

test.each(['journal', 'socket'] as const)(
  'a start that is refused for its %s leaves cells to wait as long as they did; the next one has them wait as it says',
  async (part) => {
    await using node = await FaultNode.start();
    await startKinds(node);
    const cells = node.cellPids();
    await node.end();
    const { why, mend } = REFUSALS[part](node);
    const config = { orphanGraceMs: 0 };
    const file = join(node.root, 'other.json');
    writeFileSync(file, JSON.stringify(config));

    expect(refusal(node, node.stateDir, { flags: ['--config', file] })).toContain(why);
    mend();
    await node.start(config);

    for (const executionId of Object.keys(KINDS)) {
      expect((await node.client.getExecutionStatus('s', executionId)).state, executionId).toBe('running');
    }
    expect(node.cellPids()).toEqual(cells);
    await node.end();
    await eventually('the cells do not wait', () => node.cellPids().length === 0);
  },
);

test('a start that is refused leaves the ends that dead cells wrote down to the next daemon', async () => {
  await using node = await FaultNode.start();
  for (const sessionId of ['dead', 's']) await node.client.createSession(sessionId);
  const go = join(node.root, 'go');
  const code = `setInterval(() => require('fs').existsSync('${go}') && process.exit(3), 20)`;
  await node.client.executeSnippet({ sessionId: 'dead', executionId: 'e', language: 'javascript', code });
  await node.ready({ executionId: 'other', code: IDLE });
  const [{ pid: other } = { pid: 0 }] = (await node.client.getSession('s')).cells;
  await eventually('both run', async () => (await node.client.getExecutionStatus('dead', 'e')).state === 'running');
  await node.end();
  writeFileSync(go, '');
  await eventually('it has ended', () => endsWritten(node).length > 0);
  for (const pid of node.cellPids().filter((cell) => cell !== other)) process.kill(pid, 'SIGKILL');
  await eventually('its cell is gone', () => node.cellPids().length === 1);

  expect(refusal(node, node.stateDir, { main: nextVersion(node) })).toContain(`(process ${other})`);
  await node.start();

  expect((await node.client.wait('dead', 'e')).result).toMatchObject({ reason: 'failed', exitCode: 3 });
  await eventually('what the dead cell has left is removed', () => endsWritten(node).length === 0);
  expect((await node.client.getExecutionStatus('s', 'other')).state).toBe('running');
});

test.skipIf(!isRoot)('a daemon of another user is refused by name of what it may not, and makes nothing', async () => {
  await using node = await FaultNode.start();
  const shared = join(node.root, 'shared');
  mkdirSync(shared);
  chownSync(node.root, NOBODY, NOBODY);

  const ofRoot = refusal(node, node.stateDir, { uid: NOBODY });
  const belowRoots = refusal(node, join(shared, 'new'), { uid: NOBODY });

  expect(ofRoot).toMatch(/^elide-daemon: state directory \S+\/s cannot be used: EACCES: permission denied/);
  expect(belowRoots).toMatch(/^elide-daemon: state directory \S+\/new cannot be used: EACCES: permission denied/);
  expect(readdirSync(shared)).toEqual([]);
});

test.each([{}, { force: true }, { detach: true }])(
  'a daemon whose start failed can be stopped: %o',
  async (options) => {
    const root = temporaryDirectory();
    const create = (socket: string) =>
      createDaemon({ logLevel: 'silent', stateDir: join(root, 's'), socket: join(root, socket) });
    const first = create('d.sock');
    await first.start();
    await first.createSession('kept');
    await first.stop();

    const second = create('missing/d.sock');
    await expect(second.start()).rejects.toThrow('missing');
    await second.stop(options);

    // Its lock and its sessions are the next one's.
    const third = create('d.sock');
    await third.start();
    expect((await third.getSession('kept')).state).toBe('running');
    await third.stop();
  },
);
