import { constants, type Dir, lstatSync, opendirSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { readKernelFile } from '../proc-file.ts';
import { childrenOf, isLeft } from '../processes.ts';
import { isShortage, withDescriptor } from '../spare-descriptor.ts';
import type { OwnFile } from './own-file.ts';

/** After so long whoever else waits has a turn: one process may have a million descriptors. */
const TURN_MS = 2;

/** What is looked for: a file by its path, as the kernel shows it, and by what it is. */
type SoughtFile = Pick<OwnFile, 'path' | 'is'>;

/** The mode of a descriptor below /proc/PID/fd that is open for writing. */
const WRITABLE = 0o200;

/**
 * Processes that can write to one of these files, as far as they are found until then (by `performance.now`). Not this one
 * and its children: one that is just being started has for a moment whatever its parent has open. Rejects where there is
 * no descriptor to look with.
 */
export async function writersOf(files: readonly OwnFile[], endMs: number): Promise<number[]> {
  const found = new Set<number>();
  for await (const { pid } of openForWriting(files, endMs, allProcesses())) found.add(pid);
  for (const own of [process.pid, ...childrenOf(process.pid)]) found.delete(own);
  return [...found];
}

/** Those of these files that no process, or none of these, can write to; undefined where that is not known by then. */
export async function unwrittenOf(
  files: readonly OwnFile[],
  endMs: number,
  pids: Iterable<number> = allProcesses(),
): Promise<Set<OwnFile> | undefined> {
  const unwritten = new Set(files);
  const paths = new Map(files.map((file) => [file, file.path]));
  for await (const { file } of openForWriting(files, endMs, pids)) unwritten.delete(file);
  // Whom it has not come to may write to any of them.
  if (performance.now() >= endMs) return undefined;
  // Removed meanwhile, it was not sought by the path that its descriptors have had since.
  for (const file of unwritten) if (file.path !== paths.get(file)) unwritten.delete(file);
  return unwritten;
}

/**
 * As {@link writersOf} of files that others may write to as well: only who got its descriptor from the one that opened rotated
 * files for a guest, and is left of that, below no cell.
 */
export async function writersLeftOf(files: readonly SoughtFile[], endMs: number): Promise<number[]> {
  const found = new Set<number>();
  for await (const { pid } of openForWriting(files, endMs, allProcesses(), isOpenedRotated))
    if (isLeft(pid)) found.add(pid);
  return [...found];
}

/** Few open what they write to as `openRotated` does, and no process can make that true of its descriptor later. */
function isOpenedRotated(descriptor: string): boolean {
  const info = readKernelFile(descriptor.replace('/fd/', '/fdinfo/')) ?? '';
  return (Number.parseInt(/^flags:\s+(\d+)$/m.exec(info)?.[1] ?? '0', 8) & constants.O_NOFOLLOW) !== 0;
}

/** Who can write to which of these files, by descriptors that are sought; of many of one of them each may be told. */
async function* openForWriting<File extends SoughtFile>(
  files: readonly File[],
  endMs: number,
  pids: Iterable<number>,
  isSought: (descriptor: string) => boolean = () => true,
): AsyncGenerator<{ pid: number; file: File }> {
  const byPath = new Map(files.map((file) => [file.path, file]));
  let turnEndsMs = 0;
  const giveWay = async () => {
    if (performance.now() < turnEndsMs) return;
    await nextTurn();
    turnEndsMs = performance.now() + TURN_MS;
  };
  for (const pid of pids) {
    if (performance.now() >= endMs) return;
    await giveWay();
    const left = new Set(files);
    for (const descriptor of descriptorsOf(pid)) {
      if (performance.now() >= endMs) return;
      await giveWay();
      const file = writtenBy(byPath, descriptor);
      if (file === undefined || !isSought(descriptor)) continue;
      yield { pid, file };
      left.delete(file);
      if (left.size === 0) break;
    }
  }
}

function allProcesses(): number[] {
  return namesIn('/proc').map(Number).filter(Number.isInteger);
}

/** Those of its newest thread: the first one may have ended, and shows none then. One by one, as they are asked for. */
function* descriptorsOf(pid: number): Generator<string> {
  try {
    const directory = `/proc/${pid}/task/${namesIn(`/proc/${pid}/task`).at(-1)}/fd`;
    for (const fd of eachNameIn(directory)) yield `${directory}/${fd}`;
  } catch (error) {
    if (isShortage(error)) throw error;
  }
}

/** All at once where there is only the spare descriptor, which is not to be held while others have their turns. */
function* eachNameIn(directory: string): Generator<string> {
  let opened: Dir;
  try {
    opened = opendirSync(directory);
  } catch (error) {
    if (!isShortage(error)) throw error;
    yield* namesIn(directory);
    return;
  }
  try {
    for (let entry = opened.readSync(); entry !== null; entry = opened.readSync()) yield entry.name;
  } finally {
    opened.closeSync();
  }
}

function namesIn(directory: string): string[] {
  return withDescriptor(() => readdirSync(directory));
}

/** Of no other file more is asked than its path: the system that has it may hang, and whoever asks with it. */
function writtenBy<File extends SoughtFile>(byPath: ReadonlyMap<string, File>, descriptor: string): File | undefined {
  try {
    const file = byPath.get(readlinkSync(descriptor));
    if (file === undefined || (lstatSync(descriptor).mode & WRITABLE) === 0) return undefined;
    const stats = statSync(descriptor);
    return stats.isFile() && file.is(stats) ? file : undefined;
  } catch {
    return undefined;
  }
}
