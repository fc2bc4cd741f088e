import { type GuestUsage, NO_USAGE } from './engine.ts';
import type { GuestGroup } from './guest-groups.ts';
import { ProcessMeter, REFRESH_MS, TreeMeter } from './process-tree.ts';

/** What a guest, just forked, does not share with its zygote any more: measured, 0.9 MB. */
const FRESH_BYTES = 2 ** 20;
const BLOCK_BYTES = 512;

/**
 * What a shepherd reports of its guest's end: CPU seconds, the largest resident set of one process, in KiB, and blocks of
 * {@link BLOCK_BYTES} that were read from disks or written to files on them.
 */
export interface Reaped {
  user: number;
  system: number;
  maxrss: number;
  blocks: number;
}

/** What a Python guest and everything below it uses: sampled while it runs, exact once its shepherd has reaped it all. */
export class PythonUsage {
  readonly #group: GuestGroup | undefined;
  readonly #limitBytes: number | undefined;
  readonly #tree = new TreeMeter();
  #shepherd: ProcessMeter | undefined;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #last: GuestUsage = NO_USAGE;

  /** A guest with a group holds what the group is charged with, which is what its limit (`limitBytes`) is about. */
  constructor(group: GuestGroup | undefined, limitBytes: number | undefined) {
    this.#group = group;
    this.#limitBytes = limitBytes;
  }

  /** The newest figures. */
  get last(): GuestUsage {
    return this.#last;
  }

  /** Looks at everything below the shepherd, and at what the shepherd has reaped; false when none of it has run. */
  sample(guest: number, shepherd: number): boolean {
    this.#shepherd ??= new ProcessMeter(shepherd);
    const [shepherdSlept, treeSlept] = [this.#shepherd.slept(), this.#tree.slept()];
    const nowMs = performance.now();
    if (shepherdSlept && treeSlept && nowMs - this.#lookedMs < REFRESH_MS) return false;
    this.#lookedMs = nowMs;
    // First, so that a process which ends meanwhile is counted not at all, rather than twice.
    if (!this.#shepherd.look()) return true;
    const { reapedUserSeconds, reapedSystemSeconds } = this.#shepherd;
    const accounted = this.#group?.memoryBytes();
    const roots = [guest, ...this.#shepherd.children()];
    const tree = this.#tree.usage(roots, accounted === undefined, this.#limitBytes);
    const memoryBytes = accounted ?? tree.memoryBytes;
    this.#last = {
      ...this.#last,
      userSeconds: Math.max(this.#last.userSeconds, tree.userSeconds + reapedUserSeconds),
      systemSeconds: Math.max(this.#last.systemSeconds, tree.systemSeconds + reapedSystemSeconds),
      memoryBytes,
      peakMemoryBytes: Math.max(this.#last.peakMemoryBytes, memoryBytes),
      processes: tree.processes,
      threads: tree.threads,
    };
    return true;
  }

  /** `startKb`: the resident set of the guest when it was forked, in KiB; nearly all of that is shared. */
  finish(reaped: Reaped, startKb: number): void {
    // Of one process only, where the samples are of all.
    const ownBytes = Math.max(0, reaped.maxrss - startKb) * 1024 + FRESH_BYTES;
    const accountedBytes = this.#group?.peakBytes(reaped.blocks * BLOCK_BYTES) ?? 0;
    const peakMemoryBytes = Math.max(this.#last.peakMemoryBytes, accountedBytes, ownBytes);
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
  /** Lets go of what it reads; the newest figures stay. */
  close(): void {
    this.#shepherd?.close();
    this.#tree.close();
  }
}
