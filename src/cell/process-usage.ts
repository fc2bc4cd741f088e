import { type GuestUsage, NO_USAGE } from './engine.ts';
import type { GuestGroup } from './guest-groups.ts';
import type { ProcessMessage } from './messages.ts';
import { TreeMeter } from './process-tree.ts';

type Started = ProcessMessage & { type: 'started' };
type Ended = ProcessMessage & { type: 'end' };

/** What a process that has booted does not share with others that run the same program: measured, 10 MB. */
const FRESH_BYTES = 10 * 2 ** 20;

/** What a JavaScript guest with a process of its own uses, with everything below it: sampled, and as it says itself at its end. */
export class ProcessUsage {
  readonly #group: GuestGroup | undefined;
  readonly #pid: number;
  readonly #boot: Started;
  readonly #limitBytes: number | undefined;
  readonly #tree = new TreeMeter();
  #last: GuestUsage = { ...NO_USAGE, processes: 1, threads: 1 };

  /** A guest with a group holds what the group is charged with, which is what its limit (`limitBytes`) is about. */
  constructor(pid: number, boot: Started, group: GuestGroup | undefined, limitBytes: number | undefined) {
    this.#pid = pid;
    this.#boot = boot;
    this.#group = group;
    this.#limitBytes = limitBytes;
  }

  /** The newest figures. */
  get last(): GuestUsage {
    return this.#last;
  }

  /** Looks at it; the very same figures as before when nothing has changed. */
  sample(droppedBytes: number): GuestUsage {
    const accounted = this.#group?.memoryBytes();
    const tree = this.#tree.usage([this.#pid], accounted === undefined, this.#limitBytes);
    const { userSeconds, systemSeconds, memoryBytes, peakMemoryBytes } = this.#last;
    // It is gone, and its end is not heard yet.
    if (tree.processes === 0) return this.#last;
    const held = accounted ?? tree.memoryBytes;
    return this.#take({
      userSeconds: Math.max(userSeconds, tree.userSeconds - this.#boot.userSeconds),
      systemSeconds: Math.max(systemSeconds, tree.systemSeconds - this.#boot.systemSeconds),
      memoryBytes: held || memoryBytes,
      peakMemoryBytes: Math.max(peakMemoryBytes, held),
      processes: tree.processes,
      threads: tree.threads,
      droppedBytes,
    });
  }

  /** The final figures. `ended`: what a guest said that ended by itself. */
  final(ended: Ended | undefined, droppedBytes: number): GuestUsage {
    const { userSeconds, systemSeconds, memoryBytes, peakMemoryBytes } = this.#last;
    const residentBytes = ended?.residentBytes ?? 0;
    // Of its own process alone, where the samples are of all.
    const grown = Math.max(0, residentBytes - this.#boot.residentBytes) + FRESH_BYTES;
    const peak = Math.max(peakMemoryBytes, this.#group?.peakBytes() ?? (ended === undefined ? 0 : grown));
    return this.#take({
      // What others said in its name may only add to what was seen.
      userSeconds: Math.max(userSeconds, ended?.userSeconds ?? 0),
      systemSeconds: Math.max(systemSeconds, ended?.systemSeconds ?? 0),
      memoryBytes: memoryBytes || peak,
      peakMemoryBytes: peak,
      droppedBytes,
    });
  }

  /** Lets go of what it reads; the newest figures stay. */
  close(): void {
    this.#tree.close();
  }

  #take(figures: Partial<GuestUsage>): GuestUsage {
    const names = Object.keys(figures) as (keyof GuestUsage)[];
    if (names.some((name) => figures[name] !== this.#last[name])) this.#last = { ...this.#last, ...figures };
    return this.#last;
  }
}
