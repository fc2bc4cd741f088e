import { fstatSync, readdirSync, readlinkSync, unlinkSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { OutputStream } from '../../workers/output-writer.ts';
import { openPlainFile } from '../plain-file.ts';
import { treeOf } from '../processes.ts';
import { removeFile } from '../remove-tree.ts';
import { withDescriptor } from '../spare-descriptor.ts';
import { Changes } from './changes.ts';
import { unwrittenOf } from './file-writers.ts';
import { OwnFile } from './own-file.ts';
import { numbersOf } from './rotated-files.ts';
import { unwrittenFiles } from './unwritten-files.ts';

/** What waits for a reader at most, of each stream: as much as Nomad's log collector keeps, unless a job says otherwise. */
const MOST_FILES = 10;
const FILE_BYTES = 10 * 2 ** 20;
const SPOOL_FILE = /^(stdout|stderr)\.spool\.\d{1,9}$/;
/** What `st_blocks` counts. */
const BLOCK_BYTES = 512;
/** What a pipe takes at once. */
const CHUNK_BYTES = 65_536;
/**
 * So many files that have been read are kept while it is not known whether somebody can write to them: each takes up room,
 * also once its writer has removed it. Of one that is held, the holder keeps that anyway.
 */
const MOST_UNKNOWN = 32;
/** How long those may be looked for then that are below this process, in ms: nothing is read meanwhile. */
const BELOW_LIMIT_MS = 1_000;
/** The file that a guest begins with. */
const FIRST = 0;

/** The rotated files of a {@link Spool} in this directory. */
export function spoolFiles(directory: string) {
  const path = (stream: OutputStream) => join(directory, `${stream}.spool`);
  return { stdout: path('stdout'), stderr: path('stderr'), maxFiles: MOST_FILES, maxFileBytes: FILE_BYTES };
}

/** Removes from this directory what its cell, which is gone, had not brought to its readers: nobody else can. */
export function removeSpool(directory: string): void {
  for (const name of spoolIn(directory)) removeFile(join(directory, name));
}

/** Whether in this directory something is still on its way to its readers. */
export function hasSpool(directory: string): boolean {
  return spoolIn(directory).length > 0;
}

/** The directories below this one that a process brings something from to its readers. */
export function broughtBy(pid: number, parent: string): Set<string> {
  const directories = new Set<string>();
  for (const path of openFilesOf(pid)) {
    const directory = dirname(path);
    if (!SPOOL_FILE.test(basename(path)) || basename(dirname(directory)) !== basename(parent)) continue;
    directories.add(join(parent, basename(directory)));
  }
  return directories;
}

function openFilesOf(pid: number): string[] {
  try {
    const directory = `/proc/${pid}/fd`;
    return withDescriptor(() => readdirSync(directory)).flatMap((fd) => targetOf(`${directory}/${fd}`) ?? []);
  } catch {
    // It is gone.
    return [];
  }
}

function targetOf(link: string): string | undefined {
  try {
    return readlinkSync(link);
  } catch {
    // Closed meanwhile.
    return undefined;
  }
}

function spoolIn(directory: string): string[] {
  try {
    return withDescriptor(() => readdirSync(directory)).filter((name) => SPOOL_FILE.test(name));
  } catch {
    // There is no such directory.
    return [];
  }
}

/** One of the files, and how far it has been read. */
interface SpoolFile {
  number: number;
  handle: FileHandle;
  position: number;
  /** Whether somebody can write to it; undefined: not known yet. */
  isHeld: boolean | undefined;
  /** Whether those below this process were looked at: none that did not have it then gets it from one of them. */
  isSeenBelow: boolean;
}

/**
 * Rotated files of one stream on their way to a reader: each is removed once it has been read and followed by another.
 * One that somebody may still write to is read on beside the later ones: a child process keeps the file that it was
 * started with, also once its parent is gone.
 */
export class Spool {
  readonly #path: string;
  readonly #keepsFirst: boolean;
  /** Those that are open, by number. */
  readonly #files = new Map<number, SpoolFile>();
  #isLooking = false;

  /** `keepsFirst`: whoever writes has the first file open to the end, so that nobody needs to look for who has it. */
  constructor(path: string, keepsFirst: boolean) {
    this.#path = path;
    this.#keepsFirst = keepsFirst;
  }

  /** What is written, as it comes. Ends at the end of it all once `ended` resolves, or when `signal` aborts. */
  async *read(ended: Promise<unknown>, signal: AbortSignal): AsyncGenerator<Buffer> {
    const changes = new Changes(dirname(this.#path));
    let complete = false;
    const end = () => {
      complete = true;
      changes.wake();
    };
    ended.then(end, end);
    signal.addEventListener('abort', end);
    try {
      for (;;) {
        // Looked at before reading: what is written by the end is read after it.
        const last = complete;
        await this.#openNew();
        const files = [...this.#files.values()].sort((a, b) => a.number - b.number);
        for (const file of files) {
          for await (const data of rest(file)) {
            if (signal.aborted) return;
            yield data;
          }
        }
        if (last || signal.aborted) return;
        await this.#removeRead(files.slice(0, -1));
        await changes.next();
      }
    } finally {
      signal.removeEventListener('abort', end);
      changes.close();
      for (const file of this.#files.values()) await this.#remove(file);
    }
  }

  /** Also one whose number was here before: a writer that was late has made it again. */
  async #openNew(): Promise<void> {
    for (const number of numbersOf(this.#path)) {
      if (this.#files.has(number)) continue;
      const handle = await openPlainFile(`${this.#path}.${number}`).catch(() => undefined);
      // There was too much to keep, and it is gone.
      if (handle === undefined) continue;
      this.#files.set(number, { number, handle, position: 0, isHeld: undefined, isSeenBelow: false });
    }
  }

  async #removeRead(files: SpoolFile[]): Promise<void> {
    const followed = files.filter(({ number }) => !(this.#keepsFirst && number === FIRST));
    const unknown = followed.filter(({ isHeld }) => isHeld === undefined);
    const tooMany = unknown.slice(0, -MOST_UNKNOWN);
    if (tooMany.some(({ isSeenBelow }) => !isSeenBelow)) await this.#lookBelow(unknown);
    const isDone = (file: SpoolFile) => file.isHeld === false || (file.isHeld === undefined && tooMany.includes(file));
    // Who had it open may have written to it since it was read.
    for (const file of followed.filter(isDone)) if (restOf(file) === 0) await this.#remove(file);
    const left = followed.filter(({ number }) => this.#files.has(number));
    if (left.length > 0 && !this.#isLooking) void this.#look(left);
  }

  /** Holds up no reading: there may be many processes, and one may have a million descriptors. */
  async #look(files: SpoolFile[]): Promise<void> {
    this.#isLooking = true;
    const unwritten = await unwrittenAmong(files, unwrittenFiles);
    if (unwritten !== undefined) for (const file of files) file.isHeld = !unwritten.has(file);
    this.#isLooking = false;
  }

  /** Most that somebody has are those of processes below, which are soon looked at. */
  async #lookBelow(files: SpoolFile[]): Promise<void> {
    const below = treeOf([process.pid]);
    const unwritten = await unwrittenAmong(files, (own) => unwrittenOf(own, performance.now() + BELOW_LIMIT_MS, below));
    for (const file of files) {
      file.isSeenBelow = true;
      if (unwritten?.has(file) === false) file.isHeld = true;
    }
  }

  async #remove({ number, handle }: SpoolFile): Promise<void> {
    this.#files.delete(number);
    try {
      unlinkSync(`${this.#path}.${number}`);
    } catch {
      // Its writer has removed it: there was too much to keep.
    }
    await handle.close();
  }
}

/** Undefined where that is not known. */
async function unwrittenAmong(
  files: SpoolFile[],
  find: (files: OwnFile[]) => Promise<ReadonlySet<OwnFile> | undefined>,
): Promise<Set<SpoolFile> | undefined> {
  try {
    const byOwn = new Map(files.map((file) => [new OwnFile(file.handle.fd), file]));
    const unwritten = await find([...byOwn.keys()]);
    return unwritten && new Set([...unwritten].flatMap((own) => byOwn.get(own) ?? []));
  } catch {
    // A guest that is a thread has closed one of them, or there is no descriptor to look with.
    return undefined;
  }
}

async function* rest(file: SpoolFile): AsyncGenerator<Buffer> {
  for (;;) {
    const { size, blocks } = fstatSync(file.handle.fd);
    // Somebody has begun it anew, as a shell does with a file that it writes to (`>`).
    if (size < file.position) file.position = 0;
    // Holes, which are made at once whatever their size, but read at the pace of all else.
    const rest = size - file.position;
    if (rest > MOST_FILES * FILE_BYTES && rest > blocks * BLOCK_BYTES) file.position = size - MOST_FILES * FILE_BYTES;
    const length = Math.min(CHUNK_BYTES, size - file.position);
    if (length <= 0) return;
    const { bytesRead, buffer } = await file.handle.read(Buffer.allocUnsafe(length), 0, length, file.position);
    file.position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

/** How many bytes there are that have not been read. */
function restOf({ handle, position }: SpoolFile): number {
  return fstatSync(handle.fd).size - position;
}
