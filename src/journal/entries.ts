import type { Stop } from '../../machines/execution.ts';
import type { Moment } from '../clock.ts';
import type { StatusEvent } from '../supervisor/execution-record.ts';
import type { CheckedOptions } from '../supervisor/limits.ts';
import type { CheckedSessionConfiguration, ExecutionRequest } from '../supervisor/requests.ts';
import type { RetentionLimits } from '../supervisor/retention.ts';

/** How far what is acknowledged is on disk: see docs/durability.md. */
export const DURABILITIES = ['full', 'normal', 'off'] as const;
export type Durability = (typeof DURABILITIES)[number];

/** A fact as it is journaled. */
export type Entry =
  | { type: 'session.created'; session: JournaledSession }
  | { type: 'session.closing'; sessionKey: string; closing: Closing }
  | { type: 'session.closed'; sessionKey: string }
  | { type: 'execution.accepted'; execution: AcceptedExecution; request: ExecutionRequest; event: JournaledEvent }
  /** The cell is about to be told to start it. */
  | { type: 'execution.dispatched'; number: number; cellKey: string }
  /** It waits again: that cell was never told, or did not begin. */
  | { type: 'execution.requeued'; number: number }
  /** With a sequence number that there is, in place of the event that has it. */
  | { type: 'execution.event'; number: number; event: JournaledEvent }
  /** Nobody asks for it any more. */
  | { type: 'execution.released'; number: number }
  /** It is finished, and its result does not say how much room its output takes. */
  | { type: 'execution.outputMeasured'; number: number; bytes: number }
  /** It is finished, and its output is removed to make room; how much that was. */
  | { type: 'execution.outputEvicted'; number: number; bytes: OutputBytes };

/** Where the output files of a finished execution are. */
export interface OutputPlace {
  number: number;
  directory: string;
}

/** Of each stream. */
export interface OutputBytes {
  stdout: number;
  stderr: number;
}

interface JournaledSession {
  sessionKey: string;
  sessionId: string;
  config: CheckedSessionConfiguration;
  /** Of what was asked for: see `fingerprintOf`. */
  fingerprint: string;
  created: Moment;
}

/** A session that is being deleted. */
interface Closing extends Moment {
  graceMs: number;
}

/** What never changes of an execution. */
export interface AcceptedExecution {
  /** 1 for the first a state directory has seen; later ones have higher numbers. */
  number: number;
  executionKey: string;
  sessionKey: string;
  sessionId: string;
  executionId: string;
  language: string;
  fingerprint: string;
  options: CheckedOptions;
  /** Limits that the node could not hold when it was accepted, one line each. */
  warnings: string[];
  stdin: boolean;
  /** What its session, which may be gone before it, says of how long it is kept; undefined: nothing. */
  retention: RetentionLimits | undefined;
}

/** A status event with what a later daemon needs to go on from there. */
export interface JournaledEvent extends StatusEvent {
  monotonicMs: number;
  /** With the rung that was reached: the stop under way, its grace period counted from this event on. */
  stop?: Stop | undefined;
  /** Of the guest, once it has started: when that was, in Unix ms, and its process id. */
  startedAtMs?: number | undefined;
  pid?: number | undefined;
  /** Names the guest's process for good: see `processName`. */
  process?: string | undefined;
}

/** In place of a cell's key, since the machine was started anew: whether that cell had begun nobody can tell any more. */
export const CELL_OF_OTHER_BOOT = '';

/** An execution that had not exited when its daemon went. */
export interface UnfinishedExecution extends AcceptedExecution {
  /** What to run; kept until the guest has started. */
  request: ExecutionRequest | undefined;
  /** The cell that was to start it, or {@link CELL_OF_OTHER_BOOT}. */
  cellKey: string | undefined;
  events: JournaledEvent[];
}

/** What is known of a finished execution without a look into the journal. */
export interface FinishedEntry {
  number: number;
  sessionId: string;
  executionId: string;
  sessionKey: string;
  executionKey: string;
  exited: Moment;
  outputBytes: number;
  /** What it had written, once its output was removed to make room. */
  outputEvicted: OutputBytes | undefined;
  retention: RetentionLimits | undefined;
}

/** A session that was open, or being deleted, when its daemon went. */
export interface UnclosedSession extends JournaledSession {
  closing: Closing | undefined;
  /** How many of its executions have exited since it was created, and when the last did. */
  exited: number;
  lastExit: Moment | undefined;
}

/** What a journal holds of what has not come to its end; each moment by the clocks of this start of the machine. */
export interface UnfinishedContents {
  sessions: UnclosedSession[];
  /** In the order they were accepted. */
  unfinished: UnfinishedExecution[];
  /** The number for the next execution. */
  nextNumber: number;
}

/** All that a journal holds, but for what finished executions came to. */
export interface JournalContents extends UnfinishedContents {
  /** In the order they exited. */
  finished: FinishedEntry[];
}

/** What a finished execution came to. */
export interface FinishedExecution extends AcceptedExecution {
  events: JournaledEvent[];
}
