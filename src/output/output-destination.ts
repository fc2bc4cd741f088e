import { closeSync, fstatSync } from 'node:fs';
import { join } from 'node:path';
import {
  type OutputDescriptors,
  type OutputRotation,
  type OutputStream,
  openRotated,
  openToAppend,
} from '../../workers/output-writer.ts';
import type { OutputFiles } from '../gen/elide/cell/v1/cell.ts';
import { numbersOf } from './rotated-files.ts';
import { spoolFiles } from './spool.ts';

/**
 * Opens what a guest's output is written to: the files of its own directory, or the caller's; before the caller's pipes,
 * those of a spool. They can be read as well: nobody can count on opening them once the guest runs. `flags` are added for the
 * files of its own directory, such as O_NOFOLLOW. Throws when it cannot.
 */
export function openDestination(directory: string, files: OutputFiles | undefined, flags = 0): OutputDescriptors {
  if (files !== undefined) {
    const rotation = rotationOf(files.maxFiles > 0 ? files : spoolFiles(directory));
    return { stdout: -1, stderr: -1, marks: -1, rotation };
  }
  const opened: number[] = [];
  try {
    for (const name of ['stdout', 'stderr', 'marks']) opened.push(openToAppend(join(directory, name), 0o600, flags));
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  }
  const [stdout, stderr, marks] = opened as [number, number, number];
  return { stdout, stderr, marks };
}

export function closeDestination({ stdout, stderr, marks, rotation }: OutputDescriptors): void {
  if (rotation === undefined) for (const fd of [stdout, stderr, marks]) closeSync(fd);
}

/** How many bytes are in the files of a guest's own output, whatever has become of their names; 0 where it has none. */
export function bytesIn({ stdout, stderr, rotation }: OutputDescriptors): Record<OutputStream, number> {
  if (rotation !== undefined) return { stdout: 0, stderr: 0 };
  return { stdout: fstatSync(stdout).size, stderr: fstatSync(stderr).size };
}

/** Where a program finds its streams by path. */
export function outputPathsOf(directory: string, { rotation }: OutputDescriptors): Record<OutputStream, string> {
  const path = (stream: OutputStream) =>
    rotation === undefined ? join(directory, stream) : `${rotation.paths[stream]}.${rotation.start[stream].file}`;
  return { stdout: path('stdout'), stderr: path('stderr') };
}

/** Goes on in the newest file there is: an execution of the same caller may have been here before. */
function rotationOf({
  stdout,
  stderr,
  maxFiles,
  maxFileBytes,
}: OutputFiles | ReturnType<typeof spoolFiles>): OutputRotation {
  const start = { stdout: newestOf(stdout), stderr: newestOf(stderr) };
  const current = new Int32Array(new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT));
  current.set([start.stdout.file, start.stderr.file]);
  return { paths: { stdout, stderr }, maxFiles, maxFileBytes: Number(maxFileBytes), current, start };
}

function newestOf(path: string): { file: number; bytes: number } {
  const file = Math.max(0, ...numbersOf(path));
  const fd = openRotated(path, file);
  try {
    return { file, bytes: fstatSync(fd).size };
  } finally {
    closeSync(fd);
  }
}
