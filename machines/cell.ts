import { assign, fromCallback, sendTo, setup } from 'xstate';

export interface CellInput {
  cellKey: string;
  /** How long the process may take from its start until it is ready, in ms. */
  startLimitMs: number;
  /** How long a ready cell without guests is kept, in ms. */
  idleMs: number;
  /** How long an asked cell may take to end before it is killed, in ms. */
  graceMs: number;
}

export interface CellContext extends CellInput {
  pid: number | undefined;
  /** Executions that hold the cell. */
  guests: number;
  /** Why it is gone, one line for people; undefined for a cell that was let go. */
  failure: string | undefined;
}

export type CellEvent =
  /** An execution takes a place in the cell; also while it starts. */
  | { type: 'cell.acquire' }
  | { type: 'cell.release' }
  /** Let it go: ask first, then kill. */
  | { type: 'cell.stop' }
  /** Kill it now. */
  | { type: 'cell.kill' }
  | { type: 'process.spawned'; pid: number }
  /** It listens and has answered. */
  | { type: 'process.ready' }
  /** The operating system process is gone. */
  | { type: 'process.exited'; message: string };

/** What the process port is told. */
export type ProcessCommand = { type: 'process.shutdown' } | { type: 'process.kill' };

/** Port. Starts the cell's process; reports `process.spawned`, `process.ready`, and once `process.exited`. */
const process = fromCallback<ProcessCommand, { cellKey: string }>(() => {
  throw new Error('not provided: process');
});

/** A kill that the kernel has not confirmed is repeated at this distance. */
const REPEAT_KILL_MS = 1_000;

/** One cell: an operating system process that holds executions, from its start until it is gone. */
export const cellMachine = setup({
  types: {} as { context: CellContext; input: CellInput; events: CellEvent; children: { process: 'process' } },
  actors: { process },
  actions: {
    countGuest: assign({ guests: ({ context }) => context.guests + 1 }),
    releaseGuest: assign({ guests: ({ context }) => context.guests - 1 }),
    keepPid: assign({ pid: (_, p: { pid: number }) => p.pid }),
    keepFailure: assign({ failure: (_, p: { message: string }) => p.message }),
    keepLateness: assign({
      failure: ({ context }) => `the cell was not ready within ${context.startLimitMs} ms (startLimitMs)`,
    }),
    shutdown: sendTo('process', { type: 'process.shutdown' }),
    kill: sendTo('process', { type: 'process.kill' }),
  },
  guards: {
    isEmpty: ({ context }) => context.guests === 0,
  },
  delays: {
    startLimit: ({ context }) => context.startLimitMs,
    idle: ({ context }) => context.idleMs,
    grace: ({ context }) => context.graceMs,
    repeatKill: REPEAT_KILL_MS,
  },
}).createMachine({
  id: 'cell',
  options: { maxIterations: 1000 },
  context: ({ input }) => ({ ...input, pid: undefined, guests: 0, failure: undefined }),
  initial: 'pending',
  invoke: { id: 'process', src: 'process', input: ({ context }) => ({ cellKey: context.cellKey }) },
  on: {
    'cell.acquire': { actions: 'countGuest' },
    'cell.release': { actions: 'releaseGuest' },
    'cell.kill': '.signaled.forced',
    'process.spawned': { actions: { type: 'keepPid', params: ({ event }) => ({ pid: event.pid }) } },
    'process.exited': {
      target: '.exited',
      actions: { type: 'keepFailure', params: ({ event }) => ({ message: event.message }) },
    },
  },
  states: {
    pending: {
      on: { 'process.ready': 'running', 'cell.stop': 'signaled' },
      after: { startLimit: { target: 'signaled.forced', actions: 'keepLateness' } },
    },
    running: {
      initial: 'busy',
      on: { 'cell.stop': 'signaled' },
      states: {
        busy: { always: { guard: 'isEmpty', target: 'idle' } },
        idle: {
          on: { 'cell.acquire': { target: 'busy', actions: 'countGuest' } },
          after: { idle: '#cell.signaled' },
        },
      },
    },
    signaled: {
      initial: 'graceful',
      on: { 'process.exited': 'exited' },
      states: {
        graceful: { entry: 'shutdown', after: { grace: 'forced' } },
        forced: { entry: 'kill', after: { repeatKill: { target: 'forced', reenter: true } } },
      },
    },
    exited: { type: 'final' },
  },
});
