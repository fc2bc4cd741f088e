import { toDirectedGraph } from 'xstate/graph';
import { type ExecutionResult, type ExitReason, executionMachine } from '../../machines/execution.ts';
import type { StatusEvent } from '../../src/supervisor/execution-record.ts';
import type { Snippet } from '../../src/supervisor/requests.ts';
import { GUESTS, type GuestName } from './guests.ts';

/** What the harness knows of one execution: what it asked for, and what it was told. */
export interface KnownExecution {
  snippet: Snippet;
  guest: GuestName;
  /** Every reason that what was asked of it can give it. */
  asked: Set<ExitReason>;
  /** Process ids of the guest with their start times, seen while it ran. */
  processes: Map<number, string>;
  watches: Watched[];
  streams: Streamed[];
}

/** What one watcher was told, over all daemons. */
export interface Watched {
  events: StatusEvent[];
  /** The watch ended by itself. */
  ended: boolean;
}

/** What one reader was told, over all daemons. */
export interface Streamed {
  data: Buffer[];
  bytes: number;
  ended: boolean;
}

type Graph = ReturnType<typeof toDirectedGraph>;

/** `pending`, `running`, `signaled.graceful`, `exited`: a state of the machine as status events name it. */
function stepOf(stateId: string): string {
  const [, state = '', rung = ''] = stateId.split('.');
  if (state !== 'signaled') return state;
  return rung === '' ? 'signaled.graceful' : `signaled.${rung}`;
}

const RUNGS = ['signaled.graceful', 'signaled.forced', 'signaled.cell'];

/** What may follow what: the execution's machine, its states inside each other folded into those that are told. */
const FOLLOWS: ReadonlyMap<string, ReadonlySet<string>> = (() => {
  const follows = new Map<string, Set<string>>();
  const collect = (node: Graph): void => {
    for (const { source, target } of node.edges) {
      // What is true of the whole machine is true of its states that do not say otherwise: `signaled` does.
      const sources = { execution: ['pending', 'running'], 'execution.signaled': RUNGS }[source.id] ?? [
        stepOf(source.id),
      ];
      for (const from of sources) {
        follows.set(from, (follows.get(from) ?? new Set()).add(stepOf(target.id)));
      }
    }
    for (const child of node.children) collect(child);
  };
  collect(toDirectedGraph(executionMachine));
  return follows;
})();

/** I1 and I7, of what one watcher was told. */
export function* wrongInWatch({ events, ended }: Watched): Generator<string> {
  let before: StatusEvent | undefined;
  for (const event of events) {
    if (event.sequence !== (before?.sequence ?? 0) + 1) {
      yield `I7 sequence ${event.sequence} after ${before?.sequence ?? 0}`;
    }
    if (before?.state === 'exited') yield `I1 ${event.state} after exited`;
    if (before !== undefined && event.atMs < before.atMs) yield `I1 ${event.state} is earlier than ${before.state}`;
    const [from, to] = [before && nameOf(before), nameOf(event)];
    const isLegal = from === undefined ? to === 'pending' : (FOLLOWS.get(from)?.has(to) ?? false);
    if (!isLegal && !(from === to && event.warning !== undefined))
      yield `I1 ${from} -> ${to} is no step of the machine`;
    if ((event.state === 'exited') !== (event.result !== undefined))
      yield `I1 ${event.state} and its result do not agree`;
    before = event;
  }
  if (!ended) yield 'I7 the watch never ended';
  else if (before?.state !== 'exited') yield `I7 the watch ended with ${before?.state}`;
}

function nameOf({ state, rung }: StatusEvent): string {
  return state === 'signaled' ? `${state}.${rung}` : state;
}

/** I1: the end is one that was asked for, one of its own, or one that a fault may cause. */
export function* wrongInResult(
  { guest, asked }: KnownExecution,
  { reason, exitCode, signal, message }: ExecutionResult,
  tolerated: ReadonlySet<ExitReason>,
): Generator<string> {
  const { end } = GUESTS[guest];
  if (tolerated.has(reason) || asked.has(reason)) return;
  if (reason !== end?.reason) yield `I1 ${reason} (${exitCode}, ${signal}, ${message}), which nothing can have caused`;
  else if (reason !== 'timed_out' && exitCode !== end.exitCode) yield `I1 ${reason} with exit code ${exitCode}`;
}

/** I3: what was written is what this guest writes, from its first byte on, whole where it ended by itself. */
export function* wrongInOutput(guest: GuestName, text: string, endedByItself: boolean): Generator<string> {
  const { output } = GUESTS[guest] as { output?: string };
  const expected = output ?? countTo(text);
  if (!expected.startsWith(text)) yield `I3 output of ${guest} is not what it writes: ${brief(text)}`;
  else if (endedByItself && output !== undefined && text !== output) {
    yield `I3 output of ${guest} ends after ${text.length} of ${output.length} bytes`;
  }
}

/** Numbers from 0 on, as many as make a text of that length. */
function countTo(text: string): string {
  let expected = '';
  for (let count = 0; expected.length < text.length; count += 1) expected += `${count}\n`;
  return expected;
}

export function brief(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 40)}...${text.slice(-40)}` : text);
}
