import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { withDescriptor } from './spare-descriptor.ts';

// A guest can reach its own files, and those of its cell. What it puts there in their place is taken for nothing at all.

/** Opening a pipe would wait for somebody who writes to it. */
const READ = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** How opening fails where there is nothing, a link, a socket, or no directory for it. */
const NO_FILE = new Set(['ENOENT', 'ELOOP', 'ENXIO', 'ENOTDIR']);

/** Whether an error says that there is no such file. */
export function isNoFile(error: unknown): boolean {
  return NO_FILE.has((error as NodeJS.ErrnoException).code ?? '');
}

/** Opens a file for reading; undefined where there is none, or no plain one. Rejects when it cannot be read. */
export async function openPlainFile(path: string): Promise<FileHandle | undefined> {
  let handle: FileHandle;
  try {
    handle = await open(path, READ);
  } catch (error) {
    if (isNoFile(error)) return undefined;
    throw error;
  }
  if (fstatSync(handle.fd).isFile()) return handle;
  await handle.close();
  return undefined;
}

/**
 * What is in a file, or the end of it where it has more than so many bytes; undefined where there is none, or no plain one,
 * or it cannot be read. Waits for the disk.
 */
export function readPlainFile(path: string, mostBytes: number): Buffer | undefined {
  try {
    return withDescriptor(() => {
      const fd = openSync(path, READ);
      try {
        const found = fstatSync(fd);
        if (!found.isFile()) return undefined;
        if (found.size <= mostBytes) return readFileSync(fd);
        const end = Buffer.alloc(mostBytes);
        return end.subarray(0, readSync(fd, end, 0, mostBytes, found.size - mostBytes));
      } finally {
        closeSync(fd);
      }
    });
  } catch {
    return undefined;
  }
}
