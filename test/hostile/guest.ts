import type { ExitReason, Rung } from '../../machines/execution.ts';
import type { SessionConfiguration, Snippet } from '../../src/supervisor/requests.ts';

/** What limits of single executions are called. */
interface ExecutionLimits {
  memoryLimitMb?: number;
  cpuTimeLimitMs?: number;
  outputLimitBytes?: number;
  outputPolicy?: 'truncate' | 'kill';
}

/** How a guest comes to its end. */
type Stop =
  /** By itself, or by a limit that it runs into. */
  | { by: 'itself' }
  /** Cancelled as soon as it has printed `ready`. */
  | { by: 'cancel'; graceMs: number }
  /** By the run limit, which passes while it is at its worst. */
  | { by: 'timeout'; timeoutMs: number; graceMs: number };

/** A guest that does harm, and how it is to end. It prints `ready` right before the harm begins. */
export interface HostileGuest {
  name: string;
  family: string;
  language: 'javascript' | 'python';
  /** JavaScript in a process of its own; its neighbour too. */
  isolation?: 'process';
  /** `process.env.MARK` and `os.environ["MARK"]` hold a number that tells this guest's processes from all others. */
  code: string;
  stop: Stop;
  reasons: readonly ExitReason[];
  /** `undefined`: no stop was under way. */
  rungs: readonly (Rung | undefined)[];
  /**
   * Longest time to its end: from the stop, from the run limit, or from `ready` for one that ends by itself. Where a stop
   * has to force, the grace period and the daemon's limit for force are added.
   */
  endsWithinMs: number;
  /**
   * Added to that: how long its own work may take, with the machine to itself, until there is something to end it for.
   * Where others run beside it, it gets a share of the machine only.
   */
  worksMs?: number;
  /** Of neighbours in the same cell. One that may lose its cell has a session to itself and one neighbour. */
  neighbours: 'untouched' | 'may be cell_lost';
  /** Has a session to itself and one neighbour all the same: what it does to others of its cell would confuse the table. */
  alone?: boolean;
  exitCode?: number;
  /** What its standard output must hold. */
  stdout?: (bytes: Buffer) => boolean;
  limits?: ExecutionLimits;
  snippet?: Partial<Snippet>;
  session?: SessionConfiguration;
  /** What is otherwise for JavaScript in a process of its own; false where that has nothing to do harm to. */
  inProcess?: Partial<HostileGuest> | false;
  /** Why processes of it may be left until its cell ends: nobody but a control group could find them. */
  leaves?: string;
}

/** Guests of one kind. */
export interface Family {
  family: string;
  guests: readonly Omit<HostileGuest, 'family'>[];
}

/** Long enough to see that a guest refuses, short enough for a table of guests that all do. */
const GRACE_MS = 60;

/**
 * What the longest allowed end has beyond the grace period and the daemon's limit for force: two slow cores, eight such
 * guests, and whatever else the machine does. What is not ended takes for ever.
 */
const SLACK_MS = 10_000;

const CANCEL = { by: 'cancel', graceMs: GRACE_MS } as const;

type Fate = Pick<HostileGuest, 'stop' | 'reasons' | 'rungs' | 'endsWithinMs' | 'neighbours'>;

/** Refuses the signal, and yields to force: its thread is terminated, its processes are killed. */
export const FORCED: Fate = {
  stop: CANCEL,
  reasons: ['cancelled'],
  rungs: ['forced'],
  endsWithinMs: SLACK_MS,
  neighbours: 'untouched',
};

/** Has nothing against the signal, and as long as it takes. */
export const GRACEFUL: Fate = { ...FORCED, stop: { by: 'cancel', graceMs: SLACK_MS }, rungs: ['graceful'] };

/** In native code that nothing interrupts: its cell has to go. It says that it is ready just before, and has time to get there. */
export const WITH_ITS_CELL: Fate = {
  ...FORCED,
  stop: { by: 'cancel', graceMs: 500 },
  rungs: ['cell'],
  neighbours: 'may be cell_lost',
};

/** In native code that comes back now and then: whether in time is luck. */
export const PERHAPS_WITH_ITS_CELL: Fate = { ...WITH_ITS_CELL, rungs: ['forced', 'cell'] };

/** Ends by itself, and what it did is its own affair. */
export const BY_ITSELF: Fate = {
  stop: { by: 'itself' },
  reasons: ['completed'],
  rungs: [undefined],
  endsWithinMs: SLACK_MS,
  neighbours: 'untouched',
};

/** JavaScript that will not hear SIGTERM, up to the moment it begins. */
export function stubborn(code: string, before = ''): string {
  return `process.on('SIGTERM', () => {});\n${before}\nconsole.log('ready');\n${code}\n`;
}

/** Python that will not hear SIGTERM, up to the moment it begins. */
export function deaf(code: string, before = ''): string {
  return `import os, signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n${before}\nprint("ready", flush=True)\n${code}\n`;
}

/** Python that finds the ids of those above a guest: `shepherd`, `zygote`, `cell`. Looks twice: it is about to harm them. */
export const ABOVE = `
import os
def parent(pid, word):
    with open("/proc/%d/stat" % pid) as file: above = int(file.read().rpartition(")")[2].split()[1])
    with open("/proc/%d/cmdline" % above) as file: assert word in file.read()
    return above
shepherd = parent(os.getpid(), "zygote")
zygote = parent(shepherd, "zygote")
cell = parent(zygote, "/cell/")
`;
