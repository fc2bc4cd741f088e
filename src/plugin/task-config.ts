import { once } from 'node:events';
import { readlink, realpath, stat } from 'node:fs/promises';
import { join, resolve, sep } from 'node:path';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import type { DaemonAddress } from '../client/index.ts';
import { InvalidArgumentError, UnavailableError } from '../errors.ts';
import type { TaskConfig } from '../gen/nomad/driver.ts';
import { openPlainFile } from '../plain-file.ts';
import { spawnChild } from '../spawn-child.ts';
import { LARGEST_CODE_BYTES } from '../supervisor/limits.ts';
import type { OutputFiles } from '../supervisor/requests.ts';
import { countTo, sizeOf } from './hclspec.ts';

/** Where the logs go of a job that wants none. */
const NOWHERE = '/dev/null';
const ROTATION = { maxFiles: 10, maxFileBytes: 10 * 2 ** 20 };
/** How a plugin is told of it: what daemons take. 0 is as good as nothing said. */
export const ROTATION_FIELDS = { log_max_files: countTo(1000), log_max_file_size: sizeOf(1024, 2 ** 40) };

/** How a task is isolated whose configuration does not say. */
export const ISOLATION = 'process';

/** Where a task is at home. */
export const taskDirectoryOf = ({ allocDir, name }: TaskConfig) => join(allocDir, name);

/**
 * Where a task's output goes: into files that are rotated (`direct`) where the agent serves logs from, into the pipes of its
 * log collector, or nowhere. Where the configuration does not say, rotation is as Nomad's own log collector has it.
 */
export function outputFilesOf(task: TaskConfig, direct: boolean, maxFiles = 0, maxFileBytes = 0): OutputFiles {
  const [stdout, stderr] = [task.stdoutPath || NOWHERE, task.stderrPath || NOWHERE];
  if (!direct || stdout === NOWHERE) return { stdout, stderr, maxFiles: 0, maxFileBytes: 0 };
  const path = join(task.allocDir, 'alloc', 'logs', task.name);
  const rotation = { maxFiles: maxFiles || ROTATION.maxFiles, maxFileBytes: maxFileBytes || ROTATION.maxFileBytes };
  return { stdout: `${path}.stdout`, stderr: `${path}.stderr`, ...rotation };
}

/** Whether that is the id of another start of the same task in the same allocation, not of what runs beside one. */
export function isOtherStart({ id, allocId, name }: TaskConfig, other: string): boolean {
  const prefix = `${allocId}/${name}/`;
  return other !== id && other.startsWith(prefix) && !other.includes('/', prefix.length);
}

/** The memory a job wants for a task, in MiB; undefined for as much as there is. */
export function memoryMbOf({ resources }: TaskConfig): number | undefined {
  const { memoryMb = 0n, memoryMaxMb = 0n } = resources?.allocatedResources?.memory ?? {};
  const wanted = Number(memoryMaxMb === 0n ? memoryMb : memoryMaxMb);
  return wanted > 0 ? wanted : undefined;
}

/** Rejects with an `InvalidArgumentError` for a task of a user that is not the daemon's, by the owner of its socket. */
export async function requireDaemonsUser({ user }: TaskConfig, daemon: DaemonAddress): Promise<void> {
  if (user === '') return;
  if ('tcp' in daemon) {
    throw new InvalidArgumentError(`user "${user}" cannot be checked: only on a socket it is seen whose the daemon is`);
  }
  const { uid } = await stat(daemon.socket).catch((cause: Error) => {
    throw new UnavailableError(`no daemon is there (${cause.message})`, { cause });
  });
  if ((await uidOf(user)) === uid) return;
  throw new InvalidArgumentError(`unknown user "${user}": this driver runs tasks as the daemon's user, ${uid}`);
}

/** Users may come from elsewhere than `/etc/passwd`; a number need not have a name. */
async function uidOf(user: string): Promise<number | undefined> {
  if (/^\d+$/.test(user)) return Number(user);
  try {
    const asked = spawnChild('id', ['-u', '--', user], { stdio: ['ignore', 'pipe', 'ignore'] });
    const [uid, [code]] = await Promise.all([text(asked.stdout as Readable), once(asked, 'exit')]);
    return code === 0 ? Number(uid) : undefined;
  } catch {
    return undefined;
  }
}

/** A program in the task's directory or the one its allocation shares, wherever links lead; rejects with why not. */
export async function readTaskFile(task: TaskConfig, file: string): Promise<{ path: string; text: string }> {
  const directory = taskDirectoryOf(task);
  const roots = await Promise.all([directory, join(task.allocDir, 'alloc')].map((root) => realpath(root)));
  const requireInside = (path: string) => {
    if (!roots.some((root) => path.startsWith(root + sep))) throw new Error(`leads out of ${directory}, to ${path}`);
  };
  const path = await realpath(resolve(directory, file));
  requireInside(path);
  await using handle = await openPlainFile(path);
  if (handle === undefined) throw new Error(`${path} is no plain file`);
  // What else runs in the allocation may have put a link in the place of a directory on the way meanwhile.
  requireInside(await readlink(`/proc/self/fd/${handle.fd}`));
  const { size } = await handle.stat();
  if (size > LARGEST_CODE_BYTES) throw new Error(`it has ${size} bytes; at most ${LARGEST_CODE_BYTES} are allowed`);
  return { path, text: new TextDecoder('utf-8', { fatal: true }).decode(await handle.readFile()) };
}
