import { readFileSync } from 'node:fs';
import { childrenOf, usageOfTrees } from '../processes.ts';
import type { GuestUsage } from './engine.ts';
import type { GuestGroup } from './guest-groups.ts';

/** Clock ticks a second in /proc/PID/stat. */
const TICKS = 100;
/** What a guest, just forked, does not share with its zygote any more: measured, 0.9 MB. */
const FRESH_BYTES = 2 ** 20;

/** What a shepherd reports of its guest's end: CPU seconds, and the largest resident set of one process, in KiB. */
export interface Reaped {
  user: number;
  system: number;
  maxrss: number;
}

/** What a Python guest and everything below it uses: sampled while it runs, exact once its shepherd has reaped it all. */
export class PythonUsage {
  readonly #group: GuestGroup | undefined;
  #last: GuestUsage = {
    userSeconds: 0,
    systemSeconds: 0,
    memoryBytes: 0,
    peakMemoryBytes: 0,
    heapBytes: 0,
    externalBytes: 0,
    wasmBytes: 0,
    processes: 0,
    threads: 0,
    droppedBytes: 0,
  };

  /** A guest with a group holds what the group is charged with, which is what its limit is about. */
  constructor(group: GuestGroup | undefined) {
    this.#group = group;
  }

  /** The newest figures. */
  get last(): GuestUsage {
    return this.#last;
  }

  /** Looks at everything below the shepherd, and at what the shepherd has reaped. */
  sample(guest: number, shepherd: number): void {
    // First, so that a process which ends meanwhile is counted not at all, rather than twice.
    const reaped = reapedSeconds(shepherd);
    const accounted = this.#group?.memoryBytes();
    const tree = usageOfTrees(new Set([guest, ...childrenOf(shepherd)]), accounted === undefined ? undefined : () => 0);
    const memoryBytes = accounted ?? tree.memoryBytes;
    this.#last = {
      ...this.#last,
      userSeconds: Math.max(this.#last.userSeconds, tree.userSeconds + reaped.user),
      systemSeconds: Math.max(this.#last.systemSeconds, tree.systemSeconds + reaped.system),
      memoryBytes,
      peakMemoryBytes: Math.max(this.#last.peakMemoryBytes, memoryBytes),
      processes: tree.processes,
      threads: tree.threads,
    };
  }

  /** `startKb`: the resident set of the guest when it was forked, in KiB; nearly all of that is shared. */
  finish(reaped: Reaped, startKb: number): void {
    // Of one process only, where the samples are of all.
    const ownBytes = Math.max(0, reaped.maxrss - startKb) * 1024 + FRESH_BYTES;
    const peakMemoryBytes = Math.max(this.#last.peakMemoryBytes, this.#group?.peakBytes() ?? 0, ownBytes);
    this.#last = {
      ...this.#last,
      userSeconds: reaped.user,
      systemSeconds: reaped.system,
      memoryBytes: this.#last.memoryBytes || peakMemoryBytes,
      peakMemoryBytes,
      processes: Math.max(1, this.#last.processes),
      threads: Math.max(1, this.#last.threads),
    };
  }
}

/** CPU time of the descendants that a process has waited for, in seconds. */
function reapedSeconds(pid: number): { user: number; system: number } {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // proc_pid_stat(5), from the state on: cutime cstime at 13 and 14.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return { user: Number(fields[13]) / TICKS, system: Number(fields[14]) / TICKS };
  } catch {
    return { user: 0, system: 0 };
  }
}
