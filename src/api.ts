import type { CellSummary } from './supervisor/cell-supervisor.ts';
import type { ExecutionSnapshot, LifecycleState } from './supervisor/execution-record.ts';
import type { CheckedSessionConfiguration } from './supervisor/requests.ts';

// What a daemon and its client take and tell alike.

/** A session as it stands. */
export interface SessionSnapshot {
  sessionId: string;
  state: LifecycleState;
  config: CheckedSessionConfiguration;
  /** Unix ms. */
  createdAtMs: number;
  /** Executions by state; `running` counts those with a stop under way too. */
  counts: { pending: number; running: number; exited: number };
  cells: CellSummary[];
}

/** An execution as it stands, with what it wrote. */
export interface ExecutionStatus extends ExecutionSnapshot {
  stdoutBytes: number;
  stderrBytes: number;
  /** Its output was removed to make room; reading it rejects with an `OutOfRangeError`. */
  outputEvicted: boolean;
}

/** What a stop asks for. */
export interface StopOptions {
  /** The signal of the graceful rung; `SIGKILL` forces at once. Default SIGTERM. */
  signal?: string | undefined;
  /** How long the guest has before force, in ms; 0 forces at once. Default: the execution's own. */
  graceMs?: number | undefined;
}

/** What becomes of the executions of a session that is deleted. */
export interface DeleteOptions {
  /** How long they have before force, in ms; 0 forces at once. Default: the daemon's. */
  graceMs?: number | undefined;
  /** The same as a grace period of 0. */
  force?: boolean | undefined;
  /** Rejects, and deletes nothing, when there are any that have not exited. Not together with `force`. */
  refuseIfBusy?: boolean | undefined;
}

/** How a signal is delivered. */
export interface SignalOptions {
  /** The guest's child processes get it too. Default: as the execution was started. */
  signalTree?: boolean | undefined;
}

/** Where input belongs. */
export interface InputOptions {
  /** Place of its first byte in all input of the execution; what the guest has of it is not written again. Default: behind that. */
  position?: number | undefined;
}

/** Whose metrics are wanted, and how often. */
export interface MetricsOptions {
  /** Default: all. */
  sessionId?: string | undefined;
  /** With `sessionId`; default: every execution that runs. */
  executionId?: string | undefined;
  /** 100 to 3600000; default 1000. */
  intervalMs?: number | undefined;
}

/** Which of an execution's output is wanted. */
export interface StreamOptions {
  /** Default: both. */
  streams?: ('stdout' | 'stderr')[] | undefined;
  /** The first byte wanted of each stream. Default 0. */
  stdoutPosition?: number | undefined;
  stderrPosition?: number | undefined;
  /** False: end with what there is now. Default true: follow until the execution's end. */
  follow?: boolean | undefined;
}

/** Where a started daemon listens. */
export interface Endpoints {
  socket: string | undefined;
  /** `HOST:PORT`, with the real port when 0 was asked for. */
  tcp: string | undefined;
}
