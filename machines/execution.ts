import { assign, fromCallback, raise, sendTo, setup, spawnChild } from 'xstate';

/** Why an execution ended; exactly one. The one closed list, the same words everywhere. */
export const EXIT_REASONS = [
  'completed',
  'failed',
  'cancelled',
  'signaled',
  'timed_out',
  'queue_timed_out',
  'memory_exceeded',
  'output_exceeded',
  'start_failed',
  'cell_lost',
  'session_closed',
  'daemon_lost',
] as const;
export type ExitReason = (typeof EXIT_REASONS)[number];

/** Reasons that a stop can carry. */
export type StopReason = Extract<
  ExitReason,
  'cancelled' | 'signaled' | 'timed_out' | 'memory_exceeded' | 'output_exceeded' | 'session_closed' | 'start_failed'
>;

/** Limits whose passing the guest's cell tells. */
export type WatchedLimit = 'cpu' | 'memory' | 'output';

/** The rungs of the ladder: signal and wait, force, kill the whole cell. */
export type Rung = 'graceful' | 'forced' | 'cell';

/** What a guest, its child processes included, uses or used. Sizes in bytes. */
export interface Usage {
  userSeconds: number;
  systemSeconds: number;
  /** Now, or last; and the most that was seen. */
  memoryBytes: number;
  peakMemoryBytes: number;
  /** The parts, of a guest that is a thread: JavaScript heap, buffers, and what neither shows (WebAssembly, shared buffers). */
  heapBytes: number;
  externalBytes: number;
  wasmBytes: number;
  processes: number;
  threads: number;
  /** Output: kept of each stream, and dropped of both at the limit. */
  stdoutBytes: number;
  stderrBytes: number;
  droppedBytes: number;
}

/** How a guest ended, as its engine saw it. */
export interface GuestExit {
  /** 0-255; `128 + N` for a guest that ended by signal N; -1 when no guest code ran or its end could not be seen. */
  exitCode: number;
  signal?: string | undefined;
  cause?: 'heap_limit' | 'memory_limit' | 'start_failed' | undefined;
  message?: string | undefined;
  /** Absent when no guest code ran, or when nobody could see. */
  usage?: Usage | undefined;
  /** The stop that its cell was told of: it may be by a daemon that died before it could write that, or its rung, down. */
  stop?: { reason: StopReason; rung: Rung } | undefined;
}

/** The one true result of an execution. */
export interface ExecutionResult {
  reason: ExitReason;
  /** The rung that ended it; undefined when no stop was under way. */
  rung: Rung | undefined;
  exitCode: number;
  signal: string | undefined;
  /** One line for people; undefined when the reason says all. */
  message: string | undefined;
  /** What it used in all; undefined when no guest code ran. What was seen last, when the cell was lost. */
  usage: Usage | undefined;
}

export interface ExecutionInput {
  sessionKey: string;
  executionKey: string;
  /** How long it may wait to be dispatched, in ms; undefined: for ever. */
  queueTimeoutMs: number | undefined;
  /** Run limit in ms from the start of guest code; undefined: none. */
  timeoutMs: number | undefined;
  /** What the guest is sent at the run limit; `SIGKILL` forces at once. */
  timeoutSignal: string;
  /** How long a stop of a limit waits between signal and force, in ms. */
  graceMs: number;
  /** How long an execution that has its place may take until guest code starts, in ms. */
  startLimitMs: number;
  /** How long force may take to be confirmed before the cell is killed even if its guest is not known to be stuck, in ms. */
  forcedLimitMs: number;
}

/** A stop under way: why, the signal it began with, the grace period in ms, and one line for people where the reason does not say all. */
export interface Stop {
  reason: StopReason;
  signal: string;
  graceMs: number;
  message?: string | undefined;
}

export interface ExecutionContext extends ExecutionInput {
  /** Guest code has begun. */
  started: boolean;
  /** How long it had run when that was told, in ms. */
  ranMs: number;
  stop: Stop | undefined;
  /** The rung a stop has reached. */
  rung: Rung | undefined;
  result: ExecutionResult | undefined;
}

export type ExecutionEvent =
  /** A context may be taken now. */
  | { type: 'execution.dispatch' }
  /** Climb the ladder. Signal `SIGKILL` or a grace period of 0 begins at `forced`; a shorter one, given later, counts. */
  | { type: 'execution.stop'; reason: StopReason; signal: string; graceMs: number }
  /** A shorter grace period than the first has passed. */
  | { type: 'grace.ended' }
  /** Deliver one signal, without a ladder unless it is `SIGKILL`; with `tree` to the guest's child processes too. */
  | { type: 'execution.signal'; signal: string; tree?: boolean | undefined }
  /** It has its place in a cell, which is told of it now. */
  | { type: 'guest.placed' }
  /** Guest code runs, since `agoMs`. */
  | { type: 'guest.started'; agoMs?: number | undefined }
  /** Its turn has come: it was killed, which is to be confirmed. */
  | { type: 'guest.killed' }
  /** It was killed, and had its time to go. */
  | { type: 'guest.stuck' }
  /** The guest passed a limit. Beyond memory and output its cell has begun to force it. */
  | { type: 'guest.limitReached'; limit: WatchedLimit; message: string }
  /** The guest's thread or process is gone. */
  | { type: 'guest.exited'; exit: GuestExit }
  /** The cell is gone, and the guest with it. */
  | { type: 'guest.lost'; reason: LostReason; message: string; usage?: Usage | undefined };

/** Whose end nobody saw: with its cell, with its cell whose memory it had exhausted, or while there was no daemon. */
export type LostReason = Extract<ExitReason, 'cell_lost' | 'memory_exceeded' | 'daemon_lost'>;

/** What the guest port is told. */
export type GuestCommand =
  /** With `stop`, its reason, it begins a stop, and is delivered once however often it is said. */
  | { type: 'guest.signal'; signal: string; tree?: boolean | undefined; stop?: StopReason | undefined }
  | { type: 'guest.kill'; stop: StopReason | undefined }
  | { type: 'guest.killCell' };

type LostEvent = Extract<ExecutionEvent, { type: 'guest.lost' }>;

/** Whose guest to run. */
export interface GuestInput {
  sessionKey: string;
  executionKey: string;
}

/**
 * Port. Runs the guest in a cell and reports `guest.placed`, `guest.started`, then `guest.exited` or `guest.lost`, each once; and
 * for each `guest.kill`, which may have to wait for its turn, `guest.killed` and at times `guest.stuck`. Idempotent by `executionKey`.
 */
const guest = fromCallback<GuestCommand, GuestInput>(() => {
  throw new Error('not provided: guest');
});

/** What is known of an execution whose guest never ran, or whose end could not be seen. */
const UNSEEN = { rung: undefined, exitCode: -1, signal: undefined, message: undefined, usage: undefined };

/** The stop that a passed limit is. */
function limitStop(limit: WatchedLimit, graceMs: number, message: string): Stop {
  if (limit === 'cpu') return { reason: 'timed_out', signal: 'SIGTERM', graceMs, message };
  return { reason: `${limit}_exceeded`, signal: 'SIGKILL', graceMs: 0, message };
}

/** The result of a guest that ended while no stop was under way. */
function endedResult(exit: GuestExit): ExecutionResult {
  const { exitCode, signal, message, usage, stop } = exit;
  return { reason: stop?.reason ?? endedReason(exit), rung: stop?.rung, exitCode, signal, message, usage };
}

function endedReason({ cause, exitCode, signal }: GuestExit): ExitReason {
  if (cause === 'start_failed') return 'start_failed';
  if (cause === 'heap_limit' || cause === 'memory_limit') return 'memory_exceeded';
  if (signal !== undefined) return 'signaled';
  return exitCode === 0 ? 'completed' : 'failed';
}

/** The result of a guest that ended while a stop was under way. */
function stoppedResult({ stop, rung: reached }: ExecutionContext, exit: GuestExit): ExecutionResult {
  const { exitCode, signal, message, usage } = exit;
  // Its cell may have used force for a daemon that died before it could write that down.
  const rung = reached === 'graceful' ? (exit.stop?.rung ?? reached) : reached;
  return { reason: stop?.reason ?? 'cancelled', rung, exitCode, signal, message: stop?.message ?? message, usage };
}

/**
 * The result of a guest whose cell died while a stop was under way: that stop's work when force was already being used,
 * an accident of its own before.
 */
function lostResult({ stop, rung }: ExecutionContext, { reason, message, usage }: LostEvent): ExecutionResult {
  if (stop === undefined || rung === 'graceful') return { ...UNSEEN, reason, rung, message, usage };
  return { reason: stop.reason, rung, exitCode: 137, signal: 'SIGKILL', message: stop.message, usage };
}

/** A kill that the kernel has not confirmed is repeated at this distance. */
const REPEAT_KILL_MS = 1_000;

/**
 * One execution, from accepted to gone. `signaled` is the ladder; `exited` is entered only on the guest's own end, never
 * on the promise of one.
 */
export const executionMachine = setup({
  types: {} as {
    context: ExecutionContext;
    input: ExecutionInput;
    events: ExecutionEvent;
    output: ExecutionResult;
    children: { guest: 'guest' };
  },
  actors: { guest },
  actions: {
    startGuest: spawnChild('guest', {
      id: 'guest',
      input: ({ context: { sessionKey, executionKey } }) => ({ sessionKey, executionKey }),
    }),
    noteStarted: assign({ started: true, ranMs: (_, p: { agoMs?: number | undefined }) => p.agoMs ?? 0 }),
    reachRung: assign({ rung: (_, p: { rung: Rung }) => p.rung }),
    keepStop: assign({ stop: (_, p: Stop) => p }),
    keepGrace: assign({
      stop: ({ context }, p: { graceMs: number }) => context.stop && { ...context.stop, graceMs: p.graceMs },
    }),
    endGrace: raise({ type: 'grace.ended' }, { delay: 'grace' }),
    repeatEvent: raise(({ event }) => event),
    forwardSignal: sendTo('guest', (_, p: { signal: string; tree?: boolean | undefined }) => ({
      type: 'guest.signal' as const,
      signal: p.signal,
      tree: p.tree,
    })),
    sendStopSignal: sendTo('guest', ({ context }) => ({
      type: 'guest.signal' as const,
      signal: context.stop?.signal ?? 'SIGTERM',
      stop: context.stop?.reason,
    })),
    kill: sendTo('guest', ({ context }) => ({ type: 'guest.kill' as const, stop: context.stop?.reason })),
    killCell: sendTo('guest', { type: 'guest.killCell' }),
    keepResult: assign({ result: (_, p: ExecutionResult) => p }),
  },
  guards: {
    isQueueLimited: ({ context }) => context.queueTimeoutMs !== undefined,
    isLimited: ({ context }) => context.timeoutMs !== undefined,
    isHardLimit: (_, p: { limit: WatchedLimit }) => p.limit !== 'cpu',
    isLimitForced: ({ context }, p: { limit: WatchedLimit }) => p.limit !== 'cpu' || context.graceMs <= 0,
    isTimeoutHard: ({ context }) => context.timeoutSignal === 'SIGKILL' || context.graceMs <= 0,
    isHard: (_, p: { signal: string; graceMs: number }) => p.signal === 'SIGKILL' || p.graceMs <= 0,
    isKill: (_, p: { signal: string }) => p.signal === 'SIGKILL',
    isShorter: ({ context }, p: { graceMs: number }) => p.graceMs < (context.stop?.graceMs ?? 0),
    isNewSignal: ({ context }, p: { signal: string }) => p.signal !== context.stop?.signal,
  },
  delays: {
    queueTimeout: ({ context }) => context.queueTimeoutMs ?? 0,
    timeout: ({ context }) => Math.max(0, (context.timeoutMs ?? 0) - context.ranMs),
    grace: ({ context }) => context.stop?.graceMs ?? 0,
    startLimit: ({ context }) => context.startLimitMs,
    // Before any guest code there is none that could resist: a cell that takes long to confirm is only busy starting.
    forcedLimit: ({ context }) => (context.started ? context.forcedLimitMs : context.startLimitMs),
    repeatKill: REPEAT_KILL_MS,
  },
}).createMachine({
  id: 'execution',
  options: { maxIterations: 1000 },
  context: ({ input }) => ({ ...input, started: false, ranMs: 0, stop: undefined, rung: undefined, result: undefined }),
  initial: 'pending',
  states: {
    pending: {
      initial: 'queued',
      states: {
        queued: {
          initial: 'unlimited',
          states: {
            unlimited: { always: { guard: 'isQueueLimited', target: 'limited' } },
            limited: {
              after: {
                queueTimeout: {
                  target: '#execution.exited',
                  actions: { type: 'keepResult', params: { ...UNSEEN, reason: 'queue_timed_out' } },
                },
              },
            },
          },
          on: {
            'execution.dispatch': { target: 'starting', actions: 'startGuest' },
            'guest.limitReached': {},
            'execution.stop': {
              target: '#execution.exited',
              actions: {
                type: 'keepResult',
                params: ({ event }) => ({ ...UNSEEN, reason: event.reason }),
              },
            },
            // Nobody is there to hear another signal than the one that needs no listener.
            'execution.signal': [
              {
                guard: { type: 'isKill', params: ({ event }) => event },
                target: '#execution.exited',
                actions: { type: 'keepResult', params: { ...UNSEEN, reason: 'signaled' } },
              },
              {},
            ],
          },
        },
        starting: {
          on: {
            'guest.started': [
              {
                guard: 'isLimited',
                target: '#execution.running.limited',
                actions: { type: 'noteStarted', params: ({ event }) => event },
              },
              {
                target: '#execution.running.unlimited',
                actions: { type: 'noteStarted', params: ({ event }) => event },
              },
            ],
          },
          initial: 'placing',
          states: {
            // The cell has a limit of its own to be ready; the journal, which must know of the place, takes what its disk does.
            placing: { on: { 'guest.placed': 'placed' } },
            placed: {
              after: {
                startLimit: {
                  target: '#execution.signaled.forced',
                  actions: {
                    type: 'keepStop',
                    params: ({ context: { startLimitMs } }) => ({
                      reason: 'start_failed',
                      signal: 'SIGKILL',
                      graceMs: 0,
                      message: `no guest code had begun ${startLimitMs} ms after its dispatch`,
                    }),
                  },
                },
              },
            },
          },
        },
      },
    },
    running: {
      initial: 'unlimited',
      states: {
        unlimited: {},
        limited: {
          after: {
            timeout: [
              {
                guard: 'isTimeoutHard',
                target: '#execution.signaled.forced',
                actions: { type: 'keepStop', params: { reason: 'timed_out', signal: 'SIGKILL', graceMs: 0 } },
              },
              {
                target: '#execution.signaled',
                actions: {
                  type: 'keepStop',
                  params: ({ context: { timeoutSignal, graceMs } }) => ({
                    reason: 'timed_out',
                    signal: timeoutSignal,
                    graceMs,
                  }),
                },
              },
            ],
          },
        },
      },
    },
    signaled: {
      initial: 'graceful',
      states: {
        graceful: {
          entry: [{ type: 'reachRung', params: { rung: 'graceful' } }, 'sendStopSignal'],
          after: { grace: 'forced' },
          on: {
            'execution.stop': [
              { guard: { type: 'isHard', params: ({ event }) => event }, target: 'forced' },
              // Counts from now, beside what is left of the first: whichever has passed first. Its signal is that of any other.
              {
                guard: { type: 'isShorter', params: ({ event }) => event },
                actions: [{ type: 'keepGrace', params: ({ event }) => event }, 'endGrace', 'repeatEvent'],
              },
              {
                guard: { type: 'isNewSignal', params: ({ event }) => event },
                actions: { type: 'forwardSignal', params: ({ event }) => event },
              },
            ],
            'execution.signal': [
              { guard: { type: 'isKill', params: ({ event }) => event }, target: 'forced' },
              { actions: { type: 'forwardSignal', params: ({ event }) => event } },
            ],
            'grace.ended': 'forced',
            // The stop under way stays the reason.
            'guest.limitReached': { guard: { type: 'isHardLimit', params: ({ event }) => event }, target: 'forced' },
          },
        },
        forced: {
          entry: [{ type: 'reachRung', params: { rung: 'forced' } }, 'kill'],
          initial: 'waiting',
          states: {
            waiting: { on: { 'guest.killed': 'killed' } },
            killed: {
              on: { 'guest.stuck': '#execution.signaled.cell' },
              after: { forcedLimit: '#execution.signaled.cell' },
            },
          },
          // From now on the limit is the short one.
          on: {
            'guest.started': {
              target: 'forced',
              reenter: true,
              actions: { type: 'noteStarted', params: ({ event }) => event },
            },
          },
        },
        cell: {
          entry: [{ type: 'reachRung', params: { rung: 'cell' } }, 'killCell'],
          after: { repeatKill: { target: 'cell', reenter: true } },
        },
      },
      on: {
        'execution.stop': {},
        'execution.signal': {},
        'guest.limitReached': {},
        'guest.started': { actions: { type: 'noteStarted', params: ({ event }) => event } },
        'guest.exited': {
          target: 'exited',
          actions: {
            type: 'keepResult',
            params: ({ context, event }) => stoppedResult(context, event.exit),
          },
        },
        'guest.lost': {
          target: 'exited',
          actions: {
            type: 'keepResult',
            params: ({ context, event }) => lostResult(context, event),
          },
        },
      },
    },
    exited: { type: 'final' },
  },
  on: {
    'execution.stop': [
      {
        guard: { type: 'isHard', params: ({ event }) => event },
        target: '.signaled.forced',
        actions: { type: 'keepStop', params: ({ event }) => event },
      },
      { target: '.signaled', actions: { type: 'keepStop', params: ({ event }) => event } },
    ],
    'execution.signal': [
      {
        guard: { type: 'isKill', params: ({ event }) => event },
        target: '.signaled.forced',
        actions: { type: 'keepStop', params: { reason: 'signaled', signal: 'SIGKILL', graceMs: 0 } },
      },
      { actions: { type: 'forwardSignal', params: ({ event }) => event } },
    ],
    'guest.limitReached': [
      {
        guard: { type: 'isLimitForced', params: ({ event }) => event },
        target: '.signaled.forced',
        actions: {
          type: 'keepStop',
          params: ({ context, event }) => limitStop(event.limit, context.graceMs, event.message),
        },
      },
      {
        target: '.signaled',
        actions: {
          type: 'keepStop',
          params: ({ context, event }) => limitStop(event.limit, context.graceMs, event.message),
        },
      },
    ],
    'guest.exited': {
      target: '.exited',
      actions: { type: 'keepResult', params: ({ event }) => endedResult(event.exit) },
    },
    'guest.lost': {
      target: '.exited',
      actions: {
        type: 'keepResult',
        params: ({ context, event }) => lostResult(context, event),
      },
    },
  },
  output: ({ context }) => context.result ?? { ...UNSEEN, reason: 'daemon_lost' as const },
});
