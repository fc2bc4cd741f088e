import { closeSync, constants, fstatSync, openSync, readFileSync, rmdirSync, type Stats, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { OutputStream } from '../../workers/output-writer.ts';

/** The output files of an execution: see `OutputWriter`. */
export type OutputName = OutputStream | 'marks';

/** Most that is sealed of one execution, all its files together, in bytes: as files, each of them takes as much of a disk. */
export const MOST_SEALED_BYTES = 4096;

/** What the output files of a finished execution held, to be kept in their place. */
export interface SealedOutput extends Record<OutputName, Uint8Array> {
  /** When the file of each stream was made, in Unix ms; 0 for one that was not there. */
  bornMs: Record<OutputStream, number>;
}

/** When a file was made, in Unix ms: where a file system does not say, when it was written last. */
export function bornMsOf({ birthtimeMs, mtimeMs }: Stats): number {
  return birthtimeMs || mtimeMs;
}

/**
 * What is in a directory of output, for sealing; undefined when that is more than {@link MOST_SEALED_BYTES}, or cannot be
 * read as plain files. Nobody writes any more. Waits for the disk.
 */
export function smallOutput(directory: string): SealedOutput | undefined {
  try {
    const [stdout, stderr, marks] = [
      smallFile(directory, 'stdout'),
      smallFile(directory, 'stderr'),
      smallFile(directory, 'marks'),
    ];
    const bytes = stdout.data.byteLength + stderr.data.byteLength + marks.data.byteLength;
    if (bytes > MOST_SEALED_BYTES) return undefined;
    const bornMs = { stdout: stdout.bornMs, stderr: stderr.bornMs };
    return { stdout: stdout.data, stderr: stderr.data, marks: marks.data, bornMs };
  } catch {
    return undefined;
  }
}

/** What an error says of the disk, rather than of the file: all else that is removed there now fails as well. */
const OF_THE_DISK = new Set(['EROFS', 'EIO']);

/**
 * Removes the output files, and their directory unless there is something else in it. Waits for the disk, and throws when
 * that does not let anything be removed.
 */
export function removeSmallOutput(directory: string): void {
  const removals = [
    ...(['stdout', 'stderr', 'marks'] as const).map((name) => () => unlinkSync(join(directory, name))),
    () => rmdirSync(directory),
  ];
  for (const remove of removals) {
    try {
      remove();
    } catch (error) {
      if (OF_THE_DISK.has((error as NodeJS.ErrnoException).code ?? '')) throw error;
      // It was never there, or somebody else removes it at the same time; else the next start tries again.
    }
  }
}

/** Throws for what is large or no plain file: a guest can reach its own files, and nothing here may wait for it. */
function smallFile(directory: string, name: OutputName): { data: Uint8Array; bornMs: number } {
  let fd: number;
  try {
    fd = openSync(join(directory, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { data: new Uint8Array(), bornMs: 0 };
    throw error;
  }
  try {
    const found = fstatSync(fd);
    if (!found.isFile() || found.size > MOST_SEALED_BYTES) throw new RangeError(`${name} is no small file`);
    return { data: readFileSync(fd), bornMs: bornMsOf(found) };
  } finally {
    closeSync(fd);
  }
}
