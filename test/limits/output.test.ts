import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, processesWith, TestDaemon, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

const LIMIT = 100_000;

/** Writes 1 MB in lines, then says on the other stream that it did. */
const WORDY = {
  javascript: 'for (let i = 0; i < 10_000; i++) console.log("x".repeat(99)); process.exitCode = 5;',
  python: 'import sys\nfor i in range(10_000): print("x" * 99)\nsys.exit(5)',
};
const FLOOD = {
  javascript: 'for (;;) console.log("x".repeat(99));',
  python: 'while True: print("x" * 99)',
};

test.each(ENGINES)('what a %s guest writes beyond its limit is counted and dropped, and it goes on', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const { result, stdout } = await session.run({ ...asked, code: WORDY[language], outputLimitBytes: LIMIT });

  expect(result).toMatchObject({ reason: 'failed', exitCode: 5 });
  expect(stdout).toBe(`${'x'.repeat(99)}\n`.repeat(LIMIT / 100));
  expect(result.usage).toMatchObject({ stdoutBytes: LIMIT, stderrBytes: 0, droppedBytes: 1_000_000 - LIMIT });
});

test.each(ENGINES)('a %s guest that is to end at its output limit does, with the head kept', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const { result, stdout } = await session.run({
    ...asked,
    code: FLOOD[language],
    outputLimitBytes: LIMIT,
    outputPolicy: 'kill',
  });

  expect(result).toMatchObject({ reason: 'output_exceeded', rung: 'forced', exitCode: 137 });
  expect(result.message).toMatch(/more than 100000 bytes/);
  expect(stdout).toBe(`${'x'.repeat(99)}\n`.repeat(LIMIT / 100));
});

test.each(['javascript', 'process'] as const)(
  'threads of a %s guest that write at once share its limit',
  async (engine) => {
    const asked = languageOf(engine);
    const writing = `const { writeSync } = require('node:fs');
    for (let i = 0; i < 100; i++) writeSync(1 + (i % 2), 'x'.repeat(1_000));`;
    const code = `const { Worker } = require('node:worker_threads');
    for (let i = 0; i < 4; i++) new Worker(${JSON.stringify(writing)}, { eval: true });`;

    const { result, stdout, stderr } = await session.run({ ...asked, code, outputLimitBytes: LIMIT });

    expect(result.reason).toBe('completed');
    expect(stdout.length + stderr.length).toBe(LIMIT);
    expect(result.usage?.droppedBytes).toBe(400_000 - LIMIT);
  },
);

test.each(ENGINES)('both streams of a %s guest count together', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = {
    javascript:
      'process.stdout.write("o".repeat(60)); process.stderr.write("e".repeat(60)); process.stdout.write("o");',
    python:
      'import sys\nsys.stdout.write("o" * 60); sys.stdout.flush(); sys.stderr.write("e" * 60); sys.stderr.flush()\nimport time\ntime.sleep(0.2)\nsys.stdout.write("o")',
  }[language];

  const { stdout, stderr, result } = await session.run({ ...asked, code, outputLimitBytes: 100 });

  expect(stdout.length + stderr.length).toBe(100);
  expect(result.usage?.droppedBytes).toBe(21);
});

test.each(ENGINES)('a line of 100 MB from a %s guest is fine, limited or not', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = {
    javascript: 'process.stdout.write(Buffer.alloc(100_000_000, "x")); process.stderr.write("end");',
    python: 'import sys\nsys.stdout.write("x" * 100_000_000); sys.stdout.flush(); sys.stderr.write("end")',
  }[language];

  const [whole, cut] = await Promise.all([
    session.submit({ ...asked, code }),
    session.submit({ ...asked, code, outputLimitBytes: 1_000 }),
  ]);
  await whole.daemon.wait(session.sessionId, whole.executionId);
  await cut.daemon.wait(session.sessionId, cut.executionId);

  expect((await whole.snapshot()).result).toMatchObject({
    reason: 'completed',
    usage: { stdoutBytes: 100_000_000, stderrBytes: 3, droppedBytes: 0 },
  });
  expect((await cut.snapshot()).result).toMatchObject({
    reason: 'completed',
    usage: { stdoutBytes: 1_000, stderrBytes: 0, droppedBytes: 99_999_003 },
  });
});

test.each([
  ['javascript', `require('child_process').spawn('sh', ['-c', 'yes'], { stdio: 'inherit' })`],
  ['process', `require('child_process').spawn('sh', ['-c', 'yes'], { stdio: 'inherit' })`],
  ['python', `import subprocess\nsubprocess.run(['sh', '-c', 'yes'])`],
] as const)('a child process of a %s guest has no output of its own to fill the disk with', async (engine, code) => {
  const asked = languageOf(engine);
  const flooding = await session.submit({ ...asked, code, outputLimitBytes: LIMIT });
  const ending = await session.run({
    ...asked,
    code,
    outputLimitBytes: LIMIT,
    outputPolicy: 'kill',
    timeoutMs: 50_000,
  });

  expect(ending.result.reason).toBe('output_exceeded');
  await eventually('more than the limit', async () => {
    const { droppedBytes } = await node.daemon.getExecutionMetrics(session.sessionId, flooding.executionId);
    return droppedBytes > 0;
  });
  await flooding.cancel({ signal: 'SIGKILL' });
  const { result, stdout } = await flooding.end();
  expect(result.reason).toBe('cancelled');
  expect(stdout).toHaveLength(LIMIT);
  expect(result.usage?.droppedBytes).toBeGreaterThan(0);
});

test.each(['javascript', 'process'] as const)(
  'what runs away from a %s guest with its output is gone with it, and fills no disk',
  async (engine) => {
    const command = `sleep 0.01${Math.floor(Math.random() * 1e9)}`;
    const writer = `: > up; while ${command}; do head -c 100000 /dev/zero; done`;
    const code = `const { existsSync } = require('node:fs');
      require('node:child_process').spawn('sh', ['-c', "setsid sh -c '${writer}' & exit 0"], { stdio: 'inherit' });
      setInterval(() => existsSync('up') && process.exit(), 10);`;

    const running = await session.submit({ ...languageOf(engine), code, outputLimitBytes: LIMIT });
    const { stdout } = await running.end();

    expect(processesWith(command)).toEqual([]);
    expect(stdout.length).toBeLessThanOrEqual(LIMIT);
  },
);

test('a thread that closes its output is held to its limit, and what runs away with that is gone with it', async () => {
  const own = await node.session();
  const command = `sleep 0.01${Math.floor(Math.random() * 1e9)}`;
  const writer = `while ${command}; do head -c 100000 /dev/zero; : > written; done`;
  const code = `const fs = require('node:fs');
    const isOutput = (fd) => {
      try {
        return /\\/std(out|err)$/.test(fs.readlinkSync('/proc/self/fd/' + fd));
      } catch {}
    };
    require('node:child_process').spawn('sh', ['-c', "setsid sh -c '${writer}' & exit 0"], { stdio: 'inherit' });
    // Node warns of it, on standard error.
    process.removeAllListeners('warning');
    const closing = setInterval(() => {
      if (!fs.existsSync('written')) return;
      clearInterval(closing);
      for (const fd of fs.readdirSync('/proc/self/fd').filter(isOutput)) fs.closeSync(Number(fd));
      fs.unlinkSync('written');
      setInterval(() => fs.existsSync('written') && process.exit(), 10);
    }, 10);`;

  const running = await own.submit({ code, outputLimitBytes: LIMIT });
  const { result, stdout } = await running.end();

  expect(result).toMatchObject({ reason: 'completed', usage: { stdoutBytes: LIMIT } });
  expect(processesWith(command)).toEqual([]);
  expect(stdout).toHaveLength(LIMIT);
});

test('what a process writes to its files by a way of its own counts, and is cut off at its end', async () => {
  const code = `const fs = require('node:fs');
    fs.writeFileSync(fs.openSync('/proc/' + process.pid + '/fd/1', 'a'), 'x'.repeat(1_000_000));`;

  const { result, stdout } = await session.run({ code, isolation: 'process', outputLimitBytes: LIMIT });

  expect(result).toMatchObject({ reason: 'completed', usage: { droppedBytes: 1_000_000 - LIMIT } });
  expect(stdout).toHaveLength(LIMIT);
});

test('who follows a flood of a child process gets no more of it than the limit', async () => {
  const code = `require('child_process').spawn('sh', ['-c', 'yes'], { stdio: 'inherit' });
    require('child_process').spawn('sh', ['-c', 'yes no >&2'], { stdio: 'inherit' })`;
  const flooding = await session.submit({ code, outputLimitBytes: LIMIT });
  const got = { stdout: '', stderr: '' };

  const followed = (async () => {
    for await (const { stream, data } of node.daemon.streamOutput(session.sessionId, flooding.executionId)) {
      got[stream] += data;
    }
  })();
  await eventually('more than the limit', async () => {
    const { droppedBytes } = await node.daemon.getExecutionMetrics(session.sessionId, flooding.executionId);
    return droppedBytes > 0;
  });
  await flooding.cancel({ signal: 'SIGKILL' });
  await followed;

  const { stdout, stderr } = await flooding.end();
  expect(stdout.length + stderr.length).toBe(LIMIT);
  // What of it is whose, is known only at the end.
  expect(got.stdout.length).toBeLessThanOrEqual(LIMIT);
  expect(got.stderr.length).toBeLessThanOrEqual(LIMIT);
  expect(got.stdout.startsWith(stdout) && got.stderr.startsWith(stderr)).toBe(true);
});

test('a cell that dies leaves no more of a flood than the limit', async () => {
  const own = await node.session();
  const flooding = await own.submit({
    code: `require('child_process').spawn('sh', ['-c', 'yes'], { stdio: 'inherit' });
      require('child_process').spawn('sh', ['-c', 'yes no >&2'], { stdio: 'inherit' })`,
    outputLimitBytes: LIMIT,
  });
  await eventually('more than the limit', async () => {
    const { droppedBytes } = await node.daemon.getExecutionMetrics(own.sessionId, flooding.executionId);
    return droppedBytes > 0;
  });

  process.kill(await own.cellPid(), 'SIGKILL');
  const { result, stdout, stderr } = await flooding.end();

  expect(result.reason).toBe('cell_lost');
  expect(stdout.length + stderr.length).toBe(LIMIT);
});

test.each(['the daemon', 'its caller'])(
  'what a python guest wrote and its cell had not read yet is in the files of %s when the cell is killed',
  async (whose) => {
    const own = await node.session();
    const directory = node.directory();
    const [out, err] = [join(directory, 'out'), join(directory, 'err')];
    const files = { stdout: out, stderr: err, maxFiles: 2, maxFileBytes: 2 ** 20 };
    const running = await own.submit({
      ...(whose === 'its caller' && { outputFiles: files }),
      language: 'python',
      code: `
import os, signal, sys, time
def write(*_):
    os.write(1, b'late\\n' * 10000)
    os.write(2, b'late too\\n')
    open('written', 'w').close()
signal.signal(signal.SIGUSR1, write)
print('ready', flush=True)
open('begun', 'w').close()
while True: time.sleep(1000)`,
      workingDirectory: directory,
    });
    await running.reached('running');
    await eventually('it has begun', () => existsSync(join(directory, 'begun')));
    // What the cell has taken out of the pipe, and not put into the files yet, would go with it.
    const first = async () => (whose === 'its caller' ? readFileSync(`${out}.0`, 'utf8') : running.printed('ready'));
    await eventually('its first line is in the files', async () => (await first()).includes('ready'));
    const cell = await own.cellPid();

    process.kill(cell, 'SIGSTOP');
    process.kill((await running.snapshot()).pid, 'SIGUSR1');
    await eventually('it has written', () => existsSync(join(directory, 'written')));
    process.kill(cell, 'SIGKILL');
    const { result, ...kept } = await running.end();
    const written = (path: string) => readFileSync(`${path}.0`, 'utf8');
    const { stdout, stderr } = whose === 'its caller' ? { stdout: written(out), stderr: written(err) } : kept;

    expect(result.reason).toBe('cell_lost');
    expect(stdout).toBe(`ready\n${'late\n'.repeat(10_000)}`);
    expect(stderr).toBe('late too\n');
  },
);

test.each([
  [undefined, 0],
  [LIMIT, 0],
  [undefined, 100],
  [LIMIT, 100],
])(
  'a guest with a limit of %s bytes that closes the file of its own output harms no neighbour that opens %i then',
  async (outputLimitBytes, opened) => {
    const own = await node.session();
    const workingDirectory = node.directory();
    const until = `const fs = require('node:fs');
      const until = (name, then) => {
        const timer = setInterval(() => fs.existsSync(name) && then(clearInterval(timer)), 5);
      };`;
    const neighbour = await own.submit({
      workingDirectory,
      code: `${until}
        until('closed', () => {
          // One of many has the number that is free now.
          const files = Array.from({ length: ${opened} }, (_, n) => fs.openSync('file' + n, 'w'));
          fs.writeFileSync('opened', '');
          until('go', () => files.forEach((fd) => fs.closeSync(fd)));
        });`,
    });
    await neighbour.reached('running');
    const closing = await own.submit({
      workingDirectory,
      outputLimitBytes,
      code: `${until}
        console.log('mine');
        for (const fd of fs.readdirSync('/proc/self/fd')) {
          try {
            const path = fs.readlinkSync('/proc/self/fd/' + fd);
            if (path.endsWith('/stdout') && fs.readFileSync(path, 'utf8') === 'mine\\n') fs.closeSync(Number(fd));
          } catch {}
        }
        fs.writeFileSync('closed', '');
        until('opened', () => {});`,
    });

    const { result, stdout } = await closing.end();
    writeFileSync(join(workingDirectory, 'go'), '');

    // Node warns of it, and may not get that written.
    expect(result.reason).toMatch(/completed|failed/);
    expect(stdout).toBe('mine\n');
    expect((await neighbour.end()).result.reason).toBe('completed');
  },
);

test('no file of an execution is larger than its limit', async () => {
  const output = join(node.root, 's', 'daemon', 'output');
  const files = readdirSync(output, { recursive: true, withFileTypes: true }).filter(
    (entry) => entry.isFile() && entry.name !== 'marks',
  );

  expect(files.length).toBeGreaterThan(0);
  const sizes = files.map(({ parentPath, name }) => statSync(join(parentPath, name)).size);
  expect(sizes.filter((size) => size > LIMIT && size !== 100_000_000)).toEqual([]);
});
