import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { mkdir, readdir, rename, stat } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { nanoid } from 'nanoid';
import { StartupError } from './errors.ts';
import { readPlainFile } from './plain-file.ts';
import { removeFile, removeTree } from './remove-tree.ts';

/** The longest path a unix socket can have on Linux, in bytes (sun_path without its NUL). */
const LONGEST_SOCKET_PATH = 107;
/** What a cell's socket adds to the cells directory: a key, `.sock` and a slash. */
const CELL_SOCKET_CHARS = 16;

const LOCK_NAME = 'lock.db';
/** Its file says by device and inode which directory it lies in, and by which path: in a copy it says another. */
const PLACE_NAME = 'place';
/** How much is read of that. */
const PLACE_BYTES = 8192;

/** What a daemon may have made that did not come to its lock, by the directory it is in: empty directories. */
const BEGUN: Readonly<Record<string, readonly string[]>> = {
  '': ['daemon', 'work'],
  daemon: ['cells', 'output'],
  'daemon/cells': [],
  'daemon/output': [],
  work: [],
};

/** The places below the state directory. `daemon/` is the daemon's alone; `work/` is what guests may touch. */
export interface StatePaths {
  daemon: string;
  journal: string;
  cells: string;
  /** What cells run, each build in a directory of its own: made when the first is put there. */
  programs: string;
  output: string;
  work: string;
}

/** What lies in the state directory and belongs to nothing any more, by its paths. */
export interface Leavings {
  output: string[];
  work: string[];
}

/** Throws when a unix socket cannot have this path: what listening says of it is misleading. */
export function checkSocketPath(path: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > LONGEST_SOCKET_PATH) {
    throw new StartupError(`socket path ${path} has ${bytes} bytes; at most ${LONGEST_SOCKET_PATH} are possible`);
  }
  const directory = dirname(path);
  if (!existsSync(directory)) throw new StartupError(`socket ${path}: there is no directory ${directory}`);
}

/**
 * The state directory, owned by one daemon at a time. The lock is an SQLite database that is held exclusively: the
 * kernel frees it with the process, however that ends.
 */
export class StateDirectory {
  readonly root: string;
  readonly paths: StatePaths;
  readonly #lock: DatabaseSync;

  private constructor(root: string, paths: StatePaths, lock: DatabaseSync) {
    this.root = root;
    this.paths = paths;
    this.#lock = lock;
  }

  /** Takes the lock, and makes the directories: before it, no more than it needs. */
  static async open(root: string): Promise<StateDirectory> {
    const daemon = join(root, 'daemon');
    const [cells, output, programs] = [join(daemon, 'cells'), join(daemon, 'output'), join(daemon, 'programs')];
    const paths = { daemon, journal: join(daemon, 'journal.db'), cells, programs, output, work: join(root, 'work') };
    const cellSocketBytes = Buffer.byteLength(paths.cells) + CELL_SOCKET_CHARS;
    if (cellSocketBytes > LONGEST_SOCKET_PATH) {
      throw new StartupError(
        `state directory ${root} is too long: the sockets below it would have ${cellSocketBytes} bytes, ` +
          `at most ${LONGEST_SOCKET_PATH} are possible`,
      );
    }
    await requireOurs(root, join(daemon, LOCK_NAME));
    const makeAll = async (...made: string[]) => {
      for (const path of made) await mkdir(path, { recursive: true, mode: 0o700 });
    };
    let lock: DatabaseSync | undefined;
    try {
      await makeAll(root, daemon);
      const { mode, uid } = await stat(daemon);
      const own = process.getuid?.() ?? uid;
      if (uid !== own) throw new Error(`${daemon} belongs to user ${uid}, this daemon runs as user ${own}`);
      if ((mode & 0o077) !== 0) throw new Error(`${daemon} is open to others; make it 0700`);
      lock = takeLock(root, join(daemon, LOCK_NAME));
      await makeAll(cells, output, paths.work);
      return new StateDirectory(root, paths, lock);
    } catch (error) {
      lock?.close();
      if (error instanceof StartupError) throw error;
      throw new StartupError(`state directory ${root} cannot be used: ${(error as Error).message}`, { cause: error });
    }
  }

  /**
   * The path of the directory that this one is a copy of; undefined where it is none, moved or not, and where there is no
   * other one by that path any more: then no daemon is there that could own what they both name.
   */
  get original(): string | undefined {
    const [, place, path] = /^(\d+ \d+) (.+)$/s.exec(this.#said) ?? [];
    if (path === undefined || place === this.#place) return undefined;
    const there = placeOf(join(path, 'daemon'));
    return there === undefined || there === this.#place ? undefined : path;
  }

  /** Says that it is this directory, by this path: from here on it is no copy. */
  settle(): void {
    const place = `${this.#place} ${this.root}`;
    if (this.#said === place) return;
    try {
      writeFileSync(this.#placeFile, place, { mode: 0o600 });
    } catch {
      // On a disk that cannot be written nothing begins, either.
    }
  }

  get #placeFile(): string {
    return join(this.paths.daemon, PLACE_NAME);
  }

  get #said(): string {
    return readPlainFile(this.#placeFile, PLACE_BYTES)?.toString() ?? '';
  }

  get #place(): string | undefined {
    return placeOf(this.paths.daemon);
  }

  /** Lets the directory go. What lies in it stays. */
  async close(): Promise<void> {
    this.#lock.close();
  }

  /**
   * What lies below it and belongs to nothing any more: of executions that are neither live nor finished and kept, of
   * sessions that are not open and have no others, and what is no directory of ours at all. All are named by their keys.
   */
  unknown({ open, live, finished }: Record<'open' | 'live' | 'finished', string[]>): Leavings {
    const sessions = new Set(open);
    const [running, known] = [new Set(live), new Set([...live, ...finished])];
    const below = (directory: string, kept: Set<string>) =>
      readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
        const path = join(directory, entry.name);
        // A guest may have put a link here, which is not to be followed.
        if (!entry.isDirectory()) return [path];
        const executions = namesIn(path);
        const unknown = executions.filter((executionKey) => !kept.has(executionKey));
        const isLeft = unknown.length === executions.length && !sessions.has(entry.name);
        return isLeft ? [path] : unknown.map((executionKey) => join(path, executionKey));
      });
    return { output: below(this.paths.output, known), work: below(this.paths.work, running) };
  }

  /** Moves output that nobody knows, but may want, to a new directory beside all other; returns that. */
  async setAside(output: string[]): Promise<string> {
    const aside = `${this.paths.output}.set-aside-${new Date().toISOString().replaceAll(/[:.]/g, '-')}`;
    for (const path of output) {
      const place = join(aside, relative(this.paths.output, path));
      await mkdir(dirname(place), { recursive: true, mode: 0o700 });
      await rename(path, place);
    }
    return aside;
  }

  /** Removes what belongs to nothing any more. */
  async remove(paths: string[]): Promise<void> {
    for (const path of paths) await removeTree(path);
  }
}

/** Tells a directory from every other; undefined where there is none. Empty for one that is out of reach. */
function placeOf(directory: string): string | undefined {
  try {
    const found = statSync(directory, { bigint: true, throwIfNoEntry: false });
    return found && `${found.dev} ${found.ino}`;
  } catch {
    return '';
  }
}

/** What is in a directory that a guest can reach: nothing, where it cannot be read. */
function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

/** A directory that holds something else is not ours to clean. */
async function requireOurs(root: string, lock: string): Promise<void> {
  for (const [directory, known] of Object.entries(BEGUN)) {
    const names = await readdir(join(root, directory)).catch(() => []);
    const other = names.find((name) => !known.includes(name));
    if (other === undefined) continue;
    // The one that has the lock may just be making the rest.
    if ((await stat(lock).catch(() => undefined)) !== undefined) return;
    const path = join(directory, other);
    throw new StartupError(`state directory ${root} holds something else (${path}); name an empty or a new directory`);
  }
}

function takeLock(root: string, path: string): DatabaseSync {
  try {
    return lockExclusively(path);
  } catch (error) {
    const { message } = error as Error;
    const refuse = (why: string) => new StartupError(`state directory ${root} ${why}`, { cause: error });
    if (!canLock(dirname(path))) {
      throw refuse(`cannot be used: no file in it can be locked (${message}); name one on another file system`);
    }
    throw refuse(/locked/.test(message) ? 'is in use by another daemon' : `cannot be used: ${message}`);
  }
}

function lockExclusively(path: string): DatabaseSync {
  const lock = new DatabaseSync(path, { timeout: 0 });
  try {
    lock.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock.close();
    throw error;
  }
}

/** Tries it with a file that nobody else knows: a file system without locks says of each that somebody has it. */
function canLock(directory: string): boolean {
  const path = join(directory, `lock-${nanoid(8)}.db`);
  try {
    lockExclusively(path).close();
    return true;
  } catch {
    return false;
  } finally {
    removeFile(path);
  }
}
