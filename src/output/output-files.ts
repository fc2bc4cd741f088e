import { closeSync, constants, ftruncateSync, lstatSync, openSync, type Stats } from 'node:fs';
import { lstat } from 'node:fs/promises';
import { join } from 'node:path';
import type { OutputStream } from '../../workers/output-writer.ts';
import { isNoFile, openPlainFile } from '../plain-file.ts';
import { removeTree } from '../remove-tree.ts';
import { withDescriptor } from '../spare-descriptor.ts';
import { Changes } from './changes.ts';
import { keptOf } from './kept.ts';
import { type Mark, Marks, wholeMarks } from './marks.ts';
import { FileOnDisk, type OutputFile, SealedFile } from './output-file.ts';
import type { OutputName, SealedOutput } from './sealed-output.ts';

/** Some bytes that a guest wrote. */
export interface OutputChunk {
  stream: OutputStream;
  /** Of the first byte, in its stream. */
  position: number;
  /** When the first byte was written, in Unix ms. */
  atMs: number;
  data: Buffer;
}

/** What of an output is wanted. */
export interface OutputRange {
  streams: ReadonlySet<OutputStream>;
  /** The first byte wanted of each stream. */
  from: Record<OutputStream, number>;
  /** False: end with what there is now. */
  follow: boolean;
  /** What its files may hold beyond, a child process of the guest has just written, and its cell will cut off again. */
  limitBytes?: number | undefined;
}

/** Large enough to be cheap, small enough to stay far below a message's limit. */
const CHUNK_BYTES = 256 * 1024;

const STREAMS: readonly OutputStream[] = ['stdout', 'stderr'];

/** What {@link Stats.blocks} counts, in bytes. */
const BLOCK_BYTES = 512;

/**
 * Keeps the head of an execution's output, `limitBytes` of both streams together: for one whose cell died before it could.
 * Nobody writes any more. Returns how much of each there is then, as far as it is there.
 */
export function cutOutput(directory: string, limitBytes: number): Partial<Record<OutputStream, number>> {
  const sizes: Partial<Record<OutputStream, number>> = {};
  for (const stream of STREAMS) {
    const size = sizeOf(join(directory, stream));
    if (size !== undefined) sizes[stream] = size;
  }
  const kept = keptOf({ stdout: 0, stderr: 0, ...sizes }, limitBytes);
  for (const [stream, size] of Object.entries(sizes) as [OutputStream, number][]) {
    if (kept[stream] < size && cut(join(directory, stream), kept[stream])) sizes[stream] = kept[stream];
  }
  return sizes;
}

/** How much room the streams in this directory take on the disk, as {@link OutputFiles.room}, but without a wait. */
export function roomIn(directory: string): number {
  return STREAMS.reduce((room, stream) => room + (sizeOf(join(directory, stream), roomOf) ?? 0), 0);
}

/** Undefined for what is not there, not to be seen, or no plain file. */
function sizeOf(path: string, measure = lengthOf): number | undefined {
  try {
    const found = lstatSync(path);
    return found.isFile() ? measure(found) : undefined;
  } catch {
    return undefined;
  }
}

function lengthOf({ size }: Stats): number {
  return size;
}

/** Of a file with holes, less than its length. */
function roomOf({ size, blocks }: Stats): number {
  return Math.min(size, blocks * BLOCK_BYTES);
}

/** False where the disk does not let it: what is too much stays. */
function cut(path: string, bytes: number): boolean {
  try {
    withDescriptor(() => {
      const fd = openSync(path, constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
      try {
        ftruncateSync(fd, bytes);
      } finally {
        closeSync(fd);
      }
    });
    return true;
  } catch {
    return false;
  }
}

/**
 * The output files of one execution, for reading. They may not exist yet, or not any more: what they held may be sealed.
 * That comes before they are removed, so each that is not there is looked for in what is sealed, and nothing is missed.
 */
export class OutputFiles {
  readonly #directory: string;
  readonly #findSealed: () => Promise<SealedOutput | undefined>;
  #found: SealedOutput | undefined;

  /** `findSealed` says what is sealed in place of the files by now. */
  constructor(directory: string, findSealed: () => Promise<SealedOutput | undefined> = async () => undefined) {
    this.#directory = directory;
    this.#findSealed = findSealed;
  }

  /** How many bytes each stream has; 0 for one that is not there. */
  async sizes(): Promise<Record<OutputStream, number>> {
    return this.#measure(lengthOf);
  }

  /** How many bytes both streams take on the disk: who writes to a file can make it as long as it likes. */
  async room(): Promise<number> {
    const { stdout, stderr } = await this.#measure(roomOf);
    return stdout + stderr;
  }

  async #measure(measure: (found: Stats) => number): Promise<Record<OutputStream, number>> {
    const [stdout, stderr] = await Promise.all(
      STREAMS.map((stream) => sizeIfThere(join(this.#directory, stream), measure)),
    );
    const sealed = stdout === undefined || stderr === undefined ? await this.#sealed() : undefined;
    return {
      stdout: stdout ?? sealed?.stdout.byteLength ?? 0,
      stderr: stderr ?? sealed?.stderr.byteLength ?? 0,
    };
  }

  /** The last bytes of a stream before `end`, `maxBytes` at most, and where they begin. */
  async tail(
    stream: OutputStream,
    maxBytes: number,
    end = Number.POSITIVE_INFINITY,
  ): Promise<{ position: number; data: Buffer }> {
    const file = await this.#open(stream);
    if (file === undefined) return { position: 0, data: Buffer.alloc(0) };
    try {
      const size = Math.min((await file.stat()).size, end);
      const position = Math.max(0, size - maxBytes);
      return { position, data: await file.read(position, size - position) };
    } finally {
      await file.close();
    }
  }

  async remove(): Promise<void> {
    if (!(await removeTree(this.#directory))) throw new Error(`${this.#directory} is still there`);
  }

  /**
   * The bytes in the order they were written, both streams interleaved. Ends at the end of the output once `ended`
   * resolves (all is written by then), or when `signal` aborts. `looked` hears how much there is each time that is looked at.
   */
  async *read(
    range: OutputRange,
    ended: Promise<unknown>,
    signal: AbortSignal,
    looked: (sizes: Record<OutputStream, number>) => void = () => {},
  ): AsyncGenerator<OutputChunk> {
    const changes = new Changes(this.#directory);
    let complete = !range.follow;
    const end = () => {
      complete = true;
      changes.wake();
    };
    ended.then(end, end);
    signal.addEventListener('abort', end);
    const reader = new InterleavedReader((name) => this.#open(name), range, looked, signal);
    try {
      for (;;) {
        // Looked at before reading: what is written by the end is read after it.
        const last = complete;
        for await (const chunk of reader.available()) {
          if (signal.aborted) return;
          yield chunk;
        }
        if (last || signal.aborted) return;
        await changes.next();
      }
    } finally {
      signal.removeEventListener('abort', end);
      changes.close();
      await reader.close();
    }
  }

  async #open(name: OutputName): Promise<OutputFile | undefined> {
    const handle = await openPlainFile(join(this.#directory, name));
    if (handle !== undefined) return new FileOnDisk(handle);
    const sealed = await this.#sealed();
    return sealed && new SealedFile(sealed[name], name === 'marks' ? 0 : sealed.bornMs[name]);
  }

  async #sealed(): Promise<SealedOutput | undefined> {
    this.#found ??= await this.#findSealed();
    return this.#found;
  }
}

/** Reads what is there of the two streams, in the order of the marks, each time from where it stopped. */
class InterleavedReader {
  readonly #open: (name: OutputName) => Promise<OutputFile | undefined>;
  readonly #looked: (sizes: Record<OutputStream, number>) => void;
  readonly #signal: AbortSignal;
  readonly #streams: ReadonlySet<OutputStream>;
  readonly #limitBytes: number;
  readonly #files = new Map<OutputName, OutputFile>();
  readonly #marks = { stdout: new Marks('stdout'), stderr: new Marks('stderr') };
  /** The next byte to give, of each stream. */
  readonly #next: Record<OutputStream, number>;
  /** The last mark of each stream whose turn has come, in their order. */
  #reached: [Mark, Mark] | undefined;
  /** The mark after that, of each stream: its bytes end there. */
  readonly #ahead: Record<OutputStream, Mark | undefined> = { stdout: undefined, stderr: undefined };

  constructor(
    open: (name: OutputName) => Promise<OutputFile | undefined>,
    range: OutputRange,
    looked: (sizes: Record<OutputStream, number>) => void,
    signal: AbortSignal,
  ) {
    this.#open = open;
    this.#signal = signal;
    this.#looked = looked;
    this.#streams = range.streams;
    this.#limitBytes = range.limitBytes ?? Number.POSITIVE_INFINITY;
    this.#next = { ...range.from };
  }

  async *available(): AsyncGenerator<OutputChunk> {
    // The writer goes on meanwhile. Bytes were all there when a later mark was; marks were there before their bytes. So
    // what precedes the last mark there was before the sizes is whole within them; of the rest it ends at the first gap.
    let [older, mark] = this.#reached ?? [await this.#firstMark('stdout'), await this.#firstMark('stderr')];
    const before = await this.#endOfMarks();
    const written = { stdout: (await this.#stat('stdout')).size, stderr: (await this.#stat('stderr')).size };
    this.#looked(written);
    const sizes = keptOf(written, this.#limitBytes, this.#next);
    const end = await this.#endOfMarks();
    for (const stream of STREAMS) this.#ahead[stream] ??= await this.#nextMark(stream, end);
    yield* this.#bytesOf(older, sizes);
    for (;;) {
      this.#reached = [older, mark];
      yield* this.#bytesOf(mark, sizes);
      const next = firstOf(this.#ahead.stdout, this.#ahead.stderr);
      if (next === undefined || (next.place >= before && this.#hasGap(mark.stream))) return;
      if (next.stream !== mark.stream) older = mark;
      mark = next;
      this.#ahead[next.stream] = await this.#nextMark(next.stream, end);
    }
  }

  /** What there is up to the next mark of its stream. */
  async *#bytesOf({ stream, atMs }: Mark, sizes: Record<OutputStream, number>): AsyncGenerator<OutputChunk> {
    if (!this.#streams.has(stream)) return;
    const end = Math.min(this.#endOf(stream), sizes[stream]);
    while (this.#next[stream] < end) {
      const position = this.#next[stream];
      const data = await this.#readBytes(stream, position, Math.min(CHUNK_BYTES, end - position));
      if (data.byteLength === 0) return;
      this.#next[stream] = position + data.byteLength;
      yield { stream, position, atMs, data };
    }
  }

  /** Where the bytes of the mark that was reached end: at the next one, or nowhere yet. */
  #endOf(stream: OutputStream): number {
    return this.#ahead[stream]?.start ?? Number.POSITIVE_INFINITY;
  }

  #hasGap(stream: OutputStream): boolean {
    return this.#streams.has(stream) && this.#next[stream] < this.#endOf(stream);
  }

  async close(): Promise<void> {
    for (const file of this.#files.values()) await file.close();
  }

  /** A child that inherited a stream writes without marks: what it wrote before the first one is as old as the file. */
  async #firstMark(stream: OutputStream): Promise<Mark> {
    return { stream, start: 0, atMs: (await this.#stat(stream)).bornMs, place: -1 };
  }

  async #stat(stream: OutputStream): Promise<{ size: number; bornMs: number }> {
    const file = await this.#file(stream);
    return file === undefined ? { size: 0, bornMs: 0 } : file.stat();
  }

  async #endOfMarks(): Promise<number> {
    const file = await this.#file('marks');
    return file === undefined ? 0 : wholeMarks((await file.stat()).size);
  }

  async #nextMark(stream: OutputStream, end: number): Promise<Mark | undefined> {
    return this.#marks[stream].next(await this.#file('marks'), end, this.#signal);
  }

  async #readBytes(stream: OutputStream, position: number, length: number): Promise<Buffer> {
    const file = await this.#file(stream);
    return file === undefined ? Buffer.alloc(0) : file.read(position, length);
  }

  async #file(name: OutputName): Promise<OutputFile | undefined> {
    const file = this.#files.get(name) ?? (await this.#open(name));
    if (file !== undefined) this.#files.set(name, file);
    return file;
  }
}

function firstOf(one: Mark | undefined, other: Mark | undefined): Mark | undefined {
  if (one === undefined || other === undefined) return one ?? other;
  return one.place < other.place ? one : other;
}

async function sizeIfThere(path: string, measure: (found: Stats) => number): Promise<number | undefined> {
  try {
    const found = await lstat(path);
    return found.isFile() ? measure(found) : undefined;
  } catch (error) {
    if (isNoFile(error)) return undefined;
    throw error;
  }
}
