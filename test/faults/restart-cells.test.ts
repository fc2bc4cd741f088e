import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, existsSync, openSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs';
import { devNull } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { processName } from '../../src/processes.ts';
import { childrenOf, descendants, eventually, isAlive, processesWith } from '../support/daemon.ts';
import { installed } from './installed.ts';
import { FaultNode } from './node.ts';
import { COUNTER, LANGUAGES } from './restarted.ts';

test.each(LANGUAGES)(
  'what a %s guest has started ends with its cell, also while there is no daemon and without control groups',
  async (language) => {
    await using node = await FaultNode.start({ controlGroups: false });
    await node.client.createSession('s');
    const seconds = `600.${process.pid}${Date.now()}`;
    const code = {
      javascript: `require('child_process').spawn('sleep', ['${seconds}']).on('spawn', () => console.log('ready'));`,
      python: `import subprocess\nchild = subprocess.Popen(['sleep', '${seconds}'])\nprint('ready', flush=True)\nchild.wait()`,
    }[language];
    await node.ready({ executionId: 'e', language, code });
    const cells = node.cellPids();
    const started = () => processesWith(`sleep ${seconds}`);
    await eventually('what it has started is seen', () => started().length === 1);
    const left = started();

    await node.end();
    // With the zygote and its shepherds, stopped first: nobody is left to end anything.
    const all = cells.flatMap((pid) => [pid, ...descendants(pid)]).filter((pid) => !left.includes(pid));
    for (const signal of ['SIGSTOP', 'SIGKILL'] as const) for (const pid of all) process.kill(pid, signal);
    await node.start();
    const { result } = await node.client.wait('s', 'e');

    expect(result).toMatchObject({ reason: 'daemon_lost', exitCode: -1 });
    expect(left.filter(isAlive)).toEqual([]);
  },
);

test.each([
  ['socket is gone', (base: string) => rmSync(`${base}.sock`)],
  ['token is another', (base: string) => writeFileSync(`${base}.token`, 'another')],
])('a cell whose %s is ended with all that it holds, before that counts as lost', async (_, harm) => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  for (const language of LANGUAGES) await node.ready({ executionId: language, language, code: COUNTER[language] });
  const cells = node.cellPids();
  const all = cells.flatMap((pid) => [pid, ...descendants(pid)]);
  await node.end();
  const directory = join(node.stateDir, 'daemon', 'cells');
  for (const name of readdirSync(directory)) if (name.endsWith('.sock')) harm(join(directory, name.slice(0, -5)));

  await node.start();

  expect(cells).toHaveLength(2);
  for (const language of LANGUAGES) {
    const { result } = await node.client.wait('s', language);
    expect(result).toMatchObject({ reason: 'daemon_lost', exitCode: -1 });
    expect(await node.steps(language)).toEqual(['pending', 'running', 'exited']);
  }
  expect(all.filter(isAlive)).toEqual([]);
  expect(readdirSync(directory)).toEqual([]);
});

test('a cell that was made without control groups gets no guests whose limits the next daemon holds by them', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  await node.ready({ executionId: 'kept', language: 'python', code: COUNTER.python, stdin: true });
  const code = `
import os, time
try:
    for count in range(10):
        if os.fork() == 0: time.sleep(600)
    print('all were forked')
except OSError as error: print(error)`;

  await node.end();
  await node.start({});
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'python', code, processLimit: 3 });
  const { warnings } = await node.client.wait('s', 'e');
  const stdout = await node.stdout('e');
  await node.client.writeInput('s', 'kept', Buffer.from('end\n'));

  // Where there are none for this daemon either, it says so.
  expect(stdout.includes('all were forked')).toBe(warnings.length > 0);
  expect((await node.client.wait('s', 'kept')).result).toMatchObject({ exitCode: 7 });
});

test('what is kept warm is in the cell that new guests go to, also while an older one gets none', async () => {
  await using node = await FaultNode.start({ controlGroups: false, cellIdleMs: 600_000 });
  await node.client.createSession('s', { contextPoolSize: 1, executionDefaults: { isolation: 'process' } });
  await node.ready({ executionId: 'kept', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const [older = 0] = node.cellPids();
  await eventually('one is warm', () => childrenOf(older).length === 2);

  await node.restart({ cellIdleMs: 600_000 });
  await node.client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code: '0' });
  await node.client.wait('s', 'e');

  // Where there are no control groups, the older one gets new guests.
  const cells = node.cellPids();
  const inOlder = cells.length === 1 ? 2 : 1;
  await eventually('one is kept, and one is warm where new guests go to', () => {
    return childrenOf(older).length === inOlder && cells.flatMap((pid) => childrenOf(pid)).length === 2;
  });
});

test.each(LANGUAGES)(
  'a cell that holds more %s guests than one may hold now goes on with them, and gets no more',
  async (language) => {
    await using node = await FaultNode.start({ contextsPerCell: 6, processesPerCell: 6 });
    await node.client.createSession('s');
    const ids = ['0', '1', '2', '3'];
    for (const executionId of ids) {
      await node.ready({ executionId, language, code: COUNTER[language], stdin: true });
    }
    const [full = 0] = node.cellPids();

    await node.end();
    await node.start({ contextsPerCell: 2, processesPerCell: 2 });
    await node.ready({ executionId: 'later', language, code: COUNTER[language], stdin: true });

    const { cells } = await node.client.getSession('s');
    expect(cells.map(({ pid, executions }) => [pid === full, executions])).toEqual([
      [true, 4],
      [false, 1],
    ]);
    for (const executionId of [...ids, 'later']) {
      await node.client.writeInput('s', executionId, Buffer.from('end\n'));
      expect((await node.client.wait('s', executionId)).result).toMatchObject({ reason: 'failed', exitCode: 7 });
    }
  },
);

/** Processes that look as if they were started for the node's one cell. */
function impostorsOf(node: FaultNode): number[] {
  const directory = join(node.stateDir, 'daemon', 'cells');
  const [socket = ''] = readdirSync(directory).filter((name) => name.endsWith('.sock'));
  const places = [socket, socket.replace('.sock', '.token')].map((name) => join(directory, name));
  return [1, 2].map(() => {
    const child = spawn('sh', ['-c', 'sleep 600; :', ...places], { detached: true, stdio: 'ignore' });
    onTestFinished(() => void (child.exitCode ?? child.signalCode ?? process.kill(-(child.pid as number), 'SIGKILL')));
    return child.pid as number;
  });
}

test('a cell is taken over, and can be ended, whatever else says that it is its process', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  const code = `console.log('ready');
    setTimeout(() => require('node:crypto').pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512'), 50);`;
  await node.ready({ executionId: 'stuck', code });
  const [cell] = node.cellPids();
  await node.end();
  impostorsOf(node);

  await node.start();

  const { cells } = await node.client.getSession('s');
  expect(cells.map(({ pid }) => pid)).toEqual([cell]);
  await node.client.cancelExecution('s', 'stuck', { graceMs: 0 });
  expect((await node.client.wait('s', 'stuck')).result).toMatchObject({ reason: 'cancelled', rung: 'cell' });
});

test('a cell that makes JavaScript of a large program is waited for, and its guests run on', {
  timeout: 120_000,
}, async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'neighbour', code: "setInterval(() => {}, 1000); console.log('ready');" });
  const line = 'function f(a: number, b: string): string { return a + b; }\n';
  const code = `${line.repeat((16 * 2 ** 20) / line.length)}process.exit(3);`;
  const isWritten = () =>
    readdirSync(join(node.stateDir, 'work'), { recursive: true }).some((name) => String(name).endsWith('.ts'));

  await node.client.executeSnippet({ sessionId: 's', executionId: 'large', language: 'typescript', code });
  await eventually('the cell is at the large program', isWritten, 60_000);
  // It goes on once the next daemon asks.
  for (const pid of node.cellPids()) process.kill(pid, 'SIGSTOP');
  await node.restart();

  expect((await node.client.wait('s', 'large')).result).toMatchObject({ exitCode: 3 });
  expect((await node.client.getExecutionStatus('s', 'neighbour')).state).toBe('running');
});

test('where no cell answers, all that says it is its process is ended', async () => {
  await using node = await FaultNode.start({ controlGroups: false });
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: "setInterval(() => {}, 1000); console.log('ready');" });
  await node.end();
  const impostors = impostorsOf(node);
  for (const pid of node.cellPids()) if (!impostors.includes(pid)) process.kill(pid, 'SIGKILL');

  await node.start();

  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost' });
  expect(impostors.filter(isAlive)).toEqual([]);
});

test.each([
  ['another process that has the id of a guest, or of its cell, by now', 'echo $$; exec sleep 600', undefined],
  ['a session without its leader that has that id in a later container', 'sleep 600 & echo $!', 'another'],
])('%s is left alone', async (_, script, givenIn) => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', language: 'python', code: COUNTER.python });
  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  const leader = spawn('sh', ['-c', script], { detached: true, stdio: ['ignore', 'pipe', 'ignore'] });
  const pid = leader.pid as number;
  const other = Number((await once(leader.stdout as Readable, 'data'))[0]);
  onTestFinished(() => void process.kill(other, 'SIGKILL'));
  await eventually('a leader that is not it is gone', () => isAlive(pid) === (pid === other));
  const [boot, , startTime, here] = (processName(process.pid) as string).split(' ');
  const name = `${boot} ${pid} ${startTime} ${givenIn ?? here}`;
  const daemonDirectory = join(node.stateDir, 'daemon');
  const [file = '', ...files] = readdirSync(join(daemonDirectory, 'cells')).filter((each) => /\.process$/.test(each));
  writeFileSync(join(daemonDirectory, 'cells', file), name);
  const journal = new DatabaseSync(join(daemonDirectory, 'journal.db'));
  const tell = journal.prepare(
    "UPDATE events SET event = json_set(event, '$.process', ?, '$.pid', ?) WHERE event ->> 'state' = 'running'",
  );
  expect(tell.run(name, pid).changes).toBe(1);
  journal.close();

  await node.start();

  expect(files).toEqual([]);
  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost' });
  expect(isAlive(other)).toBe(true);
});

test('the guest of a worn cell runs on under the next daemon, and its cell is let go after it', {
  timeout: 180_000,
}, async () => {
  await using node = await FaultNode.start({ cellIdleMs: 600_000 });
  await node.client.createSession('s');
  const code = "process.on('SIGUSR2', () => console.log('heard')); setInterval(() => {}, 1000); console.log('ready');";
  await node.ready({ executionId: 'stays', code });
  const [worn = 0] = node.cellPids();
  const run = async (executionId: string, program: string) => {
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code: program });
    expect((await node.client.wait('s', executionId)).result?.reason).toBe('completed');
  };
  const spawns = "for (let i = 0; i < 70; i += 1) require('child_process').spawn('sleep', ['600']); process.exit(0);";
  await run('spawns', spawns);
  let runs = 0;
  await eventually('others run in another cell', async () => {
    await run(`run-${runs++}`, '0');
    return node.cellPids().length === 2;
  });

  await node.restart();
  await run('later', '0');

  const { cells } = await node.client.getSession('s');
  expect(cells.find(({ pid }) => pid === worn)).toMatchObject({ state: 'ready', executions: 1 });
  await node.client.signalExecution('s', 'stays', 'SIGUSR2');
  await node.printed('stays', 'heard');
  await node.client.cancelExecution('s', 'stays');
  await eventually('its cell is gone', () => !isAlive(worn));
  expect(node.cellPids()).toHaveLength(1);
});

test('cells of another version go on with their guests, and get no more', async () => {
  const { main, replace } = installed();
  await using node = await FaultNode.start({ onStop: 'detach', cellIdleMs: 600_000 }, { main });
  const run = async (sessionId: string, executionId: string) => {
    await node.client.executeSnippet({ sessionId, executionId, language: 'javascript', code: '0' });
    return (await node.client.wait(sessionId, executionId)).result;
  };
  for (const sessionId of ['s', 'idle']) await node.client.createSession(sessionId, { contextPoolSize: 1 });
  for (const language of LANGUAGES) {
    await node.ready({ executionId: language, language, code: COUNTER[language], stdin: true });
  }
  await run('idle', 'before');
  const older = node.cellPids();
  const [idle = 0] = (await node.client.getSession('idle')).cells.map(({ pid }) => pid);

  await node.end('SIGTERM');
  replace();
  await node.start({ cellIdleMs: 600_000 });

  for (const sessionId of ['s', 'idle']) {
    for (const executionId of ['1', '2', '3']) {
      expect(await run(sessionId, executionId)).toMatchObject({ reason: 'completed', exitCode: 0 });
    }
  }
  await eventually('the one without guests is gone', () => !isAlive(idle));
  await node.ready({ executionId: 'later', language: 'python', code: COUNTER.python, stdin: true });
  const { cells } = await node.client.getSession('s');
  expect(cells.map(({ pid, executions }) => [older.includes(pid), executions]).sort()).toEqual([
    [false, 0],
    [false, 1],
    [true, 1],
    [true, 1],
  ]);
  for (const executionId of [...LANGUAGES, 'later']) {
    await node.client.writeInput('s', executionId, Buffer.from('end\n'));
    expect((await node.client.wait('s', executionId)).result).toMatchObject({ reason: 'failed', exitCode: 7 });
  }
  await eventually('they are gone after their guests', () => older.every((pid) => !isAlive(pid)));
});

/** How much comes out of a pipe until nobody writes to it any more, in bytes; it takes 1.25 MiB a second at most. */
async function readSlowly(pipe: number): Promise<number> {
  const chunk = Buffer.alloc(65_536);
  let length = 0;
  for (;;) {
    try {
      const count = readSync(pipe, chunk);
      if (count === 0) return length;
      length += count;
    } catch {
      // There is nothing in it now.
    }
    await sleep(50);
  }
}

test.each([
  ['is of another version', false],
  ['is taken over by another version after that', true],
])(
  'what is left of the output of a guest that was forced follows also where its cell %s',
  async (_, isForcedBefore) => {
    const { main, replace } = installed();
    await using node = await FaultNode.start({ onStop: 'detach', cellIdleMs: 600_000 }, { main });
    await node.client.createSession('s');
    const [stdout, done] = [join(node.root, 'out'), join(node.root, 'done')];
    execFileSync('mkfifo', [stdout]);
    const pipe = openSync(stdout, constants.O_RDONLY | constants.O_NONBLOCK);
    onTestFinished(() => closeSync(pipe));
    const length = 8 * 2 ** 20;
    await node.client.executeSnippet({
      sessionId: 's',
      executionId: 'e',
      language: 'javascript',
      isolation: 'process',
      code: `
      const { writeFileSync, writeSync } = require('node:fs');
      const all = Buffer.alloc(${length}, 'x');
      for (let at = 0; at < all.length; ) at += writeSync(1, all, at);
      writeFileSync('${done}', '');
      setInterval(() => {}, 1000);`,
      outputFiles: { stdout, stderr: devNull, maxFiles: 0, maxFileBytes: 0 },
    });
    await eventually('all is written', () => existsSync(done));
    const upgrade = async () => {
      await node.end('SIGTERM');
      replace();
      await node.start({ cellIdleMs: 600_000 });
    };
    if (!isForcedBefore) await upgrade();

    await node.client.cancelExecution('s', 'e', { signal: 'SIGKILL', graceMs: 0 });
    const read = readSlowly(pipe);

    expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'cancelled', rung: 'forced' });
    if (isForcedBefore) await upgrade();
    expect(await read).toBe(length);
  },
);
