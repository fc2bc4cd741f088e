import { assign, fromCallback, raise, sendTo, setup } from 'xstate';

export interface SessionInput {
  sessionKey: string;
  /** Grace period that the executions are given when the session is closed, in ms. */
  graceMs: number;
  /** How long after it the executions' own ladders may take before the session forces them, in ms. */
  slackMs: number;
  /** Executions that exited before this actor began. */
  exited: number;
  /** How long nothing may be pending or running, in ms; undefined: for ever. */
  idleTtlMs: number | undefined;
  /** What is left of that when this actor begins, in ms. */
  idleLeftMs: number | undefined;
  /** How long the session may still be open, in ms; undefined: for ever. */
  totalLeftMs: number | undefined;
}

/** Which time was up. */
export type Expiry = 'idle' | 'total';

export interface SessionContext extends SessionInput {
  /** Executions accepted and not dispatched. */
  queued: number;
  /** Executions dispatched and not exited. */
  active: number;
  /** Set once the session closes because its time was up. */
  expired: Expiry | undefined;
}

export type SessionEvent =
  /** The session is journaled: it may admit. */
  | { type: 'session.open' }
  /** Admit nothing more, and drive every execution to its end. A grace period of 0 forces; a shorter one, given later, counts. */
  | { type: 'session.close'; graceMs: number }
  /** A shorter grace period than the first has passed. */
  | { type: 'grace.ended' }
  | { type: 'execution.admitted' }
  | { type: 'execution.dispatched' }
  /** `dispatched` says which of the two counts it leaves; `agoMs`, how long ago it was gone: more than nothing after a restart. */
  | { type: 'execution.exited'; dispatched: boolean; agoMs: number };

/** What the executions port is told; each reaches every execution that has not exited. */
export type ExecutionsCommand = { type: 'executions.stop'; graceMs: number } | { type: 'executions.force' };

/** Port. Passes a command on to the session's executions; reports nothing (each execution reports its own end). */
const executions = fromCallback<ExecutionsCommand, { sessionKey: string }>(() => {
  throw new Error('not provided: executions');
});

/**
 * One session, supervisor of its executions. It keeps only their counts: the executions themselves are root actors in a
 * map beside it, because a parent that holds 10,000 children pays 2 ms to add one. Its own `signaled` waits for their
 * ladders, and forces what they have not ended in time. While it runs, `lifetime` and `activity` each wait for one of
 * its two times to be up.
 */
export const sessionMachine = setup({
  types: {} as {
    context: SessionContext;
    input: SessionInput;
    events: SessionEvent;
    children: { executions: 'executions' };
  },
  actors: { executions },
  actions: {
    keepGrace: assign({ graceMs: (_, p: { graceMs: number }) => p.graceMs }),
    countAdmitted: assign({ queued: ({ context }) => context.queued + 1 }),
    countDispatched: assign({
      queued: ({ context }) => context.queued - 1,
      active: ({ context }) => context.active + 1,
    }),
    countExited: assign({
      queued: ({ context }, p: { dispatched: boolean; agoMs: number }) => context.queued - (p.dispatched ? 0 : 1),
      active: ({ context }, p: { dispatched: boolean; agoMs: number }) => context.active - (p.dispatched ? 1 : 0),
      exited: ({ context }) => context.exited + 1,
      idleLeftMs: ({ context: { idleTtlMs } }, p: { dispatched: boolean; agoMs: number }) =>
        idleTtlMs && Math.max(0, idleTtlMs - p.agoMs),
    }),
    noteExpired: assign({ expired: (_, p: { expired: Expiry }) => p.expired }),
    stopExecutions: sendTo('executions', ({ context }) => ({ type: 'executions.stop', graceMs: context.graceMs })),
    endGrace: raise({ type: 'grace.ended' }, { delay: 'grace' }),
    forceExecutions: sendTo('executions', { type: 'executions.force' }),
  },
  guards: {
    isEmpty: ({ context }) => context.queued === 0 && context.active === 0,
    isHard: (_, p: { graceMs: number }) => p.graceMs <= 0,
    isShorter: ({ context }, p: { graceMs: number }) => p.graceMs < context.graceMs,
    isIdle: ({ context }) => context.idleTtlMs !== undefined && context.queued === 0 && context.active === 0,
    isUsed: ({ context }) => context.queued > 0 || context.active > 0,
    isLimited: ({ context }) => context.totalLeftMs !== undefined,
  },
  delays: {
    grace: ({ context }) => context.graceMs + context.slackMs,
    idleTtl: ({ context }) => context.idleLeftMs ?? 0,
    totalTtl: ({ context }) => context.totalLeftMs ?? 0,
  },
}).createMachine({
  id: 'session',
  options: { maxIterations: 1000 },
  context: ({ input }) => ({ ...input, queued: 0, active: 0, expired: undefined }),
  initial: 'pending',
  invoke: {
    id: 'executions',
    src: 'executions',
    input: ({ context }) => ({ sessionKey: context.sessionKey }),
  },
  on: {
    'execution.dispatched': { actions: 'countDispatched' },
    'execution.exited': { actions: { type: 'countExited', params: ({ event }) => event } },
  },
  states: {
    pending: {
      on: { 'session.open': 'running', 'session.close': 'exited' },
    },
    running: {
      type: 'parallel',
      on: {
        'execution.admitted': { actions: 'countAdmitted' },
        'session.close': [
          { guard: { type: 'isHard', params: ({ event }) => event }, target: 'signaled.forced' },
          { target: 'signaled', actions: { type: 'keepGrace', params: ({ event }) => ({ graceMs: event.graceMs }) } },
        ],
      },
      states: {
        lifetime: {
          initial: 'unlimited',
          states: {
            unlimited: { always: { guard: 'isLimited', target: 'limited' } },
            limited: {
              after: {
                totalTtl: {
                  target: '#session.signaled',
                  actions: { type: 'noteExpired', params: { expired: 'total' } },
                },
              },
            },
          },
        },
        activity: {
          // Without an idle TTL a session is never idle.
          initial: 'busy',
          states: {
            busy: { always: { guard: 'isIdle', target: 'idle' } },
            idle: {
              after: {
                idleTtl: {
                  target: '#session.signaled',
                  actions: { type: 'noteExpired', params: { expired: 'idle' } },
                },
              },
              always: { guard: 'isUsed', target: 'busy' },
            },
          },
        },
      },
    },
    signaled: {
      initial: 'graceful',
      always: { guard: 'isEmpty', target: 'exited' },
      states: {
        graceful: {
          entry: 'stopExecutions',
          after: { grace: 'forced' },
          on: {
            'session.close': [
              { guard: { type: 'isHard', params: ({ event }) => event }, target: 'forced' },
              // Counts from now, beside what is left of the first: whichever has passed first.
              {
                guard: { type: 'isShorter', params: ({ event }) => event },
                actions: [{ type: 'keepGrace', params: ({ event }) => ({ graceMs: event.graceMs }) }, 'endGrace'],
              },
            ],
            'grace.ended': 'forced',
          },
        },
        // Each waits for its turn, and kills its own cell if that is what it needs: no limit of all could know when.
        forced: { entry: 'forceExecutions' },
      },
    },
    exited: { type: 'final' },
  },
});
