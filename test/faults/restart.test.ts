import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { describe, expect, test } from 'vitest';
import { connectDaemon } from '../../src/client/client.ts';
import { UnavailableError } from '../../src/errors.ts';
import type { ExecutionMetrics } from '../../src/supervisor/execution-metrics.ts';
import { descendants, eventually, isAlive, TestDaemon } from '../support/daemon.ts';
import { cellsBelow } from '../support/processes.ts';
import { FaultNode } from './node.ts';
import { COUNTER, expectCounted } from './restarted.ts';

test('what waits goes on waiting, starts in its order, and starts once', async () => {
  await using node = await FaultNode.start({ maxRunning: 1 });
  await node.client.createSession('s');
  const file = join(node.root, 'started');
  await node.ready({ executionId: 'first', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const ids = Array.from({ length: 20 }, (_, index) => `waits-${index}`);
  for (const executionId of ids) {
    const code = `require('fs').appendFileSync(${JSON.stringify(file)}, process.env.ID + '\\n')`;
    await node.client.executeSnippet({
      sessionId: 's',
      executionId,
      language: 'javascript',
      code,
      env: { ID: executionId },
    });
  }

  await node.restart();
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 20, running: 1, exited: 0 });
  await node.client.cancelExecution('s', 'first', { graceMs: 0 });
  await eventually('some have started', () => existsSync(file) && readFileSync(file, 'utf8').split('\n').length > 3);
  await node.restart();
  for (const executionId of ids) {
    expect((await node.client.wait('s', executionId)).result?.reason).toBe('completed');
  }

  expect(readFileSync(file, 'utf8').trim().split('\n')).toEqual(ids);
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 0, running: 0, exited: 21 });
});

/**
 * A node without its daemon, which was killed when its journal said that it was about to have `waits` started in a cell:
 * nobody had told that one yet, and it has ended since. The execution adds a letter to a file.
 */
async function aboutToStart(node: FaultNode): Promise<{ file: string; sql: (statement: string) => void }> {
  const file = join(node.root, 'started');
  await node.client.createSession('s', { maxRunning: 1 });
  await node.ready({ executionId: 'runs', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const code = `require('fs').appendFileSync(${JSON.stringify(file)}, 'x')`;
  await node.client.executeSnippet({ sessionId: 's', executionId: 'waits', language: 'javascript', code });
  await node.end();
  const sql = (statement: string) => {
    using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'));
    expect(database.prepare(statement).run().changes).toBe(1);
  };
  sql("UPDATE executions SET cell_key = 'gone' WHERE execution_id = 'waits'");
  return { file, sql };
}

test('what was about to start, and surely has not, waits on and starts once, however often daemon and machine do', async () => {
  await using node = await FaultNode.start();
  const { file, sql } = await aboutToStart(node);

  await node.start();
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 1, running: 1, exited: 0 });
  await node.end();
  sql("UPDATE boot SET id = 'another'");
  await node.start();
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 1, running: 1, exited: 0 });
  await node.client.cancelExecution('s', 'runs', { graceMs: 0 });

  expect((await node.client.wait('s', 'waits')).result?.reason).toBe('completed');
  expect(readFileSync(file, 'utf8')).toBe('x');
});

test.each([
  'of a cell that has made its directory for output',
  'of a cell that has made its directory to work in',
  'of another boot',
])('what was about to start, and may have, %s, never starts again', async (whose) => {
  await using node = await FaultNode.start();
  const { file, sql } = await aboutToStart(node);
  const { sessionKey, executionKey } = keysOf(node, 'waits');
  if (whose === 'of another boot') sql("UPDATE boot SET id = 'another'");
  else {
    const place = whose.endsWith('output') ? join('daemon', 'output') : 'work';
    mkdirSync(join(node.stateDir, place, sessionKey, executionKey), { recursive: true });
  }

  await node.start();
  expect((await node.client.wait('s', 'waits')).result?.reason).toBe('daemon_lost');
  await node.client.cancelExecution('s', 'runs', { graceMs: 0 });
  await node.client.wait('s', 'runs');

  expect(existsSync(file)).toBe(false);
});

test('what has finished answers as before, and its id is taken', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s', { weight: 7 });
  const snippet = { sessionId: 's', executionId: 'e', language: 'javascript', code: "console.log('hello')" };
  await node.client.executeSnippet(snippet);
  const before = await node.client.wait('s', 'e');
  const status = await node.client.getExecutionStatus('s', 'e');

  await node.restart();

  expect(await node.client.wait('s', 'e')).toEqual(before);
  expect(await node.client.getExecutionStatus('s', 'e')).toEqual(status);
  expect(await node.stdout('e')).toBe('hello\n');
  expect(await Array.fromAsync(node.client.listExecutions('s'))).toEqual([before]);
  expect((await node.client.getSession('s')).config.weight).toBe(7);
  await node.client.executeSnippet(snippet);
  await expect(node.client.executeSnippet({ ...snippet, code: '1' })).rejects.toMatchObject({ code: 'already_exists' });
  await expect(node.client.createSession('s')).rejects.toMatchObject({ code: 'already_exists' });
  expect(await node.client.cancelExecution('s', 'e')).toBe(false);
});

test('small output is the same whether the daemon is killed before, while or after it goes into the journal', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.stdout.write('out'); process.stderr.write('err');";
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code });
  await node.client.wait('s', 'e');
  const look = async () => ({
    chunks: await Array.fromAsync(node.client.streamOutput('s', 'e')),
    status: await node.client.getExecutionStatus('s', 'e'),
  });
  const before = await look();
  const output = join(node.stateDir, 'daemon', 'output');
  const { sessionKey, executionKey } = keysOf(node, 'e');
  const directories = () => readdirSync(join(output, sessionKey));
  expect(before.chunks.map(({ stream, data }) => `${stream} ${data}`)).toEqual(['stdout out', 'stderr err']);

  await node.restart();
  expect(await look()).toEqual(before);
  await eventually('it is in the journal', () => directories().length === 0);
  await node.restart();
  expect(await look()).toEqual(before);

  // It had begun to remove the files: of them the second is left.
  await node.end();
  mkdirSync(join(output, sessionKey, executionKey));
  writeFileSync(join(output, sessionKey, executionKey, 'stderr'), 'err');
  await node.start();
  expect(await look()).toEqual(before);
  await eventually('what was left is removed', () => directories().length === 0);
  expect(await look()).toEqual(before);
});

test('a wait, a watch and an output stream that are open ride through a restart', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: COUNTER.javascript, stdin: true });
  using client = connectDaemon({ socket: node.socket });
  await client.health();
  const waiting = client.wait('s', 'e');
  const watching = Array.fromAsync(client.watchExecution('s', 'e'));
  const streaming = Array.fromAsync(client.streamOutput('s', 'e', { streams: ['stdout'] }));

  await node.restart();
  await node.client.writeInput('s', 'e', Buffer.from('end\n'));

  expect((await waiting).result).toMatchObject({ exitCode: 7 });
  expect((await watching).map(({ sequence, state }) => [sequence, state])).toEqual([
    [1, 'pending'],
    [2, 'running'],
    [3, 'exited'],
  ]);
  expectCounted(Buffer.concat((await streaming).map(({ data }) => data)).toString());
});

test('metrics that are watched ride through a restart, to their final figures, of one execution and of all', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: COUNTER.javascript, stdin: true });
  using client = connectDaemon({ socket: node.socket });
  await client.health();
  let [rounds, roundsOfAll] = [0, 0];
  const one = (async () => {
    const seen: ExecutionMetrics[] = [];
    for await (const round of client.watchExecutionMetrics({ sessionId: 's', executionId: 'e', intervalMs: 100 })) {
      seen.push(...round);
      rounds += 1;
    }
    return seen;
  })();
  const stop = new AbortController();
  const all = (async () => {
    for await (const round of client.watchExecutionMetrics({ intervalMs: 100, signal: stop.signal })) {
      roundsOfAll += round.length;
    }
  })();
  const impatient = Array.fromAsync(client.watchExecutionMetrics({ intervalMs: 100, patienceMs: 0 }));
  impatient.catch(() => {});
  await eventually('both have begun', () => rounds > 1 && roundsOfAll > 1);

  await node.end();
  const before = [rounds, roundsOfAll];
  await expect(impatient).rejects.toMatchObject({ code: 'unavailable' });
  await node.start();
  await eventually('both go on', () => rounds > (before[0] ?? 0) + 1 && roundsOfAll > (before[1] ?? 0) + 1);
  await node.client.writeInput('s', 'e', Buffer.from('end\n'));

  const seen = await one;
  expect(seen.map(({ complete }) => complete)).toEqual(seen.map((_, index) => index === seen.length - 1));
  expect(seen.at(-1)?.stdoutBytes).toBe((await node.stdout('e')).length);
  stop.abort();
  await expect(all).rejects.toThrow(/abort/);
});

test('input that is said again because nobody answered is written once', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const code = "process.stdin.on('data', (data) => process.stdout.write(data)); console.log('ready');";
  await node.ready({ executionId: 'e', code, stdin: true });
  await node.client.writeInput('s', 'e', Buffer.from('one '), false, { position: 0 });

  await node.restart();
  await node.client.writeInput('s', 'e', Buffer.from('one two '), false, { position: 0 });
  const future = node.client.writeInput('s', 'e', Buffer.from('three'), true, { position: 9 });
  await expect(future).rejects.toMatchObject({
    code: 'out_of_range',
    message: expect.stringMatching(/future: 8 bytes/),
  });
  await node.client.writeInput('s', 'e', Buffer.from('two three'), true, { position: 4 });

  await node.client.wait('s', 'e');
  expect(await node.stdout('e')).toBe('ready\none two three');
});

test('input that is said again to what has ended with it is refused, though it was taken', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({
    executionId: 'e',
    code: "process.stdin.pipe(process.stdout); console.log('ready');",
    stdin: true,
  });
  const say = () => node.client.writeInput('s', 'e', Buffer.from('one'), true, { position: 0 });
  await say();
  await node.client.wait('s', 'e');

  await node.restart();

  await expect(say()).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/has exited/),
  });
  expect(await node.stdout('e')).toBe('ready\none');
});

test('a session that was being deleted is deleted, and one that was deleted stays so', async () => {
  await using node = await FaultNode.start({ graceMs: 60_000 });
  await node.client.createSession('gone');
  await node.client.deleteSession('gone');
  await node.client.createSession('s');
  await node.ready({
    executionId: 'e',
    code: "process.on('SIGTERM', () => { console.log('asked'); setTimeout(() => process.exit(0), 1500); }); setInterval(() => {}, 1000); console.log('ready');",
  });
  node.client.deleteSession('s').catch(() => {});
  await node.printed('e', 'asked');

  await node.restart();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'session_closed', exitCode: 0 });
  await eventually('both are gone', async () => (await node.client.listSessions()).length === 0);
});

/** Runs one execution to its end, and hands in another behind one that goes on: what is known of them. */
async function doneAndWaiting(node: FaultNode) {
  const snippet = { sessionId: 's', language: 'javascript', code: "console.log('x')" };
  await node.client.executeSnippet({ ...snippet, executionId: 'done' });
  const done = await node.client.wait('s', 'done');
  await node.client.executeSnippet({ ...snippet, executionId: 'runs', code: COUNTER.javascript, stdin: true });
  await node.printed('runs', '\n0\n');
  await node.client.executeSnippet({ ...snippet, executionId: 'waits' });
  return done;
}

test('a daemon that detaches leaves everything running, or waiting, to the next one', async () => {
  await using node = await FaultNode.start({ onStop: 'detach' });
  await node.client.createSession('s', { maxRunning: 2 });
  await node.ready({ executionId: 'python', language: 'python', code: COUNTER.python, stdin: true });
  const done = await doneAndWaiting(node);
  const pids = node.cellPids();

  await node.end('SIGTERM');
  expect(pids.filter(isAlive)).toEqual(pids);
  await node.start();

  expect(node.cellPids()).toEqual(pids);
  expect(await node.client.wait('s', 'done')).toEqual(done);
  expect(await node.stdout('done')).toBe('x\n');
  expect((await node.client.getSession('s')).counts).toEqual({ pending: 1, running: 2, exited: 1 });
  for (const executionId of ['python', 'runs']) {
    await node.client.writeInput('s', executionId, Buffer.from('end\n'));
    expect((await node.client.wait('s', executionId)).result).toMatchObject({ exitCode: 7 });
    expectCounted(await node.stdout(executionId));
  }
  expect((await node.client.wait('s', 'waits')).result?.reason).toBe('completed');
  expect(await node.steps('waits')).toEqual(['pending', 'running', 'exited']);
});

test('a daemon that is stopped ends everything, and its sessions are there for the next one', async () => {
  await using node = await FaultNode.start({ graceMs: 500 });
  await node.client.createSession('s', { maxRunning: 1 });
  const done = await doneAndWaiting(node);
  const below = descendants(node.pid);

  await node.end('SIGTERM');
  expect(below.filter(isAlive)).toEqual([]);
  await node.start();

  expect((await node.client.wait('s', 'runs')).result).toMatchObject({ reason: 'session_closed', signal: 'SIGTERM' });
  expectCounted(await node.stdout('runs'));
  expect((await node.client.wait('s', 'waits')).result).toMatchObject({ reason: 'session_closed', exitCode: -1 });
  expect(await node.stdout('waits')).toBe('');
  expect(await node.client.wait('s', 'done')).toEqual(done);
  expect(await node.stdout('done')).toBe('x\n');
  await node.ready({ executionId: 'again', code: "console.log('ready')" });
});

test("the journal is its owner's alone, and keeps no environment of what has started", async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({
    executionId: 'e',
    code: "setInterval(() => {}, 1000); console.log('ready');",
    env: { KEY: 'a-secret-value' },
  });

  const directory = join(node.stateDir, 'daemon');
  const files = readdirSync(directory).filter((name) => name.startsWith('journal'));
  expect(files).toContain('journal.db');
  for (const name of files) expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600);
  // It runs: what it was started with is of no use any more.
  const database = new DatabaseSync(join(directory, 'journal.db'), { readOnly: true });
  await eventually('its request is gone', () => database.prepare('SELECT * FROM requests').all().length === 0);
  database.close();
  await node.end('SIGTERM');
  for (const name of readdirSync(directory).filter((file) => file.startsWith('journal'))) {
    expect(readFileSync(join(directory, name), 'latin1')).not.toContain('a-secret-value');
  }
  expect(node.log).not.toContain('a-secret-value');
});

/** How a journal is lost. */
const overwrite = (file: string) => writeFileSync(file, Buffer.alloc(8192, 'garbage'));

const remove = (file: string) => ['', '-wal', '-shm'].map((suffix) => rmSync(file + suffix));

test.each([
  ['was overwritten', overwrite],
  ['was emptied', (file: string) => truncateSync(file)],
  ['was emptied with its log', (file: string) => [file, `${file}-wal`].map((path) => truncateSync(path))],
  ['is not there', remove],
  ['was overwritten, also by a daemon that is killed before it is ready,', overwrite, true],
  ['is not there, also by a daemon that is killed before it is ready,', remove, true],
] as const)(
  'a journal that %s is said loudly, and nothing of what it knew is removed',
  async (_, lose, killed: boolean | undefined = false) => {
    await using node = await FaultNode.start();
    const daemonDirectory = join(node.stateDir, 'daemon');
    await node.client.createSession('s');
    await node.ready({ executionId: 'e', code: COUNTER.javascript });
    const cells = node.cellPids();
    await node.end();
    const file = join(daemonDirectory, 'journal.db');
    const before = Object.fromEntries(['', '-wal'].map((suffix) => [suffix, statSync(file + suffix).ino]));
    lose(file);
    const isThere = ['', '-wal'].filter((suffix) => existsSync(file + suffix) && statSync(file + suffix).size > 0);
    if (killed) await startInVain(node, file);

    await node.start({});

    // Nobody could ask for the guest any more, or stop it; what it wrote is there for people, also for a later daemon.
    expect(cells).toHaveLength(1);
    await eventually('its cell is gone', () => !cells.some(isAlive));
    for (const daemon of ['this daemon', 'the next one']) {
      const aside = readdirSync(daemonDirectory).filter((name) => name.includes('.damaged-'));
      const inodes = aside.map((name) => statSync(join(daemonDirectory, name)).ino);
      for (const suffix of isThere) expect(inodes, daemon).toContain(before[suffix]);
      const names = readdirSync(daemonDirectory, { recursive: true, encoding: 'utf8' });
      const [written = '', ...others] = names.filter((name) => name.endsWith('/stdout'));
      expect([written, others], daemon).toEqual([expect.stringMatching(/^output\.set-aside-/), []]);
      expect(readFileSync(join(daemonDirectory, written), 'utf8'), daemon).toMatch(/^ready\n/);
      await node.restart();
    }
    expect(node.log.match(/the journal does not know output that is there: it was set aside/g)).toHaveLength(1);
    expect(node.log.includes('the journal was damaged')).toBe(isThere.length > 0);
    await node.client.createSession('s');
  },
);

/** Starts a daemon that waits for its Python, and kills it once it has begun a journal. */
async function startInVain(node: FaultNode, journal: string): Promise<void> {
  const [python, go] = [join(node.root, 'python'), join(node.root, 'go')];
  writeFileSync(python, `#!/bin/sh\nuntil [ -e ${go} ]; do sleep 0.05; done\n`, { mode: 0o700 });
  const started = node.start({ python }).catch((error: Error) => error.message);
  await eventually('a journal is begun', () =>
    /^SQLite/.test(existsSync(journal) ? readFileSync(journal, 'latin1') : ''),
  );
  await node.end();
  expect(await started).toMatch(/the daemon is gone: SIGKILL$/);
  writeFileSync(go, '');
}

/** What the directories of an execution's output are called. */
function keysOf(node: FaultNode, executionId: string): { sessionKey: string; executionKey: string } {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const find = database.prepare('SELECT session_key, execution_key FROM executions WHERE execution_id = ?');
  const { session_key: sessionKey, execution_key: executionKey } = find.get(executionId) as Record<string, string>;
  return { sessionKey: sessionKey as string, executionKey: executionKey as string };
}

test('a session is the same to who asks for the same of a daemon with other defaults', async () => {
  await using node = await TestDaemon.start();
  const places = { stateDir: join(node.root, 's'), socket: node.endpoints.socket as string };
  const asked = {
    nothing: {},
    much: { enabledLanguages: ['js'], memoryLimitMb: 64, weight: 3, executionDefaults: { timeoutMs: 1_000 } },
  };
  const before = new Map<string, object>();
  for (const [id, config] of Object.entries(asked)) before.set(id, await node.daemon.createSession(id, config));
  await node.daemon.stop();

  const defaults = { contextPoolSize: 3, maxQueued: 7, executionDefaults: { processLimit: 50 } };
  await using next = await TestDaemon.start({
    ...places,
    ...defaults,
    executionCeilings: { timeoutMs: 9_000 },
    graceMs: 6_000,
  });
  const create = (id: keyof typeof asked, more = {}) => next.daemon.createSession(id, { ...asked[id], ...more });

  for (const id of ['nothing', 'much'] as const) {
    expect(await create(id)).toEqual(before.get(id));
    await expect(create(id, { weight: 2 })).rejects.toThrow('exists with another configuration');
    await expect(create(id, { maxQueued: 7 })).rejects.toThrow('exists with another configuration');
  }
});

describe('a daemon of a program', () => {
  const stopped = { status: 'rejected', reason: new UnavailableError('the daemon has stopped') };
  const code = "console.log('ready'); setInterval(() => {}, 1000)";
  const idle = { executionId: 'e', language: 'javascript', code };

  test('ends its own calls when it leaves what runs to the next one', async () => {
    await using node = await TestDaemon.start();
    const { daemon, root, endpoints } = node;
    for (const sessionId of ['s', 'closing']) {
      await daemon.createSession(sessionId);
      await daemon.executeSnippet({ ...idle, sessionId });
    }
    const sleeper = { executionId: 'input', language: 'python', code: 'import time\ntime.sleep(600)', stdin: true };
    await daemon.executeSnippet({ ...sleeper, sessionId: 's' });
    await daemon.executeSnippet({
      ...idle,
      sessionId: 'closing',
      executionId: 'stubborn',
      code: `process.on('SIGTERM', () => {}); ${code}`,
    });
    for await (const { data } of daemon.streamOutput('closing', 'stubborn')) if (String(data) === 'ready\n') break;
    const [sessionId, executionId, intervalMs] = ['s', 'e', 3_600_000];
    const open = [
      daemon.watchExecution(sessionId, executionId, { fromSequence: 2 }),
      daemon.streamOutput(sessionId, executionId),
      daemon.watchExecutionMetrics({ sessionId, executionId, intervalMs }),
      daemon.watchExecutionMetrics({ intervalMs }),
    ];
    for (const stream of open) await stream.next();
    const calls = () => [
      daemon.wait(sessionId, executionId),
      daemon.deleteSession('closing', { graceMs: 600_000 }),
      daemon.writeInput(sessionId, 'input', Buffer.alloc(1_000_000)),
    ];
    const underWay = Promise.allSettled([...open.map((stream) => stream.next()), ...calls()]);
    // Of what the daemon is to have begun with before it is stopped the last is this.
    await daemon.getExecutionMetrics(sessionId, executionId);

    await daemon.stop({ detach: true });

    expect(await underWay).toEqual(new Array(7).fill(stopped));
    const later = [...calls(), daemon.cancelExecution('s', 'e'), daemon.signalExecution('s', 'e', 'SIGHUP')];
    expect(await Promise.allSettled(later)).toEqual(later.map(() => stopped));
    await using next = await TestDaemon.start({ stateDir: join(root, 's'), socket: endpoints.socket as string });
    expect((await next.daemon.getExecution('s', 'e')).state).toBe('running');
    await expect(next.daemon.getSession('closing')).rejects.toThrow('is closing');
  });

  test('leaves what waits for its first cell to the next one, which starts it once', async () => {
    await using node = await TestDaemon.start();
    const { daemon, root, endpoints } = node;
    const places = { stateDir: join(root, 's'), socket: endpoints.socket as string };
    const cells = () => cellsBelow(join(places.stateDir, 'daemon', 'cells'));
    await daemon.createSession('s');
    const rounds = daemon.watchExecutionMetrics({ intervalMs: 3_600_000 });
    await rounds.next();
    const left = expect(rounds.next()).rejects.toThrow('the daemon has stopped');
    const file = join(root, 'started');
    const begun = `require('fs').appendFileSync(${JSON.stringify(file)}, 'x')`;
    await daemon.executeSnippet({ ...idle, sessionId: 's', code: begun });
    for (const pid of cells()) process.kill(pid, 'SIGSTOP');
    // Calls that are open keep the daemon a while.
    using client = connectDaemon({ socket: places.socket });
    const watch = client.watchExecution('s', 'e', { patienceMs: 0 });
    await watch.next();
    const lost = expect(watch.next()).rejects.toMatchObject({ code: 'unavailable' });

    const stopped = daemon.stop({ detach: true });
    await left;
    for (const pid of cells()) process.kill(pid, 'SIGCONT');
    await Promise.all([stopped, lost]);
    const pids = cells();
    for (const pid of pids) process.kill(pid, 'SIGKILL');
    await eventually('its cell is gone', () => !pids.some(isAlive));
    await using next = await TestDaemon.start(places);

    expect(pids).toHaveLength(1);
    expect((await next.daemon.wait('s', 'e')).result?.reason).toBe('completed');
    expect(readFileSync(file, 'utf8')).toBe('x');
  });

  test('acknowledges nothing any more once it is stopped', async () => {
    await using node = await TestDaemon.start();
    const { daemon, root, endpoints } = node;
    await daemon.createSession('s');
    await daemon.executeSnippet({ ...idle, sessionId: 's', code: '1' });
    await daemon.wait('s', 'e');
    const rounds = daemon.watchExecutionMetrics({ intervalMs: 3_600_000 });
    await rounds.next();
    const watching = Promise.allSettled([rounds.next()]);

    await daemon.stop();

    expect(await watching).toEqual([stopped]);
    const calls = [daemon.deleteSession('s'), daemon.releaseExecution('s', 'e')];
    expect(await Promise.allSettled(calls)).toEqual([stopped, stopped]);
    await using other = await TestDaemon.start({ stateDir: join(root, 's'), socket: endpoints.socket as string });
    expect((await other.daemon.getExecution('s', 'e')).result?.reason).toBe('completed');
    expect((await other.daemon.getSession('s')).state).toBe('running');
  });
});
