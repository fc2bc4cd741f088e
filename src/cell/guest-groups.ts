import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { killAll, tryRemove } from '../cgroup-directory.ts';
import { anonymousBytesOf, readKernelFile } from '../proc-file.ts';
import { threadsOf } from '../processes.ts';
import type { GuestLimits } from './engine.ts';

/** How often a directory that is still busy is tried again, and for how long, in ms. The daemon removes what stays. */
const REMOVE_RETRY_MS = 5;
const REMOVE_LIMIT_MS = 1_000;

/** What file cache is charged with, the kernel's own notes of it included: measured on ext4, 2.7 % of it. */
const CACHE_COST = 1.027;

/** Names of files and of figures in them, by version. */
const FILES = {
  1: {
    current: 'memory.usage_in_bytes',
    peak: 'memory.max_usage_in_bytes',
    inactiveFile: 'total_inactive_file',
    file: 'total_cache',
    shared: 'total_shmem',
    events: 'memory.oom_control',
    // Moves the one thread that writes. `cgroup.procs` would wait for the whole machine: 0.1 to 20 ms.
    join: 'tasks',
  },
  2: {
    current: 'memory.current',
    peak: 'memory.peak',
    inactiveFile: 'inactive_file',
    file: 'file',
    shared: 'shmem',
    events: 'memory.events',
    join: 'cgroup.procs',
  },
} as const;

/** Makes control groups for guests: those that have a limit the kernel can hold, and those that nothing else sweeps up behind. */
export class GuestGroups {
  readonly #version: 1 | 2;
  readonly #cgroups: Record<string, string>;

  /** As the daemon told: the layout, 1 or 2, and the cell's directories by controller, `memory` and `pids`. */
  constructor(options: { version: number; cgroups: Record<string, string> }) {
    this.#version = options.version === 2 ? 2 : 1;
    this.#cgroups = options.cgroups;
  }

  /**
   * Makes a guest's group; undefined when it has no limit that one could hold, and is not to be swept up behind by it either.
   * Throws the file system's error.
   */
  create(executionKey: string, { memoryBytes, processes }: GuestLimits, sweeps = false): GuestGroup | undefined {
    const { memory, pids } = this.#cgroups;
    const directoryIn = (parent: string) => join(parent, `guest-${executionKey}`);
    const memoryDirectory = memory && memoryBytes !== undefined ? directoryIn(memory) : undefined;
    const pidsDirectory = pids && processes !== undefined ? directoryIn(pids) : undefined;
    const directories = new Set([memoryDirectory, pidsDirectory].filter((directory) => directory !== undefined));
    const any = pids ?? memory;
    if (directories.size === 0 && sweeps && any) directories.add(directoryIn(any));
    if (directories.size === 0) return undefined;
    const group = new GuestGroup(this.#version, directories, memoryDirectory);
    try {
      for (const directory of directories) mkdirSync(directory);
      if (memoryDirectory !== undefined) this.#limitMemory(memoryDirectory, String(memoryBytes));
      if (pidsDirectory !== undefined) writeFileSync(join(pidsDirectory, 'pids.max'), String(processes));
    } catch (error) {
      void group.remove();
      throw error;
    }
    return group;
  }

  #limitMemory(directory: string, bytes: string): void {
    const write = (file: string, value: string) => writeFileSync(join(directory, file), value);
    if (this.#version === 2) {
      write('memory.max', bytes);
      write('memory.oom.group', '1');
    } else {
      write('memory.limit_in_bytes', bytes);
    }
    try {
      if (this.#version === 2) write('memory.swap.max', '0');
      else write('memory.memsw.limit_in_bytes', bytes);
    } catch {
      // a kernel that does not account for swap
    }
  }
}

/** One guest's control group, made before the guest and removed after its end. */
export class GuestGroup {
  readonly #files: (typeof FILES)[1 | 2];
  readonly #version: 1 | 2;
  readonly #directories: Set<string>;
  readonly #memory: string | undefined;
  /** What it was said to hold last. */
  #heldBytes = 0;

  constructor(version: 1 | 2, directories: Set<string>, memory: string | undefined) {
    this.#version = version;
    this.#files = FILES[version];
    this.#directories = directories;
    this.#memory = memory;
  }

  /** Absolute paths of files: a process of one thread that writes `0` into each of them has joined. */
  get joinPaths(): string[] {
    return [...this.#directories].map((directory) => join(directory, this.#files.join));
  }

  /**
   * What the guest holds, file cache that nobody uses excepted, in bytes; undefined where no memory is accounted. What
   * is such cache the kernel tells late: more than before is told only of what the guest cannot have on a disk.
   */
  memoryBytes(): number | undefined {
    const current = this.#number(this.#files.current);
    if (current === undefined) return undefined;
    const bytes = Math.max(0, current - this.#statistic(this.#files.inactiveFile));
    this.#heldBytes = bytes > this.#heldBytes ? Math.min(bytes, this.#filelessBytes()) : bytes;
    return this.#heldBytes;
  }

  /**
   * The most it ever held, without what may have been file cache then: what there is now, or all that passed through it
   * (`filedBytes`). Undefined where that is not known.
   */
  peakBytes(filedBytes = 0): number | undefined {
    const peak = this.#number(this.#files.peak);
    if (peak === undefined) return undefined;
    const left = (this.#number(this.#files.current) ?? 0) - this.#filelessBytes();
    const cache = Math.max(left, this.#statistic(this.#files.file), Math.ceil(filedBytes * CACHE_COST));
    return Math.max(0, peak - cache);
  }

  /** True once the kernel has killed a process of the group for want of memory. */
  get isOutOfMemory(): boolean {
    return Number(/^oom_kill (\d+)$/m.exec(this.#read(this.#files.events))?.[1] ?? 0) > 0;
  }

  /** True once the kernel has killed only some of the group's processes: version 2 kills them all. */
  get isMaimed(): boolean {
    return this.#version === 1 && this.isOutOfMemory;
  }

  /** Removes it, with force against what may be left in it. */
  async remove(): Promise<void> {
    const endMs = performance.now() + REMOVE_LIMIT_MS;
    for (const directory of this.#directories) {
      while (!tryRemove(directory) && performance.now() < endMs) {
        killAll(directory);
        await wait(REMOVE_RETRY_MS);
      }
    }
  }

  /** What its processes have that is of no file, and files that lie in memory. */
  #filelessBytes(): number {
    const pids = this.#read('cgroup.procs').split('\n').map(Number);
    return pids.reduce((sum, pid) => sum + anonymousBytes(pid), this.#statistic(this.#files.shared));
  }

  #number(file: string): number | undefined {
    const text = this.#read(file);
    return text === '' ? undefined : Number(text);
  }

  #statistic(name: string): number {
    return Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(this.#read('memory.stat'))?.[1] ?? 0);
  }

  #read(file: string): string {
    if (this.#memory === undefined) return '';
    // Undefined: gone, or older than the file.
    return readKernelFile(join(this.#memory, file)) ?? '';
  }
}

/** Nothing of one that is gone, or (0) of another pid namespace. */
function anonymousBytes(pid: number): number {
  if (pid === 0) return 0;
  const bytes = anonymousBytesIn(`/proc/${pid}`);
  if (bytes > 0) return bytes;
  // A process whose first thread has ended shows its memory only below one of the others.
  const others = threadsOf(pid)
    .values()
    .map((thread) => anonymousBytesIn(`/proc/${pid}/task/${thread}`));
  return others.find((other) => other > 0) ?? 0;
}

function anonymousBytesIn(directory: string): number {
  return anonymousBytesOf(readKernelFile(`${directory}/statm`));
}
