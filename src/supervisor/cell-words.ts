import type { GuestExit, Rung, StopReason, Usage } from '../../machines/execution.ts';
import { bootId, type Moment, momentAt } from '../clock.ts';
import { FailedPreconditionError, OutOfRangeError } from '../errors.ts';
import type { Usage as CellUsage, Exited, InputTaken } from '../gen/elide/cell/v1/cell.ts';

// What a cell says, as the daemon reads it.

/** What an engine knows of an end, in the words of the cell's protocol. */
const CAUSES = new Map(
  (['heap_limit', 'memory_limit', 'start_failed'] as const).map((cause) => [cause as string, cause]),
);

/** The end of a guest, in its cell's words. */
export interface GuestEnd {
  exit: GuestExit;
  at: Moment;
  /** That it had passed its soft memory limit, for people; told of before or not. */
  warning: { message: string; at: Moment } | undefined;
}

/** What its cell tells, or has written down, of a guest's end. */
export function guestEndOf(exited: Exited): GuestEnd {
  const { memorySoft, bootId: boot } = exited;
  const warning = memorySoft && { message: memorySoft.message, at: momentOf(memorySoft, boot) };
  return { exit: guestExitOf(exited), at: momentOf(exited, boot), warning };
}

function guestExitOf({ exitCode, signal, cause, message, usage, stopReason, stopRung }: Exited): GuestExit {
  const exit = { exitCode, signal: signal || undefined, message: message || undefined };
  const stop = stopReason === '' ? undefined : { reason: stopReason as StopReason, rung: stopRung as Rung };
  return { ...exit, cause: CAUSES.get(cause), usage: usage && usageOf(usage), stop };
}

/** When that was, in its cell's words: by the wall clock alone where the other is of another boot. */
function momentOf({ atMs, monotonicMs }: Pick<Exited, 'atMs' | 'monotonicMs'>, boot: string): Moment {
  return boot !== bootId() ? momentAt(atMs) : { atMs, monotonicMs };
}

export function usageOf(usage: CellUsage): Usage {
  const { userSeconds, systemSeconds, processes, threads } = usage;
  return {
    userSeconds,
    systemSeconds,
    processes,
    threads,
    memoryBytes: Number(usage.memoryBytes),
    peakMemoryBytes: Number(usage.peakMemoryBytes),
    heapBytes: Number(usage.heapBytes),
    externalBytes: Number(usage.externalBytes),
    wasmBytes: Number(usage.wasmBytes),
    stdoutBytes: Number(usage.stdoutBytes),
    stderrBytes: Number(usage.stderrBytes),
    droppedBytes: Number(usage.droppedBytes),
  };
}

/** Why input was refused; undefined where it was taken. */
export function refusalOf({ gapBehind, ended }: InputTaken): Error | undefined {
  if (gapBehind !== undefined)
    return new OutOfRangeError(`position is in the future: ${gapBehind} bytes of input were taken`);
  return ended ? new FailedPreconditionError('the input has ended; it goes on no more') : undefined;
}
