import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually, TestDaemon, type TestSession } from '../support/daemon.ts';

const SLEEP = 'setTimeout(() => {}, 600_000)';

/** JavaScript contexts of a session's cells, the warm ones included. */
async function contexts(session: TestSession): Promise<number> {
  return (await session.cellPids()).reduce((sum, pid) => sum + contextsOf(pid), 0);
}

function contextsOf(pid: number): number {
  return threadsOf(pid, 'WorkerThread');
}

/** How many threads of a process have this name. */
function threadsOf(pid: number, name: string): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  return threads.filter((thread) => readFileSync(`/proc/${pid}/task/${thread}/comm`, 'utf8') === `${name}\n`).length;
}

test('the pool size limits what is kept warm, never what runs', { timeout: 240_000 }, async () => {
  // A thread that gets no processor for long has not started: not all at a time.
  await using node = await TestDaemon.start({ contextsPerCell: 16, maxStarting: 4 });
  const session = await node.session({ contextPoolSize: 10 });

  const executions = await Promise.all(Array.from({ length: 200 }, () => session.submit(SLEEP)));
  await Promise.all(executions.map((execution) => execution.reached('running')));

  const { counts, cells } = await node.daemon.getSession(session.sessionId);
  expect(counts).toMatchObject({ pending: 0, running: 200 });
  expect(cells.reduce((sum, cell) => sum + cell.executions, 0)).toBe(200);
  expect(Math.max(...cells.map((cell) => cell.executions))).toBeLessThanOrEqual(16);
  // 200 fill twelve cells and half of one, which has room for eight more.
  await eventually('eight are warm', async () => (await contexts(session)) === 208, 60_000);
});

test.each([
  ['Python', { language: 'python', code: 'import time\ntime.sleep(600)' }],
  ['JavaScript with processes of their own', { code: SLEEP, isolation: 'process' as const }],
])('no more processes of %s share a cell than may', async (_, snippet) => {
  await using node = await TestDaemon.start({ processesPerCell: 2 });
  const session = await node.session();

  const executions = await Promise.all(Array.from({ length: 3 }, () => session.submit(snippet)));
  await Promise.all(executions.map((execution) => execution.reached('running')));

  const { cells } = await node.daemon.getSession(session.sessionId);
  expect(cells.map((cell) => cell.executions).sort()).toEqual([1, 2]);
});

test('warm contexts are shared between the cells of a session', async () => {
  await using node = await TestDaemon.start({ contextsPerCell: 4 });
  const session = await node.session({ contextPoolSize: 1 });
  const executions = await Promise.all(Array.from({ length: 5 }, () => session.submit(SLEEP)));
  await Promise.all(executions.map((execution) => execution.reached('running')));

  // Two cells, and then room in both.
  await Promise.all(executions.slice(0, 4).map((execution) => execution.cancel({ graceMs: 0 })));
  await Promise.all(executions.slice(0, 4).map((execution) => execution.end()));
  for (let index = 0; index < 3; index += 1) await session.run('1');

  expect(await session.cellPids()).toHaveLength(2);
  await eventually('one runs and one is warm', async () => (await contexts(session)) === 2);
});

test('a worn cell keeps nothing warm, as nothing more comes to it', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session({ contextPoolSize: 1 });
  await (await session.submit(SLEEP)).reached('running');
  const worn = await session.cellPid();

  await session.run(
    "for (let i = 0; i < 70; i += 1) require('child_process').spawn('sleep', ['600']); process.exit(0);",
  );
  await eventually('others run in another cell', async () => {
    await session.run('1');
    return (await session.cellPids()).length === 2;
  });

  await eventually('one runs, and one is warm in the other cell', async () => {
    return contextsOf(worn) === 1 && (await contexts(session)) === 2;
  });
});

test('a cell is let go when it has been idle, and another one serves what comes later', async () => {
  await using node = await TestDaemon.start({ cellIdleMs: 50 });
  const session = await node.session();
  await session.run('1');

  await eventually('the cell is gone', async () => (await session.cellPids()).length === 0);
  const { result } = await session.run('1');

  expect(result.reason).toBe('completed');
});

test('calls of one program that wait hold up no other program of its cell', async () => {
  await using node = await TestDaemon.start({ contextsPerCell: 4 });
  const session = await node.session();
  const directory = node.directory();
  const pipes = ['a', 'b', 'c', 'd'].map((name) => join(directory, name));
  execFileSync('mkfifo', pipes);
  const waiting = await session.ready({
    code: `Promise.all(process.argv.slice(2).map((pipe) => require('node:fs').promises.open(pipe)))
      .then(() => console.log('opened'));
      console.log('ready');`,
    args: pipes,
  });

  const { stdout } = await session.run(
    "require('node:fs').promises.readFile('/proc/self/comm').then(() => console.log('read'));",
  );
  const before = await waiting.output();
  const fds = pipes.map((pipe) => openSync(pipe, 'r+'));
  const { stdout: after } = await waiting.end();
  for (const fd of fds) closeSync(fd);

  expect([stdout, before.stdout, after]).toEqual(['read\n', 'ready\n', 'ready\nopened\n']);
});

test('a cell has the threads of what Node does beside its programs once one needs them, and no program hears of it', async () => {
  await using node = await TestDaemon.start({ contextsPerCell: 3 });
  const session = await node.session();
  const pooled = async () => threadsOf(await session.cellPid(), 'libuv-worker');

  await session.run("require('node:fs').readFileSync('/proc/self/comm')");
  const none = await pooled();
  const { stdout } = await session.run(`
    const show = () => console.log(JSON.stringify(process.env), require('node:child_process').execFileSync('env').length);
    require('node:fs').promises.readFile('/proc/self/comm').then(show);`);

  expect([none, await pooled(), stdout]).toEqual([0, 12, '{} 0\n']);
});

test('what goes past a thread to the directory of its cell leaves nothing there', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();

  const { stdout } = await session.run(`const { DatabaseSync } = require('node:sqlite');
    try { new DatabaseSync(':memory:').exec("attach 'beside.db' as beside; create table beside.t (a)") }
    catch ({ message }) { console.log(message) }`);

  expect(stdout).toBe('unable to open database: beside.db\n');
});
