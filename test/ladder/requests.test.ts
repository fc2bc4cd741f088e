import { execFileSync } from 'node:child_process';
import { closeSync, constants, existsSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { devNull } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import { LONGEST_MS } from '../../src/supervisor/limits.ts';
import { descendants, eventually, isAlive, processesWith, TestDaemon, type TestExecution } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';

const IDLE = "setInterval(() => {}, 1000); console.log('ready');";
const STUBBORN = `process.on('SIGTERM', () => {}); ${IDLE}`;
/** One call into native code that takes minutes. */
const STUCK = "console.log('ready'); require('node:crypto').pbkdf2Sync('a', 'b', 2e9, 64, 'sha512');";
const CATCHES_HUP = `process.on('SIGHUP', () => console.log('hup')); ${IDLE}`;

test('what waits for a place ends cancelled without any guest code run', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1 });
  const session = await node.session();
  const directory = node.directory();
  await session.ready(IDLE);
  const queued = await session.submit({
    workingDirectory: directory,
    code: "require('node:fs').writeFileSync('ran', '')",
  });
  const behind = await session.submit({ language: 'python', code: "open('ran', 'w')", workingDirectory: directory });

  expect(await queued.cancel()).toBe(true);
  expect(await behind.signal('SIGKILL')).toBe(true);
  const [first, second] = await Promise.all([queued.end(), behind.end()]);

  expect(first.steps).toEqual(['pending', 'exited']);
  expect(first.result).toEqual({
    reason: 'cancelled',
    rung: undefined,
    exitCode: -1,
    signal: undefined,
    message: undefined,
  });
  expect(first.snapshot.times.startedAtMs).toBeUndefined();
  expect(second.result).toMatchObject({ reason: 'signaled', exitCode: -1 });
  expect(existsSync(join(directory, 'ran'))).toBe(false);
  expect((await node.daemon.getSession(session.sessionId)).counts).toEqual({ pending: 0, running: 1, exited: 2 });
});

test('a cancelled place goes to the next in the queue', async () => {
  await using node = await TestDaemon.start({ maxRunning: 1 });
  const session = await node.session();
  const holder = await session.ready(IDLE);
  const next = await session.submit("console.log('at last')");

  await holder.cancel({ graceMs: 0 });

  expect((await next.end()).stdout).toBe('at last\n');
});

test.each(['javascript', 'python'])(
  'a %s execution cancelled while it starts ends without guest code',
  async (language) => {
    await using node = await TestDaemon.start();
    const session = await node.session();
    const directory = node.directory();
    const code = language === 'python' ? "open('ran', 'w')" : "require('node:fs').writeFileSync('ran', '')";

    // No cell is there yet: the cancellation comes while the first one boots.
    const starting = await session.submit({ language, code, workingDirectory: directory });
    expect(await starting.cancel({ graceMs: 15_000 })).toBe(true);
    const { result, steps } = await starting.end();

    expect(result).toMatchObject({ reason: 'cancelled', exitCode: -1 });
    expect(steps[0]).toBe('pending');
    expect(steps).not.toContain('running');
    expect(existsSync(join(directory, 'ran'))).toBe(false);
  },
);

test('an execution cancelled at any moment of its start ends cancelled or completed, and the session goes on', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  await session.run('0');
  const executions = await Promise.all(
    Array.from({ length: 24 }, (_, index) =>
      session.submit(index % 2 === 0 ? '0' : { language: 'python', code: 'pass' }),
    ),
  );
  const ends = await Promise.all(
    executions.map(async (execution, index) => {
      for (let turn = 0; turn < index * 3; turn += 1) await new Promise(setImmediate);
      await execution.cancel({ graceMs: index % 3 === 0 ? 0 : 15_000 });
      return execution.end();
    }),
  );

  for (const { result } of ends) expect(['cancelled', 'completed']).toContain(result.reason);
  expect((await session.run('0')).result.reason).toBe('completed');
  expect((await node.daemon.getSession(session.sessionId)).counts).toMatchObject({ pending: 0, running: 0 });
});

test('a forced stop of what has not started costs no cell, however long that takes to answer', async () => {
  await using node = await TestDaemon.start({ forcedLimitMs: 50 });
  const [session, clock] = [await node.session(), await node.session()];
  const neighbour = await session.ready(IDLE);
  const cell = await session.cellPid();

  process.kill(cell, 'SIGSTOP');
  const starting = await session.submit('0');
  await starting.cancel({ graceMs: 0 });
  await starting.reached('signaled.forced');
  // Some time goes by: many times the limit within which a guest that runs must be gone.
  await clock.run('setTimeout(() => {}, 500)');
  process.kill(cell, 'SIGCONT');
  const { result, steps } = await starting.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect(steps).toEqual(['pending', 'signaled.forced', 'exited.forced']);
  expect((await neighbour.snapshot()).state).toBe('running');
});

test.each(ENGINES)('with the longest limit a forced %s guest costs no neighbour its cell', async (engine) => {
  await using node = await TestDaemon.start({ forcedLimitMs: LONGEST_MS });
  const session = await node.session();
  const code = engine === 'python' ? "import time; print('ready', flush=True); time.sleep(600)" : IDLE;
  const request = { ...languageOf(engine), code };
  const [neighbour, running] = await Promise.all([session.ready(request), session.ready(request)]);

  await running.cancel({ graceMs: 0 });
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect((await neighbour.snapshot()).state).toBe('running');
});

test('a stop of what waits for its cell ends it at once, whatever the cell does', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const starting = await session.submit('0');
  let cells: number[] = [];
  await eventually('its cell boots', async () => {
    cells = (await session.cellPids()).filter((pid) => pid > 0);
    return cells.length > 0;
  });

  process.kill(cells[0] as number, 'SIGSTOP');
  await starting.cancel({ graceMs: 50_000 });
  const { result, steps } = await starting.end();
  process.kill(cells[0] as number, 'SIGCONT');

  expect(result).toMatchObject({ reason: 'cancelled', exitCode: -1 });
  expect(steps).toEqual(['pending', 'signaled.graceful', 'exited.graceful']);
  // The cell is as good as any.
  expect((await session.run('0')).result.reason).toBe('completed');
  expect(await session.cellPids()).toEqual(cells);
});

test('a stop of what starts hands its cell nothing else to start: what waits behind it ends at once when it is stopped', async () => {
  await using node = await TestDaemon.start({ maxStarting: 1 });
  const session = await node.session();
  await session.run('0');
  const cell = await session.cellPid();

  // Boots a context of its own first: its cell is stopped long before it has started.
  const starting = await session.submit({ language: 'javascript', code: '0', memoryLimitMb: 77 });
  await eventually('its cell is named', () => dispatched(node) === 2);
  // What is journaled later is acknowledged later: with these it was handed over, and its cell told to go on if it was stopped.
  const behind = [await session.submit('0'), await session.submit('0')];
  process.kill(cell, 'SIGSTOP');
  const last = await session.submit("console.log('at last')");
  await starting.cancel({ graceMs: 15_000 });
  await starting.reached('signaled.graceful');
  for (const each of behind) await each.cancel({ graceMs: 15_000 });
  const steps = await Promise.all(behind.map(async (each) => (await each.end()).steps));
  process.kill(cell, 'SIGCONT');

  expect(steps).toEqual(behind.map(() => ['pending', 'exited']));
  expect((await starting.end()).result.reason).toBe('cancelled');
  expect((await last.end()).stdout).toBe('at last\n');
});

test('a stop of what has started makes room for the next one to start, however long it takes', async () => {
  await using node = await TestDaemon.start({ maxStarting: 1 });
  const session = await node.session();
  const cell = await session.run('0').then(() => session.cellPid());

  process.kill(cell, 'SIGSTOP');
  const stubborn = await session.submit(STUBBORN);
  await eventually('its cell is named', () => dispatched(node) === 2);
  // What is journaled later is acknowledged later: by now it was handed over.
  await node.session();
  await stubborn.cancel({ signal: 'SIGURG', graceMs: 600_000 });
  await stubborn.reached('signaled.graceful');
  process.kill(cell, 'SIGCONT');

  expect((await session.run('0')).result.reason).toBe('completed');
  expect((await stubborn.snapshot()).state).toBe('signaled');
  await stubborn.signal('SIGKILL');
  expect((await stubborn.end()).result.reason).toBe('cancelled');
});

test('a stop of what has exited, or of what nobody knows, answers false', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const execution = await session.submit('0');
  const before = await execution.end();

  expect(await execution.cancel()).toBe(false);
  expect(await execution.signal('SIGTERM')).toBe(false);
  expect(await node.daemon.cancelExecution(session.sessionId, 'unknown')).toBe(false);
  expect(await node.daemon.cancelExecution('unknown', 'unknown')).toBe(false);

  expect((await execution.end()).snapshot).toEqual(before.snapshot);
});

test('two stops are one: the second one answers alike and changes nothing', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(STUBBORN);

  expect(await running.cancel({ graceMs: 4_000 })).toBe(true);
  expect(await running.cancel({ graceMs: 600_000 })).toBe(true);
  const { steps } = await running.end();

  expect(steps).toEqual(['pending', 'running', 'signaled.graceful', 'signaled.forced', 'exited.forced']);
});

test('a milder stop does not take back force', async () => {
  await using node = await TestDaemon.start({ forcedLimitMs: 5_000 });
  const session = await node.session();
  const running = await session.ready(`
    const { pbkdf2Sync } = require('node:crypto');
    process.on('SIGTERM', () => {});
    console.log('ready');
    pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');`);

  await running.cancel({ graceMs: 1_000 });
  await running.reached('signaled.forced');
  expect(await running.cancel({ graceMs: 1_000_000 })).toBe(true);
  expect(await running.signal('SIGTERM')).toBe(true);
  const { steps } = await running.end();

  expect(steps.slice(2)).toEqual(['signaled.graceful', 'signaled.forced', 'signaled.cell', 'exited.cell']);
});

test.each([
  ['a cancellation with SIGKILL', 'cancel'],
  ['a cancellation without grace', 'hurry'],
  ['a SIGKILL', 'signal'],
] as const)('%s during the grace period takes effect at once', async (_, how) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(STUBBORN);

  await running.cancel({ graceMs: 2_000_000 });
  await running.reached('signaled.graceful');
  if (how === 'cancel') await running.cancel({ signal: 'SIGKILL' });
  else if (how === 'hurry') await running.cancel({ graceMs: 0 });
  else await running.signal('SIGKILL');
  const { result } = await running.end();

  expect(result).toMatchObject({ reason: 'cancelled', rung: 'forced', exitCode: 137 });
});

test.each(['a stop', 'the run limit'])(
  'a shorter grace period counts, though %s has begun with a longer one',
  async (by) => {
    await using node = await TestDaemon.start();
    const session = await node.session();
    // Nobody ends by that signal, also before the program listens.
    const atLimit = { timeoutMs: 1, graceMs: 2_000_000, onTimeout: 'signal', timeoutSignal: 'SIGURG' } as const;
    const running = await session.ready({ code: STUBBORN, ...(by === 'the run limit' && atLimit) });

    if (by === 'a stop') await running.cancel({ graceMs: 2_000_000 });
    await running.reached('signaled.graceful');
    expect(await running.cancel({ graceMs: 100 })).toBe(true);
    const { result, steps } = await running.end();

    expect(result).toMatchObject({ reason: by === 'a stop' ? 'cancelled' : 'timed_out', rung: 'forced' });
    expect(steps.slice(2)).toEqual(['signaled.graceful', 'signaled.forced', 'exited.forced']);
  },
);

test('a stop can begin with another signal than SIGTERM', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(
    `process.on('SIGINT', () => process.exit(5)); process.on('SIGTERM', () => {}); ${IDLE}`,
  );

  await running.cancel({ signal: 'int', graceMs: 15_000 });

  expect((await running.end()).result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 5 });
});

test.each([
  ['javascript', CATCHES_HUP],
  [
    'python',
    `
# A signal that comes just before a sleep is heard after it.
import os, signal, time
signal.signal(signal.SIGHUP, lambda *_: os.write(1, b"hup\\n"))
print("ready", flush=True)
while True: time.sleep(0.1)`,
  ],
])('a signal that a %s program handles leaves it running', async (language, code) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready({ language, code });

  expect(await running.signal('SIGHUP')).toBe(true);
  await running.printed('hup\n');
  expect((await running.snapshot()).state).toBe('running');
  await running.signal('hup');
  await running.printed('hup\nhup\n');
  await running.cancel({ graceMs: 0 });

  expect((await running.end()).steps).toEqual(['pending', 'running', 'signaled.forced', 'exited.forced']);
});

test.each([
  ['javascript', IDLE],
  ['python', 'import time\nprint("ready", flush=True)\ntime.sleep(600)'],
])('a signal that a %s program does not handle ends it with reason signaled', async (language, code) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready({ language, code });

  await running.signal('SIGUSR1');
  const { result, steps } = await running.end();

  expect(steps).toEqual(['pending', 'running', 'exited']);
  expect(result).toMatchObject({ reason: 'signaled', rung: undefined, exitCode: 138, signal: 'SIGUSR1' });
});

test('SIGKILL as a signal forces, with reason signaled', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(STUBBORN);

  await running.signal('SIGKILL');

  expect((await running.end()).result).toMatchObject({
    reason: 'signaled',
    rung: 'forced',
    exitCode: 137,
    signal: 'SIGKILL',
  });
});

test.each(['SIGSTOP', 'SIGCONT'])('%s is refused for a thread and changes nothing', async (signal) => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(IDLE);

  await expect(running.signal(signal)).rejects.toMatchObject({ code: 'invalid_argument' });
  await expect(running.cancel({ signal })).rejects.toMatchObject({ code: 'invalid_argument' });

  expect((await running.snapshot()).state).toBe('running');
});

test('a thousand equal requests at one time are one execution, and of different ones the first', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const { sessionId } = session;
  // A directory is looked at first: that takes each request a while.
  const workingDirectory = node.directory();
  const code = "require('node:fs').appendFileSync('runs', 'x'); console.log('once')";
  const snippet = { sessionId, language: 'javascript', workingDirectory };
  const equal = { ...snippet, executionId: 'equal', code };
  const different = (index: number) => ({ ...snippet, executionId: 'different', code: `${code} // ${index % 2}` });

  const requests = Array.from({ length: 1_000 }, (_, index) => [equal, different(index)]).flat();
  const answers = await Promise.all(
    requests.map((request) =>
      node.daemon.executeSnippet(request).then(
        () => 'accepted',
        (error: { code: string }) => error.code,
      ),
    ),
  );
  await Promise.all(['equal', 'different'].map((executionId) => node.daemon.wait(sessionId, executionId)));

  const to = (executionId: string) => answers.filter((_, index) => requests[index]?.executionId === executionId);
  expect(new Set(to('equal'))).toEqual(new Set(['accepted']));
  expect(to('different').filter((answer) => answer === 'accepted')).toHaveLength(500);
  expect(to('different').filter((answer) => answer === 'already_exists')).toHaveLength(500);
  expect(readFileSync(join(workingDirectory, 'runs'), 'utf8')).toBe('xx');
  expect((await node.daemon.getSession(sessionId)).counts).toEqual({ pending: 0, running: 0, exited: 2 });
});

test.each(['its working directory', 'a pipe of its output'])(
  'the same request again answers alike though the guest has removed %s, and another is refused',
  async (what) => {
    await using node = await TestDaemon.start();
    const { sessionId } = await node.session();
    const workingDirectory = join(node.directory(), 'job');
    const pipe = join(node.directory(), 'out');
    mkdirSync(workingDirectory);
    execFileSync('mkfifo', [pipe]);
    const outputFiles = { stdout: pipe, stderr: devNull, maxFiles: 0, maxFileBytes: 0 };
    const [places, code] =
      what === 'a pipe of its output'
        ? [{ outputFiles }, `require('node:fs').rmSync(${JSON.stringify(pipe)})`]
        : [{ workingDirectory }, `require('node:fs').rmdirSync(${JSON.stringify(workingDirectory)})`];
    const snippet = { sessionId, executionId: 'tidy', language: 'javascript', code, ...places };

    await node.daemon.executeSnippet(snippet);
    const { result } = await node.daemon.wait(sessionId, 'tidy');
    const again = await node.daemon.executeSnippet(snippet);

    expect(result).toMatchObject({ reason: 'completed' });
    expect(again.result).toEqual(result);
    const other = { ...snippet, executionId: 'other' };
    await expect(node.daemon.executeSnippet(other)).rejects.toMatchObject({ code: 'invalid_argument' });
  },
);

test('the same request again answers alike also where the guest removes its directory while that is looked for', async () => {
  await using node = await TestDaemon.start();
  const { sessionId } = await node.session();
  const [workingDirectory, held] = [join(node.directory(), 'job'), join(node.directory(), 'held')];
  mkdirSync(workingDirectory);
  execFileSync('mkfifo', [held]);
  const code = `require('node:fs').rmdirSync(${JSON.stringify(workingDirectory)})`;
  const snippet = { sessionId, executionId: 'tidy', language: 'javascript', code, workingDirectory };

  const first = node.daemon.executeSnippet(snippet);
  // Who looks for a file from here on waits for one of the threads that do that, all of which wait for somebody to write.
  const holders = Array.from({ length: Number(process.env.UV_THREADPOOL_SIZE ?? 4) }, () => open(held));
  const again = node.daemon.executeSnippet(snippet);
  try {
    await first;
    await eventually('the guest has removed it', () => !existsSync(workingDirectory));
  } finally {
    closeSync(openSync(held, constants.O_RDWR));
  }

  expect(await again).toMatchObject({ sessionId, executionId: 'tidy' });
  for (const holder of holders) await (await holder).close();
});

test('deleting a session ends everything in it, with reason session_closed', async () => {
  await using node = await TestDaemon.start({ maxRunning: 4 });
  const session = await node.session();
  const sleep = `60${Math.floor(Math.random() * 1e9)}`;
  const running = [
    await session.ready(`process.on('SIGTERM', () => process.exit(4)); ${IDLE}`),
    await session.ready(STUBBORN),
    await session.ready(`process.on('SIGTERM', () => {}); console.log('ready'); for (;;);`),
    await session.ready({
      language: 'python',
      code: `
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "${sleep}"], start_new_session=True)
print("ready", flush=True)
while True: time.sleep(60)`,
    }),
  ];
  const queued = await session.submit('0');
  const cells = await session.cellPids();

  await node.daemon.deleteSession(session.sessionId, { graceMs: 5_000 });
  const ends = await Promise.all([...running, queued].map((execution) => execution.end()));

  expect(ends.map(({ result }) => result.reason)).toEqual(new Array(5).fill('session_closed'));
  expect(ends.map(({ result }) => [result.rung, result.exitCode])).toEqual([
    ['graceful', 4],
    ['forced', 137],
    ['forced', 137],
    ['forced', 137],
    [undefined, -1],
  ]);
  expect(cells.filter(isAlive)).toEqual([]);
  expect(processesWith(`sleep ${sleep}`)).toEqual([]);
  await expect(node.daemon.getSession(session.sessionId)).rejects.toMatchObject({ code: 'not_found' });
});

test('a session that is being deleted takes nothing more', async () => {
  await using node = await TestDaemon.start();
  const session = await node.session();
  const running = await session.ready(STUBBORN);

  const deleted = node.daemon.deleteSession(session.sessionId, { graceMs: 60_000 });
  await running.reached('signaled.graceful');

  await expect(session.submit('0')).rejects.toMatchObject({ code: 'unavailable' });
  await expect(node.daemon.createSession(session.sessionId)).rejects.toMatchObject({ code: 'unavailable' });
  await node.daemon.deleteSession(session.sessionId, { graceMs: 0 });
  await deleted;
  expect((await running.end()).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
});

test('a daemon that stops ends everything and leaves no process', async () => {
  const before = new Set(descendants());
  await using node = await TestDaemon.start({ graceMs: 5_000 });
  const sessions = [await node.session(), await node.session()];
  const running = [];
  for (const session of sessions) {
    running.push(await session.ready(STUBBORN));
    running.push(
      await session.ready({ language: 'python', code: 'import time\nprint("ready", flush=True)\ntime.sleep(600)' }),
    );
  }
  const mine = () => descendants().filter((pid) => !before.has(pid));

  expect(mine().length).toBeGreaterThanOrEqual(4);
  const waits = running.map(({ sessionId, executionId }) => node.daemon.wait(sessionId, executionId));
  await node.daemon.stop();
  const ends = await Promise.all(waits);

  expect(ends.map(({ result }) => result?.reason)).toEqual(new Array(4).fill('session_closed'));
  expect(ends.map(({ rung }) => rung)).toEqual(['forced', 'graceful', 'forced', 'graceful']);
  expect(mine()).toEqual([]);
  expect(existsSync(join(node.root, 'd.sock'))).toBe(false);
});

test('a second stop of the daemon skips the grace period', async () => {
  await using node = await TestDaemon.start({ graceMs: 2_000_000 });
  const session = await node.session();
  const running = await session.ready(STUBBORN);

  const stopped = node.daemon.stop();
  await running.reached('signaled.graceful');
  expect(node.daemon.healthy).toBe(false);
  await expect(session.submit('0')).rejects.toMatchObject({ code: 'unavailable' });
  const end = node.daemon.wait(running.sessionId, running.executionId);
  await node.daemon.stop({ force: true });
  await stopped;

  expect((await end).result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
});

test('an idle cell is let go, and the session starts another when it needs one', async () => {
  await using node = await TestDaemon.start({ cellIdleMs: 50 });
  const session = await node.session();
  await session.run('0');
  await eventually('the idle cell is gone', async () => (await session.cellPids()).length === 0);

  expect((await session.run('0')).result.reason).toBe('completed');
});

/** How many executions cells were told of, or are about to be: the journal says so. */
function dispatched({ root }: TestDaemon): unknown {
  using database = new DatabaseSync(join(root, 's', 'daemon', 'journal.db'), { readOnly: true });
  return database.prepare('SELECT COUNT(*) AS count FROM executions WHERE cell_key IS NOT NULL').get()?.count;
}

test('a guest is forced once there is a place for that, which one that does not end keeps for 50 ms', async () => {
  await using node = await TestDaemon.start({ maxForcing: 1 });
  const stuck: TestExecution[] = [];
  while (stuck.length < 4) stuck.push(await (await node.session()).ready(STUCK));
  const last = await (await node.session()).ready(IDLE);

  const begunMs = performance.now();
  for (const execution of stuck) await execution.cancel({ graceMs: 0 });
  await last.cancel({ graceMs: 0 });

  expect((await last.end()).result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
  expect(performance.now() - begunMs).toBeGreaterThan(195);
  for (const execution of stuck) {
    expect((await execution.end()).result).toMatchObject({ reason: 'cancelled', rung: 'cell' });
  }
});

test('a session that is closed by force leaves each of its guests the time to have its turn', {
  timeout: 180_000,
}, async () => {
  await using node = await TestDaemon.start({ maxForcing: 1, forcedLimitMs: 200 });
  const session = await node.session();
  const guests = await Promise.all(Array.from({ length: 40 }, () => session.ready(IDLE)));

  await session.close();

  for (const guest of guests) {
    const { result } = await guest.end();
    expect(result).toMatchObject({ reason: 'session_closed', rung: 'forced' });
    expect(result.usage?.threads).toBeDefined();
  }
});
