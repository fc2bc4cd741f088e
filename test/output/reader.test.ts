import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Marks } from '../../src/output/marks.ts';
import type { OutputFile } from '../../src/output/output-file.ts';
import { OutputFiles } from '../../src/output/output-files.ts';
import { MOST_SEALED_BYTES, removeSmallOutput, smallOutput } from '../../src/output/sealed-output.ts';
import { textOf } from '../../src/output/utf8.ts';
import { OutputWriter } from '../../workers/output-writer.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';

type Name = 'stdout' | 'stderr';
const NEVER = new AbortController().signal;
const both: ReadonlySet<Name> = new Set<Name>(['stdout', 'stderr']);

if (!MAY_MOUNT) console.info('left out, as only root may mount a file system: marks on a full disk');

/** Output files with a writer, as an execution has them. */
class Output implements Disposable {
  readonly directory: string;
  readonly files: OutputFiles;
  readonly fds: { stdout: number; stderr: number; marks: number };
  readonly writer: OutputWriter;

  constructor(directory = temporaryDirectory()) {
    this.directory = directory;
    const open = (name: string) => openSync(join(directory, name), 'a');
    this.fds = { stdout: open('stdout'), stderr: open('stderr'), marks: open('marks') };
    this.writer = new OutputWriter(this.fds);
    this.files = new OutputFiles(directory);
  }

  [Symbol.dispose](): void {
    for (const fd of Object.values(this.fds)) closeSync(fd);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const writes = fc.array(
  fc.record({
    stream: fc.constantFrom<Name>('stdout', 'stderr'),
    bytes: fc.uint8Array({ maxLength: 40 }),
    /** How many turns of the event loop the reader gets before it. */
    turns: fc.integer({ min: 0, max: 3 }),
  }),
  { maxLength: 60 },
);

test('a reader that follows gets all bytes in the order of the writes, whenever they come', async () => {
  await fc.assert(
    fc.asyncProperty(writes, async (plan) => {
      using output = new Output();
      const ended = Promise.withResolvers<void>();
      const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: true };
      const read = Array.fromAsync(output.files.read(range, ended.promise, NEVER));

      for (const { stream, bytes, turns } of plan) {
        for (let turn = 0; turn < turns; turn += 1) await new Promise(setImmediate);
        output.writer.write(stream, bytes);
      }
      ended.resolve();

      const chunks = await read;
      expect(Buffer.concat(chunks.map(({ data }) => data))).toEqual(Buffer.concat(plan.map(({ bytes }) => bytes)));
      const next = { stdout: 0, stderr: 0 };
      for (const { stream, position, data } of chunks) {
        expect(position).toBe(next[stream]);
        next[stream] += data.byteLength;
      }
    }),
    { numRuns: 60 },
  );
});

test('a chunk has the time at which its first byte was written', async () => {
  using output = new Output();
  const times = [Date.now()];
  for (const word of ['first', 'second']) {
    output.writer.write('stdout', Buffer.from(word));
    // Writes that are closer together may share a time.
    await wait(30);
    times.push(Date.now());
  }

  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: false };
  const chunks = await Array.fromAsync(output.files.read(range, Promise.resolve(), NEVER));

  expect(chunks.map(({ position, data }) => `${position} ${data}`)).toEqual(['0 first', '5 second']);
  for (const [index, { atMs }] of chunks.entries()) {
    expect(atMs).toBeGreaterThanOrEqual(times[index] as number);
    expect(atMs).toBeLessThan(times[index + 1] as number);
  }
});

test('a follower hears of each write when it comes, not when it looks again', async () => {
  using output = new Output();
  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: true };
  const read = output.files.read(range, new Promise(() => {}), NEVER);
  const rounds = 20;

  const tookMs: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const begunAtMs = performance.now();
    const next = read.next();
    output.writer.write('stdout', Buffer.from(`${round}`));
    expect((await next).value?.data.toString()).toBe(`${round}`);
    tookMs.push(performance.now() - begunAtMs);
  }
  await read.return(undefined);

  // It looks every 250 ms; now and then it may be late.
  expect(tookMs.sort((a, b) => a - b)[rounds / 2]).toBeLessThan(125);
});

test('a follower that is there before the directory reads what comes into it', async () => {
  const directory = join(temporaryDirectory(), 'later');
  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: true };
  const read = new OutputFiles(directory).read(range, new Promise(() => {}), NEVER);

  const first = read.next();
  // By then it has looked, and found nothing that it could watch.
  await wait(100);
  mkdirSync(directory);
  writeFileSync(join(directory, 'stdout'), 'at last');

  expect((await first).value?.data.toString()).toBe('at last');
  await read.return(undefined);
});

test('from any position on, of either stream, the rest is what a whole read has from there', async () => {
  await fc.assert(
    fc.asyncProperty(
      writes,
      fc.nat({ max: 1_000 }),
      fc.nat({ max: 1_000 }),
      fc.constantFrom<Name[]>(['stdout'], ['stderr'], ['stdout', 'stderr']),
      async (plan, stdout, stderr, streams) => {
        using output = new Output();
        for (const { stream, bytes } of plan) output.writer.write(stream, bytes);
        const whole = (name: Name) =>
          Buffer.concat(plan.filter(({ stream }) => stream === name).map(({ bytes }) => bytes));
        const range = { streams: new Set(streams), from: { stdout, stderr }, follow: false };

        const chunks = await Array.fromAsync(output.files.read(range, Promise.resolve(), NEVER));

        for (const name of ['stdout', 'stderr'] as const) {
          const data = Buffer.concat(chunks.filter(({ stream }) => stream === name).map((chunk) => chunk.data));
          const expected = streams.includes(name) ? whole(name).subarray({ stdout, stderr }[name]) : Buffer.alloc(0);
          expect(data).toEqual(expected);
        }
      },
    ),
    { numRuns: 60 },
  );
});

test('bytes that somebody else appended, without a mark, are read too', async () => {
  using output = new Output();
  writeSync(output.fds.stderr, 'before');
  output.writer.write('stdout', Buffer.from('marked'));
  writeSync(output.fds.stdout, 'between');
  output.writer.write('stderr', Buffer.from('marked'));

  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: false };
  const chunks = await Array.fromAsync(output.files.read(range, Promise.resolve(), NEVER));

  expect(chunks.map(({ stream, data }) => `${stream} ${data}`)).toEqual([
    'stderr before',
    'stdout markedbetween',
    'stderr marked',
  ]);
});

test('a read of what is not there is empty, and one that follows ends when it is told', async () => {
  const directory = join(temporaryDirectory(), 'none');
  const files = new OutputFiles(directory);
  const range = { streams: both, from: { stdout: 0, stderr: 0 } };

  expect(await Array.fromAsync(files.read({ ...range, follow: false }, Promise.resolve(), NEVER))).toEqual([]);
  expect(await Array.fromAsync(files.read({ ...range, follow: true }, Promise.resolve(), NEVER))).toEqual([]);
  expect(await files.sizes()).toEqual({ stdout: 0, stderr: 0 });
  expect(await files.tail('stdout', 100)).toMatchObject({ position: 0 });
  const cancelled = new AbortController();
  const forever = new Promise<void>(() => {});
  const read = Array.fromAsync(files.read({ ...range, follow: true }, forever, cancelled.signal));
  cancelled.abort();
  expect(await read).toEqual([]);
  mkdirSync(directory);
  await files.remove();
});

test('a mark that is cut off, as by a full disk, is waited for and harms nothing', async () => {
  using output = new Output();
  output.writer.write('stdout', Buffer.from('whole'));
  writeSync(output.fds.marks, Buffer.alloc(7));

  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: false };
  const chunks = await Array.fromAsync(output.files.read(range, Promise.resolve(), NEVER));

  expect(Buffer.concat(chunks.map(({ data }) => data)).toString()).toBe('whole');
});

test.skipIf(!MAY_MOUNT)('what a full disk takes of a mark puts no later one out of place', async () => {
  const { directory, fill, free } = smallDisk(64);
  mkdirSync(join(directory, 'output'));
  using output = new Output(join(directory, 'output'));
  const turns = Array.from({ length: 170 }, (_, index): Name => (index % 2 === 0 ? 'stdout' : 'stderr'));
  const write = (stream: Name) => output.writer.write(stream, Buffer.from('.'));
  // The last of them ends 16 bytes before the block does.
  for (const stream of turns) write(stream);
  fill();
  expect(() => write('stdout')).toThrow(/ENOSPC/);
  free();
  for (const stream of turns) write(stream);

  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: false };
  const chunks = await Array.fromAsync(output.files.read(range, Promise.resolve(), NEVER));

  expect(chunks.map(({ stream }) => stream)).toEqual([...turns, ...turns]);
});

/** A million marks have so many bytes. */
const MILLION_MARKS = 24e6;

test.each<[string, (marks: number) => void]>([
  ['that take no room', (marks) => ftruncateSync(marks, 2 ** 40)],
  [
    'that are ahead of all bytes',
    (marks) => {
      const block = new Float64Array(MILLION_MARKS / 8);
      for (let at = 0; at < 1e6; at += 1) block.set([1, 1 + (at % 2), at], at * 3);
      writeSync(marks, new Uint8Array(block.buffer));
    },
  ],
])(
  'marks %s hold up nobody else, and are not all kept, however many there are',
  { timeout: 240_000 },
  async (_, write) => {
    using output = new Output();
    output.writer.write('stdout', Buffer.from('one'));
    output.writer.write('stderr', Buffer.from('two'));
    write(output.fds.marks);
    writeSync(output.fds.stdout, 'three');
    const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: false };
    // Of this thread's own time, of which others take nothing on a busy machine.
    let longestTurnMs = 0;
    let reads = true;
    const others = (async () => {
      for (let before = process.threadCpuUsage(); reads; before = process.threadCpuUsage()) {
        await new Promise(setImmediate);
        const { user, system } = process.threadCpuUsage(before);
        longestTurnMs = Math.max(longestTurnMs, (user + system) / 1000);
      }
    })();
    const peakBefore = process.resourceUsage().maxRSS;

    const text = { stdout: '', stderr: '' };
    for await (const { stream, data } of output.files.read(range, Promise.resolve(), NEVER)) text[stream] += data;
    reads = false;
    await others;

    expect(text).toEqual({ stdout: 'onethree', stderr: 'two' });
    expect(longestTurnMs).toBeLessThan(200);
    expect(process.resourceUsage().maxRSS - peakBefore).toBeLessThan(100 * 1024);
  },
);

test('marks are read no further when their reader has gone', async () => {
  const gone = new AbortController();
  let reads = 0;
  const file: OutputFile = {
    stat: async () => ({ size: 1e6, bornMs: 0 }),
    // All are of standard error.
    read: async (_, length) => {
      reads += 1;
      if (reads === 3) gone.abort();
      return Buffer.from(new Float64Array(length / 8).fill(2).buffer);
    },
    close: async () => {},
  };

  expect(await new Marks('stdout').next(file, 1e6, gone.signal)).toBeUndefined();
  expect(reads).toBe(3);
});

/** As the journal's thread does it: the files of an output go, what they held is found from then on. */
function seal({ directory }: Output): OutputFiles {
  const sealed = smallOutput(directory);
  if (sealed === undefined) throw new Error('the output is not small');
  removeSmallOutput(directory);
  return new OutputFiles(directory, async () => sealed);
}

test('sealed output reads as its files did: order, positions, times, from any position on, sizes and tails', async () => {
  await fc.assert(
    fc.asyncProperty(writes, fc.nat({ max: 300 }), fc.nat({ max: 300 }), async (plan, stdout, stderr) => {
      using output = new Output();
      writeSync(output.fds.stderr, 'without a mark');
      for (const { stream, bytes } of plan) output.writer.write(stream, bytes);
      const look = async (files: OutputFiles) => ({
        chunks: await Array.fromAsync(
          files.read({ streams: both, from: { stdout, stderr }, follow: false }, Promise.resolve(), NEVER),
        ),
        all: await Array.fromAsync(
          files.read({ streams: both, from: { stdout: 0, stderr: 0 }, follow: true }, Promise.resolve(), NEVER),
        ),
        sizes: await files.sizes(),
        tails: [await files.tail('stdout', 10), await files.tail('stderr', 10_000)],
      });
      const before = await look(output.files);

      const after = await look(seal(output));

      expect(existsSync(output.directory)).toBe(false);
      expect(after).toEqual(before);
    }),
    { numRuns: 40 },
  );
});

test('a reader that is under way when its files are sealed goes on, with those it has not opened yet too', async () => {
  using output = new Output();
  rmSync(join(output.directory, 'marks'));
  output.writer.write('stderr', Buffer.from('one'));
  const whole: string[] = [];
  let sealed: ReturnType<typeof smallOutput>;
  const ended = Promise.withResolvers<void>();
  const files = new OutputFiles(output.directory, async () => sealed);
  const range = { streams: both, from: { stdout: 0, stderr: 0 }, follow: true };
  const read = files.read(range, ended.promise, NEVER);
  whole.push(String((await read.next()).value?.data));

  output.writer.write('stdout', Buffer.from('two'));
  output.writer.write('stderr', Buffer.from('three'));
  // It has opened the streams, and found no marks: these come, and go, before it looks again.
  const marks = openSync(join(output.directory, 'marks'), 'w');
  for (const mark of [
    [1, 2, 0],
    [2, 1, 0],
    [3, 2, 3],
  ]) {
    writeSync(marks, Buffer.from(Float64Array.from(mark).buffer));
  }
  closeSync(marks);
  sealed = smallOutput(output.directory);
  removeSmallOutput(output.directory);
  ended.resolve();
  for await (const { atMs, data } of read) whole.push(`${atMs} ${data}`);

  expect(whole).toEqual(['one', '2 two', '3 three']);
});

test.each<[string, (directory: string) => void]>([
  ['more than it may be', (directory) => writeFileSync(join(directory, 'stdout'), 'x'.repeat(MOST_SEALED_BYTES + 1))],
  [
    'more than it may be in all its files together',
    (directory) => {
      for (const name of ['stdout', 'marks']) writeFileSync(join(directory, name), 'x'.repeat(MOST_SEALED_BYTES / 2));
      writeFileSync(join(directory, 'stderr'), 'x');
    },
  ],
  ['a symbolic link', (directory) => symlinkSync('/etc/hostname', join(directory, 'stderr'))],
  ['a pipe that nobody writes to', (directory) => void execFileSync('mkfifo', [join(directory, 'marks')])],
  ['a directory', (directory) => mkdirSync(join(directory, 'stdout'))],
])('output that is %s is not sealed', (_, spoil) => {
  const directory = temporaryDirectory();
  spoil(directory);

  expect(smallOutput(directory)).toBeUndefined();
});

test('as much as a block holds is sealed', () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, 'stdout'), 'x'.repeat(MOST_SEALED_BYTES));

  expect(smallOutput(directory)?.stdout.byteLength).toBe(MOST_SEALED_BYTES);
});

test('text that is cut out of a stream begins and ends with whole characters', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.nat({ max: 200 }), (text, cut) => {
      const bytes = Buffer.from(text);
      const from = Math.min(cut, bytes.byteLength);

      const { text: tail, skipped } = textOf(bytes.subarray(from), { cutBefore: from > 0 });

      expect(bytes.subarray(from + skipped).toString()).toBe(tail);
      expect(skipped).toBeLessThanOrEqual(3);
      if (text.isWellFormed() && !text.includes('\ufffd')) expect(tail).not.toContain('\ufffd');
    }),
  );
});

test('a reader that is begun and dropped closes its files once it is collected, and ends no process', () => {
  using output = new Output();
  writeSync(output.fds.stdout, 'some output');
  const module = new URL('../../src/output/output-files.ts', import.meta.url).href;
  const script = `
    import { readdirSync } from 'node:fs';
    import { setImmediate as turn } from 'node:timers/promises';
    import { OutputFiles } from '${module}';
    const opened = () => readdirSync('/proc/self/fd').length;
    const read = (ended) => new OutputFiles('${output.directory}').read(
      { streams: new Set(['stdout', 'stderr']), from: { stdout: 0, stderr: 0 }, follow: true },
      ended,
      new AbortController().signal,
    );
    let before;
    await (async () => {
      const { promise, resolve } = Promise.withResolvers();
      // What watches and reads files opens some descriptors of its own with the first one, and so does what writes to a pipe.
      await Array.fromAsync(read(Promise.resolve()));
      process.stdout.write('');
      before = opened();
      const { value } = await read(promise).next();
      console.log(value.data.toString(), opened() - before);
      resolve();
    })();
    for (let turns = 0; turns < 1_000 && opened() > before; turns += 1) {
      gc();
      await turn();
    }
    console.log(opened() - before);`;

  const { status, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc', '--input-type=module', '-e', script], {
    encoding: 'utf8',
    timeout: 60_000,
  });

  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: 'some output 3\n0\n', stderr: '' });
});
