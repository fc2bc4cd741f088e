import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { isAlive } from '../../src/processes.ts';
import { eventually } from './eventually.ts';

/** Processes whose command line holds `text`. Zombies have none. */
export function processesWith(text: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => read(`/proc/${pid}/cmdline`).split('\0').join(' ').includes(text))
    .map(Number);
}

/** The processes of cells whose sockets lie below a directory. */
export function cellsBelow(directory: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => (read(`/proc/${pid}/cmdline`).split('\0').at(-3) ?? '').startsWith(directory))
    .map(Number);
}

/** The living children of a process. */
export function childrenOf(parent: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && isAlive(Number(name)))
    .filter((name) => {
      const stat = read(`/proc/${name}/stat`);
      return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) === parent;
    })
    .map(Number);
}

/** Every living process below this one. */
export function descendants(of = process.pid): number[] {
  return childrenOf(of).flatMap((pid) => [pid, ...descendants(pid)]);
}

/** What each descriptor of a process is open for. */
export function openFiles(pid: number | 'self' = 'self'): string[] {
  return readdirSync(`/proc/${pid}/fd`).map((fd) => targetOf(`/proc/${pid}/fd/${fd}`));
}

/** The addresses that a process listens on over TCP, as proc_net_tcp(5) shows them. */
export function listensOnTcp(pid: number): string[] {
  const open = openFiles(pid);
  const sockets = ['tcp', 'tcp6'].flatMap((kind) => read(`/proc/net/${kind}`).split('\n').slice(1));
  return sockets
    .map((line) => line.trim().split(/\s+/))
    .filter(([, , , state, , , , , , inode]) => state === '0A' && open.includes(`socket:[${inode}]`))
    .map(([, address]) => address as string);
}

/** What this process has open, but for what comes and goes by itself. */
export function openDescriptors(): string[] {
  return openFiles().filter((file) => !isOfSleep(file));
}

/** Resolves once this process has no more open than `before`; rejects with what is new. */
export async function closedAgain(before: string[]): Promise<void> {
  const isClosed = () => openDescriptors().length <= before.length;
  await eventually('all descriptors are closed', isClosed).catch(({ message }) => {
    const added = openDescriptors();
    for (const file of before) if (added.includes(file)) added.splice(added.indexOf(file), 1);
    throw new Error(`${message}: ${before.length} were open, now there are also ${added.join(', ')}`);
  });
}

/** Of a process that sleeps a daemon keeps its figures open, and those of its cell's control group, for as long as it sleeps. */
export function isOfSleep(target: string): boolean {
  return /^\/proc\/\d+\/((sched)?stat|task\/\d+\/children)$|\/cell-[^/]+\/(cpuacct\.usage|cpu\.stat)$/.test(target);
}

function targetOf(fd: string): string {
  try {
    return readlinkSync(fd);
  } catch {
    // That of the listing itself.
    return '';
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
