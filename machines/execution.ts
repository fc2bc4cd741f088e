import { assign, fromCallback, sendTo, setup, spawnChild } from 'xstate';

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
  'cancelled' | 'signaled' | 'timed_out' | 'session_closed' | 'start_failed'
>;

/** The rungs of the ladder: signal and wait, force, kill the whole cell. */
export type Rung = 'graceful' | 'forced' | 'cell';

/** How a guest ended, as its engine saw it. */
export interface GuestExit {
  /** 0-255; `128 + N` for a guest that ended by signal N; -1 when no guest code ran or its end could not be seen. */
  exitCode: number;
  signal?: string | undefined;
  cause?: 'heap_limit' | 'start_failed' | undefined;
  message?: string | undefined;
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
}

export interface ExecutionInput {
  sessionKey: string;
  executionKey: string;
  /** Run limit in ms from the start of guest code; undefined: none. */
  timeoutMs: number | undefined;
  /** How long a stop of the run limit waits between signal and force, in ms. */
  graceMs: number;
  /** How long a dispatched execution may take until guest code starts, in ms. */
  startLimitMs: number;
  /** How long force may take to be confirmed before the cell is killed, in ms. */
  forcedLimitMs: number;
}

export interface ExecutionContext extends ExecutionInput {
  /** Guest code has begun. */
  started: boolean;
  stop: { reason: StopReason; signal: string; graceMs: number } | undefined;
  /** The rung a stop has reached. */
  rung: Rung | undefined;
  result: ExecutionResult | undefined;
}

export type ExecutionEvent =
  /** A context may be taken now. */
  | { type: 'execution.dispatch' }
  /** Climb the ladder. Signal `SIGKILL` or a grace period of 0 begins at `forced`. */
  | { type: 'execution.stop'; reason: StopReason; signal: string; graceMs: number }
  /** Deliver one signal, without a ladder unless it is `SIGKILL`. */
  | { type: 'execution.signal'; signal: string }
  /** Guest code runs. */
  | { type: 'guest.started' }
  /** The guest's thread or process is gone. */
  | { type: 'guest.exited'; exit: GuestExit }
  /** The cell is gone, and the guest with it. */
  | { type: 'guest.lost'; reason: 'cell_lost' | 'memory_exceeded'; message: string };

/** What the guest port is told. */
export type GuestCommand =
  | { type: 'guest.signal'; signal: string }
  | { type: 'guest.kill' }
  | { type: 'guest.killCell' };

type LostEvent = Extract<ExecutionEvent, { type: 'guest.lost' }>;

/** Whose guest to run. */
export interface GuestInput {
  sessionKey: string;
  executionKey: string;
}

/**
 * Port. Runs the guest in a cell and reports `guest.started`, then `guest.exited` or `guest.lost`, each once.
 * Idempotent by `executionKey`.
 */
const guest = fromCallback<GuestCommand, GuestInput>(() => {
  throw new Error('not provided: guest');
});

/** What is known of an execution whose guest never ran, or whose end could not be seen. */
const UNSEEN = { rung: undefined, exitCode: -1, signal: undefined, message: undefined };

/** The result of a guest that ended while no stop was under way. */
function endedResult(exit: GuestExit): ExecutionResult {
  const { exitCode, signal, message } = exit;
  return { reason: endedReason(exit), rung: undefined, exitCode, signal, message };
}

function endedReason({ cause, exitCode, signal }: GuestExit): ExitReason {
  if (cause === 'start_failed') return 'start_failed';
  if (cause === 'heap_limit') return 'memory_exceeded';
  if (signal !== undefined) return 'signaled';
  return exitCode === 0 ? 'completed' : 'failed';
}

/** The result of a guest that ended while a stop was under way. */
function stoppedResult({ stop, rung }: ExecutionContext, { exitCode, signal, message }: GuestExit): ExecutionResult {
  return { reason: stop?.reason ?? 'cancelled', rung, exitCode, signal, message };
}

/**
 * The result of a guest whose cell died while a stop was under way: that stop's work when force was already being used,
 * an accident of its own before.
 */
function lostResult({ stop, rung }: ExecutionContext, { reason, message }: LostEvent): ExecutionResult {
  if (stop === undefined || rung === 'graceful') return { ...UNSEEN, reason, rung, message };
  return { reason: stop.reason, rung, exitCode: 137, signal: 'SIGKILL', message: undefined };
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
    noteStarted: assign({ started: true }),
    reachRung: assign({ rung: (_, p: { rung: Rung }) => p.rung }),
    keepStop: assign({ stop: (_, p: { reason: StopReason; signal: string; graceMs: number }) => p }),
    forwardSignal: sendTo('guest', (_, p: { signal: string }) => ({ type: 'guest.signal' as const, signal: p.signal })),
    sendStopSignal: sendTo('guest', ({ context }) => ({
      type: 'guest.signal' as const,
      signal: context.stop?.signal ?? 'SIGTERM',
    })),
    kill: sendTo('guest', { type: 'guest.kill' }),
    killCell: sendTo('guest', { type: 'guest.killCell' }),
    keepResult: assign({ result: (_, p: ExecutionResult) => p }),
  },
  guards: {
    isLimited: ({ context }) => context.timeoutMs !== undefined,
    isHard: (_, p: { signal: string; graceMs: number }) => p.signal === 'SIGKILL' || p.graceMs <= 0,
    isKill: (_, p: { signal: string }) => p.signal === 'SIGKILL',
    isNewSignal: ({ context }, p: { signal: string }) => p.signal !== context.stop?.signal,
  },
  delays: {
    timeout: ({ context }) => context.timeoutMs ?? 0,
    grace: ({ context }) => context.stop?.graceMs ?? 0,
    startLimit: ({ context }) => context.startLimitMs,
    // Before any guest code there is none that could resist: a cell that takes long to confirm is only busy starting.
    forcedLimit: ({ context }) => (context.started ? context.forcedLimitMs : context.startLimitMs),
    repeatKill: REPEAT_KILL_MS,
  },
}).createMachine({
  id: 'execution',
  context: ({ input }) => ({ ...input, started: false, stop: undefined, rung: undefined, result: undefined }),
  initial: 'pending',
  states: {
    pending: {
      initial: 'queued',
      states: {
        queued: {
          on: {
            'execution.dispatch': { target: 'starting', actions: 'startGuest' },
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
              { guard: 'isLimited', target: '#execution.running.limited', actions: 'noteStarted' },
              { target: '#execution.running.unlimited', actions: 'noteStarted' },
            ],
          },
          after: {
            startLimit: {
              target: '#execution.signaled.forced',
              actions: { type: 'keepStop', params: { reason: 'start_failed', signal: 'SIGKILL', graceMs: 0 } },
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
            timeout: {
              target: '#execution.signaled',
              actions: {
                type: 'keepStop',
                params: ({ context }) => ({ reason: 'timed_out', signal: 'SIGTERM', graceMs: context.graceMs }),
              },
            },
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
              {
                guard: { type: 'isNewSignal', params: ({ event }) => event },
                actions: { type: 'forwardSignal', params: ({ event }) => event },
              },
            ],
            'execution.signal': [
              { guard: { type: 'isKill', params: ({ event }) => event }, target: 'forced' },
              { actions: { type: 'forwardSignal', params: ({ event }) => event } },
            ],
          },
        },
        forced: {
          entry: [{ type: 'reachRung', params: { rung: 'forced' } }, 'kill'],
          after: { forcedLimit: 'cell' },
          // From now on the limit is the short one.
          on: { 'guest.started': { target: 'forced', reenter: true, actions: 'noteStarted' } },
        },
        cell: {
          entry: [{ type: 'reachRung', params: { rung: 'cell' } }, 'killCell'],
          after: { repeatKill: { target: 'cell', reenter: true } },
        },
      },
      on: {
        'execution.stop': {},
        'execution.signal': {},
        'guest.started': { actions: 'noteStarted' },
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
