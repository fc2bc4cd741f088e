import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectDaemon } from '../../src/client/index.ts';
import type { OutputFiles } from '../../src/supervisor/requests.ts';
import { eventually, processesWith, TestDaemon, type TestSession } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';

let daemon: TestDaemon;
let session: TestSession;

beforeAll(async () => {
  daemon = await TestDaemon.start();
  session = await daemon.session();
});
afterAll(() => daemon[Symbol.asyncDispose]());

/** In a directory of its own. */
function filesIn(directory: string, rotation: Partial<OutputFiles> = {}): OutputFiles {
  const [stdout, stderr] = [join(directory, 'task.stdout'), join(directory, 'task.stderr')];
  return { stdout, stderr, maxFiles: 3, maxFileBytes: 1024, ...rotation };
}

function numbersOf(path: string): number[] {
  const [directory, name] = [join(path, '..'), `${path.slice(path.lastIndexOf('/') + 1)}.`];
  const files = readdirSync(directory).filter((file) => file.startsWith(name));
  return files.map((file) => Number(file.slice(name.length))).sort((a, b) => a - b);
}

const contentOf = (path: string) => numbersOf(path).map((number) => readFileSync(`${path}.${number}`, 'utf8'));

const LINES = {
  javascript: 'for (let i = 0; i < 300; i += 1) console.log(String(i).padStart(9, "0")); console.error("end");',
  python: 'import sys\nfor i in range(300): print(f"{i:09}")\nprint("end", file=sys.stderr)',
};
const wanted = Array.from({ length: 300 }, (_, i) => `${String(i).padStart(9, '0')}\n`).join('');

describe.each(Object.entries(LINES))('%s', (language, code) => {
  test('output fills one file after another, and the newest are kept', async () => {
    const outputFiles = filesIn(daemon.directory());

    const { result, stdout } = await session.run({ language, code, outputFiles });

    expect(result.reason).toBe('completed');
    expect(stdout).toBe('');
    expect(numbersOf(outputFiles.stdout)).toEqual([0, 1, 2]);
    expect(contentOf(outputFiles.stdout).join('')).toBe(wanted);
    expect(
      contentOf(outputFiles.stdout)
        .slice(0, 2)
        .map(({ length }) => length),
    ).toEqual([1024, 1024]);
    expect(contentOf(outputFiles.stderr)).toEqual(['end\n']);
  });

  test('the oldest files are removed beyond their number, and the next execution goes on in the newest', async () => {
    const outputFiles = filesIn(daemon.directory(), { maxFiles: 2 });

    await session.run({ language, code, outputFiles });
    await session.run({ language, code, outputFiles });

    expect(numbersOf(outputFiles.stdout)).toEqual([4, 5]);
    const kept = contentOf(outputFiles.stdout).join('');
    expect((wanted + wanted).endsWith(kept)).toBe(true);
    expect(kept.length).toBe(1024 + ((2 * 3000) % 1024));
    expect(contentOf(outputFiles.stderr)).toEqual(['end\nend\n']);
  });

  test('the output limit counts what this execution wrote, whatever was in the files', async () => {
    const outputFiles = filesIn(daemon.directory(), { maxFiles: 9 });
    writeFileSync(`${outputFiles.stdout}.0`, 'x'.repeat(1000));

    const { result } = await session.run({ language, code, outputFiles, outputLimitBytes: 2000 });

    expect(result.usage?.droppedBytes).toBe(3004 - 2000);
    expect(contentOf(outputFiles.stdout).join('')).toBe('x'.repeat(1000) + wanted.slice(0, 2000));
  });
});

test('what a thread printed before it is killed is in the file', async () => {
  const outputFiles = filesIn(daemon.directory());
  const code = 'console.log("last words"); process.kill(process.pid, "SIGKILL")';

  const { result } = await session.run({ code, outputFiles });

  expect(result.signal).toBe('SIGKILL');
  expect(contentOf(outputFiles.stdout)).toEqual(['last words\n']);
});

test('threads of one program fill the same files', async () => {
  const outputFiles = filesIn(daemon.directory(), { maxFiles: 9 });
  const code = `
    const { Worker } = require('node:worker_threads');
    for (let n = 0; n < 2; n += 1) new Worker('for (let i = 0; i < 200; i += 1) console.log("012345678")', { eval: true });
    for (let i = 0; i < 200; i += 1) console.log('012345678');
  `;

  await session.run({ code, outputFiles });

  expect(contentOf(outputFiles.stdout).join('').length).toBe(600 * 10);
  expect(Math.max(...contentOf(outputFiles.stdout).map(({ length }) => length))).toBeLessThan(2 * 1024);
});

test.each([
  ['thread', 0],
  ['thread', 3],
  ['process', 0],
  ['process', 3],
] as const)(
  'what a child of a %s writes counts, and ends at its limit a guest that is to end there (maxFiles: %i)',
  async (isolation, maxFiles) => {
    const outputFiles = filesIn(daemon.directory(), { maxFiles, maxFileBytes: 2 ** 20 });
    if (maxFiles === 0) execFileSync('mkfifo', [outputFiles.stdout, outputFiles.stderr]);
    const writer = 'while sleep 0.01; do head -c 10000 /dev/zero; done';
    const code = `require('node:child_process').spawn('sh', ['-c', '${writer}'], { stdio: 'inherit' });
      setInterval(() => {}, 1000);`;

    const { result } = await session.run({
      code,
      isolation,
      outputFiles,
      outputLimitBytes: 100_000,
      outputPolicy: 'kill',
      timeoutMs: 20_000,
    });

    expect(result).toMatchObject({
      reason: 'output_exceeded',
      message: expect.stringMatching(/more than 100000 bytes/),
    });
  },
);

test.each([
  ['thread', 'files'],
  ['thread', 'pipes'],
  ['process', 'files'],
  ['process', 'pipes'],
] as const)(
  'what runs away from a %s with its output is gone with it, and nobody else who has the %s',
  async (isolation, kind) => {
    const isPipe = kind === 'pipes';
    const outputFiles = filesIn(daemon.directory(), isPipe ? { maxFiles: 0 } : {});
    if (isPipe) execFileSync('mkfifo', [outputFiles.stdout, outputFiles.stderr]);
    else writeFileSync(`${outputFiles.stdout}.0`, '');
    const collector = isPipe ? undefined : spawn('sh', ['-c', `exec sleep 600 >> ${outputFiles.stdout}.0`]);
    const command = `sleep 0.02${Math.floor(Math.random() * 1e9)}`;
    const writer = `trap "" HUP TERM; : > up; while ${command}; do echo x; done`;
    const code = `const { existsSync } = require('node:fs');
    // With an argument such as a cell has, which makes it none.
    const command = ${JSON.stringify(`setsid sh -c '${writer}' writer /cell/main.js & exit 0`)};
    require('node:child_process').spawn('sh', ['-c', command], { detached: true, stdio: 'inherit' });
    setInterval(() => existsSync('up') && process.exit(), 10);`;

    const { result } = await session.run({ code, isolation, outputFiles, workingDirectory: daemon.directory() });

    expect(result.reason).toBe('completed');
    expect(processesWith(command)).toEqual([]);
    expect(collector?.exitCode ?? collector?.signalCode ?? 'none').toBe('none');
    collector?.kill();
  },
);

test('what runs away with the output of a thread is gone with it also where the directory of its files is', async () => {
  const logs = daemon.directory();
  const command = `sleep 0.02${Math.floor(Math.random() * 1e9)}`;
  const writer = `trap "" HUP TERM; : > up; while ${command}; do echo x; done`;
  const code = `const { existsSync, rmSync } = require('node:fs');
    const command = ${JSON.stringify(`setsid sh -c '${writer}' & exit 0`)};
    require('node:child_process').spawn('sh', ['-c', command], { detached: true, stdio: 'inherit' });
    const end = () => {
      rmSync(${JSON.stringify(logs)}, { recursive: true });
      process.exit();
    };
    setInterval(() => existsSync('up') && end(), 10);`;

  await session.run({ code, outputFiles: filesIn(logs), workingDirectory: daemon.directory() });

  expect(existsSync(logs)).toBe(false);
  expect(processesWith(command)).toEqual([]);
});

test('a symbolic link in the place of a file is not followed', async () => {
  const outputFiles = filesIn(daemon.directory());
  const elsewhere = join(daemon.directory(), 'elsewhere');
  writeFileSync(elsewhere, '');
  symlinkSync(elsewhere, `${outputFiles.stdout}.0`);

  const { result } = await session.run({ code: 'console.log(1)', outputFiles });

  expect(result.reason).toBe('start_failed');
  expect(result.message).toContain('ELOOP');
  expect(readFileSync(elsewhere, 'utf8')).toBe('');
});

test('a pipe in the place of a file is not waited for', async () => {
  const outputFiles = filesIn(daemon.directory());
  execFileSync('mkfifo', [`${outputFiles.stdout}.0`]);

  const { result } = await session.run({ code: 'console.log(1)', outputFiles });

  expect(result).toMatchObject({ reason: 'start_failed', message: expect.stringContaining('task.stdout.0') });
});

test.each([
  [{ maxFiles: 1001 }, 'config.output_files.max_files is 1001'],
  [{ maxFileBytes: 1023 }, 'config.output_files.max_file_bytes is 1023'],
  [{ maxFileBytes: 1024.5 }, 'config.output_files.max_file_bytes is 1024.5'],
  [{ maxFiles: 0, maxFileBytes: 0.5 }, 'config.output_files.max_file_bytes is 0.5'],
  [{ maxFiles: 0, maxFileBytes: 2 ** 64 }, `config.output_files.max_file_bytes is ${2 ** 64}`],
  [{ maxFiles: 0 }, /config.output_files.stdout ".*": ENOENT/],
  [{ stdout: '/nowhere/out' }, 'config.output_files.stdout "/nowhere": ENOENT'],
  [{ stderr: 'here/err' }, 'config.output_files.stderr "here" is not an absolute path'],
])('%o is refused', async (wrong, message) => {
  const outputFiles = { ...filesIn(daemon.directory()), ...wrong };

  await expect(session.submit({ code: '1', outputFiles })).rejects.toThrow(message);
});

describe('pipes', () => {
  const MIB = 2 ** 20;

  function pipesIn(directory: string): OutputFiles {
    const pipes = filesIn(directory, { maxFiles: 0, maxFileBytes: 0 });
    execFileSync('mkfifo', [pipes.stdout, pipes.stderr]);
    return pipes;
  }

  const reader = (path: string) => spawn('cat', [path], { stdio: ['ignore', 'pipe', 'inherit'] });

  const NONBLOCKING = constants.O_RDONLY | constants.O_NONBLOCK;

  /** A page of what is in a pipe, or what there is. */
  function taken(pipe: number): Buffer {
    const page = Buffer.alloc(4096);
    try {
      return page.subarray(0, readSync(pipe, page));
    } catch {
      return page.subarray(0, 0);
    }
  }

  /** What waits for readers, in bytes. */
  function waiting(): number {
    const output = join(daemon.daemon.config.stateDir, 'daemon', 'output');
    const files = readdirSync(output, { recursive: true, encoding: 'utf8' }).filter((name) => name.includes('.spool.'));
    return files.reduce((sum, name) => sum + (statSync(join(output, name), { throwIfNoEntry: false })?.size ?? 0), 0);
  }

  /** What cells had to say. */
  function cellLogs(): string {
    const cells = join(daemon.daemon.config.stateDir, 'daemon', 'cells');
    const logs = readdirSync(cells).filter((name) => name.endsWith('.log'));
    return logs.map((name) => readFileSync(join(cells, name), 'utf8')).join('');
  }

  test.each(Object.entries(LINES))(
    '%s output is in them, whole at the end, and nothing stays',
    async (language, code) => {
      const pipes = pipesIn(daemon.directory());
      const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
      const read = Promise.all([text(out.stdout), text(err.stdout)]);

      const { stdout } = await session.run({ language, code, outputFiles: pipes });

      expect(await read).toEqual([wanted, 'end\n']);
      expect(stdout).toBe('');
      expect(waiting()).toBe(0);
    },
  );

  test('one that cannot be opened for a while gets everything when it can', async () => {
    await using own = await DaemonProcess.startWithoutRights();
    using client = connectDaemon({ socket: own.socket });
    await client.createSession('s');
    const pipes = pipesIn(own.directory);
    const may = (mode: number) => [pipes.stdout, pipes.stderr].forEach((path) => void chmodSync(path, mode));
    may(0o666);
    const workingDirectory = join(own.directory, 'work');
    mkdirSync(workingDirectory);
    chmodSync(workingDirectory, 0o777);
    // By then it has been tried often.
    const code =
      'console.log("out"); console.error("err"); setTimeout(() => require("node:fs").writeFileSync("done", ""), 500)';
    const ids = { sessionId: 's', executionId: 'e' };

    await client.executeSnippet({ ...ids, language: 'javascript', code, workingDirectory, outputFiles: pipes });
    may(0o400);
    await eventually('it is done', () => existsSync(join(workingDirectory, 'done')));
    may(0o666);

    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    expect(await Promise.all([text(out.stdout), text(err.stdout)])).toEqual(['out\n', 'err\n']);
  });

  test('a reader that comes late gets everything, and stalls no guest', async () => {
    const pipes = pipesIn(daemon.directory());
    const code =
      'console.log("x".repeat(1e6)); require("node:fs").writeFileSync("done", ""); setInterval(() => {}, 1000)';
    const workingDirectory = daemon.directory();

    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    await eventually('all is written', () => existsSync(join(workingDirectory, 'done')));
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    const read = Promise.all([text(out.stdout), once(err, 'exit')]);
    await execution.cancel({ graceMs: 0 });

    expect((await read)[0]).toBe(`${'x'.repeat(1e6)}\n`);
  });

  const MUCH = {
    javascript:
      'const line = Buffer.alloc(2 ** 20, "x"); for (let i = 0; i < COUNT; i += 1) { line.writeUInt32BE(i); require("node:fs").writeSync(1, line) } require("node:fs").writeFileSync("done", ""); setInterval(() => {}, 1000)',
    python:
      'import os, time\nline = bytes(2 ** 20 - 4)\nfor i in range(COUNT): os.write(1, i.to_bytes(4) + line)\nopen("done", "w").close()\ntime.sleep(60)',
  };

  test.each(Object.entries(MUCH))('what %s writes is removed once it is read', async (language, source) => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = source.replace('COUNT', '45');
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    const closed = once(out, 'close');
    let read = 0;
    out.stdout.on('data', (chunk: Buffer) => {
      read += chunk.byteLength;
    });
    err.stdout.resume();

    const execution = await session.submit({ language, code, workingDirectory, outputFiles: pipes });

    await eventually('all has come', () => read >= 45 * MIB - 3);
    await eventually('what was read is gone', () => waiting() <= 20 * MIB);
    expect(cellLogs()).toBe('');
    await execution.cancel({ graceMs: 0 });
    await closed;
    expect(read).toBe(45 * MIB);
    expect(waiting()).toBe(0);
  });

  test.each(Object.entries(MUCH))('of what %s writes for nobody the newest waits', async (language, source) => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = source.replace('COUNT', '125');

    const execution = await session.submit({ language, code, workingDirectory, outputFiles: pipes });
    await eventually('all is written', () => existsSync(join(workingDirectory, 'done')));
    await eventually('only the newest waits', () => waiting() <= 100 * MIB);
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    err.stdout.resume();
    const numbers: number[] = [];
    let line = Buffer.alloc(0);
    out.stdout.on('data', (chunk: Buffer) => {
      line = Buffer.concat([line, chunk]);
      for (; line.byteLength >= MIB; line = line.subarray(MIB)) numbers.push(line.readUInt32BE());
    });
    await eventually('the last has come', () => numbers.at(-1) === 124);

    expect(numbers).toEqual(Array.from({ length: numbers.length }, (_, i) => 125 - numbers.length + i));
    expect(numbers.length).toBeGreaterThan(90);
    await execution.cancel({ graceMs: 0 });
  });

  test('a child process that has an older file is read to its last word', async () => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = `
      const { spawn } = require('node:child_process');
      const { existsSync, writeSync } = require('node:fs');
      const child = spawn('sh', ['-c', 'echo first; until [ -e go ]; do sleep 0.02; done; echo last'], { stdio: ['ignore', 1, 2] });
      const line = Buffer.alloc(2 ** 20, 'x');
      for (let i = 0; i < 35; i += 1) writeSync(1, line);
      child.on('exit', () => process.exit(0));
    `;
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    const closed = once(out, 'close');
    let read = 0;
    let last = '';
    out.stdout.on('data', (chunk: Buffer) => {
      read += chunk.byteLength;
      last = chunk.subarray(-6).toString('latin1');
    });
    err.stdout.resume();

    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    await eventually('all but the last has come', () => read === 35 * MIB + 6 && waiting() <= 30 * MIB);
    writeFileSync(join(workingDirectory, 'go'), '');
    await execution.end();
    await closed;

    expect([read, last]).toEqual([35 * MIB + 11, expect.stringContaining('last\n')]);
  });

  test('what a child process writes after it has begun a stream anew is read', async () => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = `
      const { execSync } = require('node:child_process');
      for (const stream of ['stdout', 'stderr']) process[stream].write('the first line\\n');
      const command = 'until [ -e go ]; do sleep 0.02; done; echo out > /dev/stdout; echo err > /dev/stderr';
      execSync(command, { stdio: 'inherit' });
      for (const stream of ['stdout', 'stderr']) process[stream].write('last\\n');
    `;
    const read = { stdout: '', stderr: '' };
    const readers = (['stdout', 'stderr'] as const).map((stream) => {
      const child = reader(pipes[stream]);
      child.stdout.on('data', (data: Buffer) => {
        read[stream] += data;
      });
      return once(child, 'close');
    });

    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    await eventually('the first lines have come', () => !Object.values(read).includes(''));
    writeFileSync(join(workingDirectory, 'go'), '');
    const { result } = await execution.end();
    await Promise.all(readers);

    expect(result.reason).toBe('completed');
    expect(read).toEqual({ stdout: 'the first line\nout\nlast\n', stderr: 'the first line\nerr\nlast\n' });
  });

  test('a reader that goes is followed by one that has all the rest, once', async () => {
    const pipes = pipesIn(daemon.directory());
    const count = 30_000;
    const code = `for (let i = 0; i < ${count}; i += 1) console.log(String(i).padStart(9, '0')); setInterval(() => {}, 1000)`;
    const err = reader(pipes.stderr);
    const first = spawn('head', ['-c', '90000', pipes.stdout], { stdio: ['ignore', 'pipe', 'inherit'] });

    const execution = await session.submit({ code, outputFiles: pipes });
    let read = await text(first.stdout);
    const next = reader(pipes.stdout);
    next.stdout.on('data', (data: Buffer) => {
      read += data;
    });
    await eventually('the last has come', () => read.endsWith(`${count - 1}\n`));
    await execution.cancel({ graceMs: 0 });

    expect(read).toBe(Array.from({ length: count }, (_, i) => `${String(i).padStart(9, '0')}\n`).join(''));
    err.kill();
  });

  test('what a reader leaves in a pipe is there for the next one, also when the guest has ended meanwhile', async () => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = `console.log('one');
      const { existsSync } = require('node:fs');
      setInterval(() => { if (existsSync('go')) process.exit(); }, 5)`;
    const look = 'import os, select, sys; select.select([os.open(sys.argv[1], os.O_RDONLY)], [], [])';
    const err = reader(pipes.stderr);

    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    await once(spawn('python3', ['-c', look, pipes.stdout], { stdio: 'inherit' }), 'exit');
    writeFileSync(join(workingDirectory, 'go'), '');
    const ended = execution.end();
    await Promise.race([ended, once(err, 'exit').then(() => wait(200))]);
    const next = openSync(pipes.stdout, NONBLOCKING);
    await ended;

    expect(String(taken(next))).toBe('one\n');
    closeSync(next);
  });

  test('a reader that takes little at a time gets everything', async () => {
    const pipes = pipesIn(daemon.directory());
    const length = 150_000;
    const err = reader(pipes.stderr);
    const out = openSync(pipes.stdout, NONBLOCKING);

    const execution = await session.submit({ code: `process.stdout.write('x'.repeat(${length}))`, outputFiles: pipes });
    let read = 0;
    let isOver = false;
    const ended = execution.end().then(() => {
      isOver = true;
    });
    // A chunk takes longer than an end waits for a reader that takes nothing, a page does not.
    for (; !isOver; read += taken(out).byteLength) await wait(200);
    await ended;
    for (let more = taken(out); more.byteLength > 0; more = taken(out)) read += more.byteLength;
    closeSync(out);

    expect(read).toBe(length);
    err.kill();
  });

  test('the last word of a child process that has an older file is read also where it comes while others are', async () => {
    const pipes = pipesIn(daemon.directory());
    const workingDirectory = daemon.directory();
    const code = `
      const { spawn } = require('node:child_process');
      const { writeFileSync, writeSync } = require('node:fs');
      const line = Buffer.alloc(2 ** 20, 'x');
      // The cell itself has the first file open.
      for (let i = 0; i < 11; i += 1) writeSync(1, line);
      const child = spawn('sh', ['-c', 'until [ -e go ]; do sleep 0.02; done; echo last'], { stdio: ['ignore', 1, 2] });
      for (let i = 0; i < 25; i += 1) writeSync(1, line);
      writeFileSync('done', '');
      child.on('exit', () => writeFileSync('gone', ''));
      setInterval(() => {}, 1000);
    `;
    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    // There are four files when the first is read.
    await eventually('all but the last is written', () => existsSync(join(workingDirectory, 'done')));
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    let read = 0;
    out.stdout.on('data', (chunk: Buffer) => {
      read += chunk.byteLength;
      if (read > 22 * MIB && !existsSync(join(workingDirectory, 'gone'))) out.stdout.pause();
    });

    await eventually('the reader is behind the second file', () => out.stdout.isPaused());
    writeFileSync(join(workingDirectory, 'go'), '');
    await eventually('the child is gone', () => existsSync(join(workingDirectory, 'gone')));
    out.stdout.resume();

    await eventually('all has come', () => read === 36 * MIB + 'last\n'.length);
    await execution.cancel({ graceMs: 0 });
    err.kill();
  });

  test('a reader that takes nothing does not end the cell of a guest that is ended by force', async () => {
    const pipes = pipesIn(daemon.directory());
    const [out, err] = [reader(pipes.stdout), reader(pipes.stderr)];
    const workingDirectory = daemon.directory();
    const code = MUCH.javascript.replace('COUNT', '3');
    const execution = await session.submit({ code, workingDirectory, outputFiles: pipes });
    await eventually('all is written', () => existsSync(join(workingDirectory, 'done')));

    await execution.cancel({ graceMs: 0 });

    expect(await execution.end()).toMatchObject({ result: { rung: 'forced' } });
    for (const child of [out, err]) child.kill('SIGKILL');
  });
});
