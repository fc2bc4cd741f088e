import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExitReason } from '../../machines/execution.ts';
import type { DaemonClient } from '../../src/client/client.ts';
import { isSameProcess, startTimeOf } from '../../src/processes.ts';
import type { CellSummary } from '../../src/supervisor/cell-supervisor.ts';
import type { StatusEvent } from '../../src/supervisor/execution-record.ts';
import { type GuestEngine, languageOf } from '../support/engines.ts';
import { eventually } from '../support/eventually.ts';
import { isOfSleep, processesWith } from '../support/processes.ts';
import { FAULTS, type Fault } from './faults.ts';
import { GUESTS, type GuestName } from './guests.ts';
import { brief, type KnownExecution, type Streamed, wrongInOutput, wrongInResult, wrongInWatch } from './model.ts';
import type { FaultNode } from './node.ts';
import type { PlannedFault } from './plan.ts';
import type { Step } from './steps.ts';

/** How long a call may be refused, or go unanswered, before that is a violation, in ms. */
const PERSISTENCE_MS = 60_000;
const HELD_MS = 1_000;
const RETRY_MS = 50;
/** How long executions of a round may take to end once they were told to, in ms. */
const END_LIMIT_MS = 90_000;
/** How long what a round leaves behind may take to be gone, in ms; gRPC keeps a connection 10 s that nobody uses. */
const CLEAN_LIMIT_MS = 60_000;

/** The harness's client may hold a second connection to a daemon, opened while the first was thought to be there. */
const OWN_CONNECTIONS = 1;

/** What of a node must be there after a round no more than before it. */
const LEAVINGS = ['cells', 'work', 'empty', 'cgroups'] as const;

/** What of a node is counted before and after a round. */
interface Footprint {
  descriptors: string[];
  cells: string[];
  work: string[];
  /** Directories of output with nothing in them. */
  empty: string[];
  cgroups: string[];
}

let lastSleeper = 0;

/** Some steps against a node, with faults between them, and what is found wrong after them. */
export class Round {
  readonly node: FaultNode;
  readonly violations: string[] = [];
  /** Faults that last, until they are over. */
  readonly mending: Promise<unknown>[] = [];
  /** What is to be done before the round is looked at. */
  readonly atEnd: (() => Promise<void>)[] = [];
  readonly #name: string;
  readonly #descriptors: number;
  readonly #known: KnownExecution[] = [];
  readonly #background: Promise<void>[] = [];
  readonly #tolerated = new Set<ExitReason>();
  #losesOutput = false;
  #sessions = 0;
  #accepted = 0;

  /** `descriptors`: how many the node's first daemon had when nothing but its neighbours ran. */
  constructor(node: FaultNode, name: string, descriptors = descriptorsOf(node.pid).length) {
    this.node = node;
    this.#descriptors = descriptors;
    this.#name = name;
  }

  /** How many executions there were. */
  get executions(): number {
    return this.#known.length;
  }

  /** Runs it; resolves when everything is over and looked at. What was wrong is in `violations`. */
  async run(steps: readonly Step[], faults: readonly PlannedFault[]): Promise<void> {
    for (const { name } of faults) {
      const { tolerates = [], losesOutput = false }: Fault = FAULTS[name];
      for (const reason of tolerates) this.#tolerated.add(reason);
      this.#losesOutput ||= losesOutput;
    }
    try {
      await this.node.running;
      const before = footprintOf(this.node);
      await this.#openSession();
      for (const [index, step] of steps.entries()) {
        for (const { name, at, lastsMs } of faults) if (at === index) await FAULTS[name].inject(this, lastsMs);
        await this.#take(step);
      }
      await this.#mend();
      await this.#end();
      await this.#look();
      await this.#leave();
      await this.#compareFootprint(before);
    } catch (error) {
      this.violation(`the round could not go on: ${(error as Error).stack}`);
      await this.#mend().catch((failure) => this.violation(`nor be mended: ${failure}`));
      await this.#deleted(this.sessionId).catch((failure) => this.violation(`nor be ended: ${failure}`));
    }
  }

  async #mend(): Promise<void> {
    await Promise.all(this.mending);
    for (const end of this.atEnd.splice(0)) await end();
  }

  violation(what: string): void {
    this.violations.push(what);
  }

  get sessionId(): string {
    return `${this.#name}-${this.#sessions}`;
  }

  get newest(): KnownExecution {
    return this.#chosen(0);
  }

  /** Cells of the session there is. */
  async cells(): Promise<CellSummary[]> {
    const { cells } = await this.persistently((client) => client.getSession(this.sessionId));
    return cells.filter(({ state, pid }) => state === 'ready' && pid > 0);
  }

  /** Process id of the newest guest that is a process. */
  async guest(): Promise<number | undefined> {
    for (const { snippet } of this.#known.toReversed()) {
      const { sessionId, executionId } = snippet;
      const { pid } = await this.persistently((client) => client.getExecutionStatus(sessionId, executionId));
      if (pid > 0) return pid;
    }
    return undefined;
  }

  /** Calls until there is an answer: while no daemon is there, or it has to refuse for now, again. */
  async persistently<T>(call: (client: DaemonClient) => Promise<T>): Promise<T> {
    for (let endMs = performance.now() + PERSISTENCE_MS; ; ) {
      await this.node.running;
      const calledMs = performance.now();
      const { client } = this.node;
      try {
        return await call(client);
      } catch (error) {
        const failedMs = performance.now();
        // One that broke after a while, a stream, had a daemon till then.
        if (failedMs - calledMs > HELD_MS) endMs = failedMs + PERSISTENCE_MS;
        // With its daemon the node closes its client.
        const isPast = client !== this.node.client;
        if (!(isPast || isPassing(error)) || failedMs > endMs) throw error;
        await sleep(RETRY_MS);
      }
    }
  }

  /** Starts a guest, asked for by so many requests at once, and follows it to its end. */
  async execute(
    guest: GuestName,
    engine: GuestEngine,
    requests = 1,
  ): Promise<{ sessionId: string; executionId: string }> {
    const { code, snippet: extra } = GUESTS[guest] as { code: Record<string, string>; snippet?: object };
    const asked = languageOf(engine);
    this.#accepted += 1;
    const executionId = `${guest}-${this.#accepted}`;
    lastSleeper += 1;
    const args = guest === 'child' ? [`600.${process.pid}${lastSleeper}`] : [];
    const program = { ...asked, code: code[asked.language] as string, args };
    const snippet = { sessionId: this.sessionId, executionId, ...program, ...extra };
    const known: KnownExecution = {
      snippet,
      guest,
      asked: new Set(),
      processes: new Map(),
      watches: [],
      streams: [],
    };
    const calls = Array.from({ length: requests }, () => this.persistently((client) => client.executeSnippet(snippet)));
    await Promise.all(calls);
    this.#known.push(known);
    this.#watch(known);
    this.#stream(known);
    return snippet;
  }

  /** Deletes the session with all that runs in it, and opens the next. */
  async deleteSession(): Promise<void> {
    for (const { snippet, asked } of this.#known) if (snippet.sessionId === this.sessionId) asked.add('session_closed');
    await this.#deleted(this.sessionId);
    await this.#openSession();
  }

  async #openSession(): Promise<void> {
    this.#sessions += 1;
    await this.persistently((client) => client.createSession(this.sessionId, { contextPoolSize: 2 }));
  }

  async #deleted(sessionId: string): Promise<void> {
    await this.persistently(async (client) => {
      try {
        await client.deleteSession(sessionId);
      } catch (error) {
        // The call before was not answered, but heard.
        if ((error as { code?: string }).code !== 'not_found') throw error;
      }
    });
  }

  #chosen(of: number): KnownExecution {
    const known = this.#known.at(-1 - (of % this.#known.length));
    if (known === undefined) throw new Error('no execution to choose');
    return known;
  }

  async #take(step: Step): Promise<void> {
    if (step.type === 'execute') {
      await this.execute(step.guest, step.engine);
      return;
    }
    if (step.type === 'burst') {
      await Promise.all(Array.from({ length: step.count }, () => this.execute('hello', step.engine)));
      return;
    }
    if (step.type === 'delete') {
      await this.deleteSession();
      return;
    }
    const known = this.#chosen(step.of);
    const { sessionId, executionId } = known.snippet;
    switch (step.type) {
      case 'cancel':
        known.asked.add('cancelled');
        await this.persistently((client) => client.cancelExecution(sessionId, executionId, { graceMs: step.graceMs }));
        break;
      case 'signal':
        known.asked.add('signaled');
        await this.#unlessOver(
          this.persistently((client) => client.signalExecution(sessionId, executionId, step.signal)),
        );
        break;
      case 'input':
        if (!('stdin' in known.snippet)) break;
        known.asked.add('failed');
        await this.#unlessOver(
          this.persistently((client) => client.writeInput(sessionId, executionId, Buffer.from('end\n'))),
        );
        break;
      case 'watch':
        this.#watch(known);
        break;
      case 'stream':
        this.#stream(known);
        break;
      case 'wait':
        await this.persistently((client) => client.wait(sessionId, executionId, { timeoutMs: 300 }));
        break;
      case 'status': {
        const said = known.watches[0]?.events.at(-1)?.state;
        const { state } = await this.persistently((client) => client.getExecutionStatus(sessionId, executionId));
        if (said === 'exited' && state !== 'exited') this.violation(`I1 ${executionId} was exited and is ${state}`);
        break;
      }
      case 'repeat': {
        if (sessionId !== this.sessionId) break;
        await this.persistently((client) => client.executeSnippet(known.snippet));
        const other = { ...known.snippet, code: '1' };
        const code = await this.persistently((client) => client.executeSnippet(other)).catch((error) => error.code);
        if (code !== 'already_exists')
          this.violation(`I1 another request for ${executionId} was answered with ${code}`);
        break;
      }
    }
  }

  /** A signal or input that comes too early or too late is refused. */
  async #unlessOver(call: Promise<unknown>): Promise<void> {
    await call.catch((error) => {
      if ((error as { code?: string }).code !== 'failed_precondition') throw error;
    });
  }

  /** Follows the status events to the end, over as many daemons as there are, and looks for the guest at its end. */
  #watch(known: KnownExecution): void {
    const { sessionId, executionId } = known.snippet;
    const watched = { events: [] as StatusEvent[], ended: false };
    known.watches.push(watched);
    const follow = async () => {
      await this.persistently(async (client) => {
        const fromSequence = (watched.events.at(-1)?.sequence ?? 0) + 1;
        for await (const event of client.watchExecution(sessionId, executionId, { fromSequence })) {
          watched.events.push(event);
          if (event.state === 'running') void this.#noteProcess(known);
          if (event.state === 'exited') this.#requireGone(known);
        }
      });
      watched.ended = true;
    };
    this.#background.push(follow().catch((error) => this.violation(`I7 ${executionId}: ${error}`)));
  }

  async #noteProcess({ snippet, processes }: KnownExecution): Promise<void> {
    const status = await this.node.client
      .getExecutionStatus(snippet.sessionId, snippet.executionId)
      .catch(() => undefined);
    const startTime = status?.pid ? startTimeOf(status.pid) : undefined;
    if (status && startTime !== undefined) processes.set(status.pid, startTime);
  }

  /** I2: it has exited, so nothing of it is there. */
  #requireGone({ snippet, guest, processes }: KnownExecution): void {
    for (const [pid, startTime] of processes) {
      if (isSameProcess(pid, startTime))
        this.violation(`I2 ${snippet.executionId} has exited, its process ${pid} lives`);
    }
    if (guest !== 'child') return;
    // To its end: another one's may begin with it.
    const left = processesWith(`sleep ${snippet.args?.[0]} `);
    if (left.length > 0)
      this.violation(`I2 ${snippet.executionId} (${snippet.language}) has exited, its child ${left} lives`);
  }

  /** Follows the output to its end, over as many daemons as there are. */
  #stream(known: KnownExecution): void {
    const { sessionId, executionId } = known.snippet;
    const streamed: Streamed = { data: [], bytes: 0, ended: false };
    known.streams.push(streamed);
    const follow = async () => {
      await this.persistently((client) => this.#read(client, sessionId, executionId, streamed));
      streamed.ended = true;
    };
    this.#background.push(follow().catch((error) => this.violation(`I3 ${executionId}: ${error}`)));
  }

  async #read(client: DaemonClient, sessionId: string, executionId: string, streamed: Streamed): Promise<void> {
    const options = { streams: ['stdout' as const], stdoutPosition: streamed.bytes };
    for await (const { position, data } of client.streamOutput(sessionId, executionId, options)) {
      if (position !== streamed.bytes) this.violation(`I3 ${executionId}: byte ${position} after ${streamed.bytes}`);
      streamed.data.push(data);
      streamed.bytes = position + data.byteLength;
    }
  }

  /** Ends what is left, and waits for everyone who follows. */
  async #end(): Promise<void> {
    for (const { snippet, asked, watches } of this.#known) {
      if (watches[0]?.ended) continue;
      const { sessionId, executionId } = snippet;
      asked.add('cancelled');
      await this.persistently((client) => client.cancelExecution(sessionId, executionId, { graceMs: 200 }));
    }
    const limit = new AbortController();
    const late = sleep(END_LIMIT_MS, 'late', { signal: limit.signal }).catch(() => '');
    if ((await Promise.race([Promise.all(this.#background), late])) === 'late') {
      const open = this.#known.filter(({ watches }) => watches.some(({ ended }) => !ended));
      const states = open.map(({ snippet, watches }) => `${snippet.executionId} ${watches[0]?.events.at(-1)?.state}`);
      this.violation(`I1 not ended within ${END_LIMIT_MS} ms: ${states.join(', ')}`);
    }
    limit.abort();
  }

  /** I1, I3, I6 and I7, of every execution. */
  async #look(): Promise<void> {
    const journal = readJournal(this.node, this.#name);
    const listed = new Map<string, string>();
    const sessions = new Set(this.#known.map(({ snippet }) => snippet.sessionId));
    for (const sessionId of sessions) {
      const executions = await this.persistently((client) => Array.fromAsync(client.listExecutions(sessionId)));
      for (const { executionId, state } of executions) {
        const key = `${sessionId} ${executionId}`;
        if (listed.has(key)) this.violation(`I1 ${key} is there twice`);
        listed.set(key, state);
      }
    }
    if (listed.size !== this.#known.length) {
      this.violation(`I1 ${this.#known.length} executions were accepted, ${listed.size} are listed`);
    }
    await this.#lookAtCounts();
    // A guest that did not end when it was forced has taken its cell along.
    const reachedCell = this.#known.some(({ watches }) => watches[0]?.events.some(({ rung }) => rung === 'cell'));
    if (reachedCell) this.#tolerated.add('cell_lost');
    for (const known of this.#known) await this.#lookAt(known, listed, journal);
  }

  async #lookAt(known: KnownExecution, listed: Map<string, string>, journal: Map<string, string[]>): Promise<void> {
    const { snippet, guest, watches, streams } = known;
    const { sessionId, executionId } = snippet;
    const say = (what: string) => this.violation(`${what} (${executionId}, ${snippet.isolation ?? snippet.language})`);
    const key = `${sessionId} ${executionId}`;
    if (listed.get(key) !== 'exited') say(`I1 listed as ${listed.get(key)}`);
    const status = await this.persistently((client) => client.getExecutionStatus(sessionId, executionId));
    const { result } = await this.persistently((client) => client.wait(sessionId, executionId, { timeoutMs: 0 }));
    const told = watches.map(({ events }) => JSON.stringify(events.map(summaryOf)));
    for (const watch of watches) for (const wrong of wrongInWatch(watch)) say(wrong);
    if (new Set(told).size !== 1) say(`I7 watchers were told different things: ${told.join(' and ')}`);
    if (JSON.stringify(journal.get(key)) !== told[0]) {
      say(`I6 the journal has ${JSON.stringify(journal.get(key))}, watchers were told ${told[0]}`);
    }
    if (result === undefined) {
      say('I1 no result');
      return;
    }
    const last = watches[0]?.events.at(-1)?.result;
    for (const [who, other] of [
      ['its status', status.result],
      ['its last event', last],
    ] as const) {
      if (JSON.stringify(other) !== JSON.stringify(result)) say(`I1 its result and that of ${who} are not the same`);
    }
    for (const wrong of wrongInResult(known, result, this.#tolerated)) say(wrong);
    const whole: Streamed = { data: [], bytes: 0, ended: false };
    await this.persistently((client) => this.#read(client, sessionId, executionId, whole));
    const text = Buffer.concat(whole.data).toString();
    for (const { data } of streams) {
      const followed = Buffer.concat(data).toString();
      if (followed !== text) say(`I3 a reader got ${brief(followed)}, there is ${brief(text)}`);
    }
    // A thread that wrote after its end, or bytes that were counted and are not there.
    const isSeen = result.reason !== 'cell_lost' && result.reason !== 'daemon_lost' && result.rung !== 'cell';
    if (isSeen && result.usage && result.usage.stdoutBytes !== whole.bytes) {
      say(`I2 ${result.usage.stdoutBytes} bytes at its end, ${whole.bytes} now`);
    }
    const { end } = GUESTS[guest];
    const endedByItself = result.reason === end?.reason && result.rung === undefined && result.reason !== 'timed_out';
    if (!this.#losesOutput) for (const wrong of wrongInOutput(guest, text, endedByItself)) say(wrong);
  }

  async #leave(): Promise<void> {
    await this.#deleted(this.sessionId);
    const sessions = await this.persistently((client) => client.listSessions());
    const left = sessions.filter(({ sessionId }) => sessionId.startsWith(`${this.#name}-`));
    for (const { sessionId } of left) this.violation(`I5 session ${sessionId} was deleted and is there`);
  }

  /** I6: what the session counts is what it was asked to run, all of which has exited. */
  async #lookAtCounts(): Promise<void> {
    const { counts } = await this.persistently((client) => client.getSession(this.sessionId));
    const exited = this.#known.filter(({ snippet }) => snippet.sessionId === this.sessionId).length;
    const wrong = counts.pending !== 0 || counts.running !== 0 || counts.exited !== exited;
    if (wrong) this.violation(`I6 ${exited} executions have exited, counted are ${JSON.stringify(counts)}`);
  }

  /** I5: nothing is left of the round but what can be asked for. */
  async #compareFootprint(before: Footprint): Promise<void> {
    let after = before;
    const left = (list: (typeof LEAVINGS)[number]) => after[list].filter((name) => !before[list].includes(name));
    const isClean = async () => {
      await this.node.running;
      after = footprintOf(this.node);
      const more = LEAVINGS.flatMap(left).length;
      return after.descriptors.length <= this.#descriptors + OWN_CONNECTIONS && more === 0;
    };
    await eventually('nothing is left', isClean, CLEAN_LIMIT_MS).catch(() => {
      const lists = LEAVINGS.flatMap(left).join(' ');
      const descriptors = `${before.descriptors.join(' ')} -> ${after.descriptors.join(' ')}`;
      this.violation(`I5 left behind: ${lists || 'nothing'}; descriptors ${descriptors}`);
    });
  }
}

/** Nobody answers, or the daemon refuses for now: worth another try. */
function isPassing(error: unknown): boolean {
  const { code } = error as { code?: string };
  return code === 'unavailable' || code === 'resource_exhausted' || code === 'cancelled';
}

/** What of an event everyone must agree on. */
function summaryOf({ sequence, atMs, state, rung, result }: StatusEvent): (string | number | undefined)[] {
  return [sequence, Math.round(atMs), state, rung, result?.reason, result?.exitCode, result?.signal];
}

/** What the journal says of the executions of a round, in the words of {@link summaryOf}. */
function readJournal(node: FaultNode, round: string): Map<string, string[]> {
  using database = new DatabaseSync(join(node.stateDir, 'daemon', 'journal.db'), { readOnly: true });
  const rows = database
    .prepare(`
      SELECT session_id, execution_id, event FROM events JOIN executions USING (number)
      WHERE session_id LIKE ? || '-%' ORDER BY number, sequence`)
    .all(round) as { session_id: string; execution_id: string; event: string }[];
  const executions = new Map<string, string[]>();
  for (const { session_id: sessionId, execution_id: executionId, event } of rows) {
    const key = `${sessionId} ${executionId}`;
    executions.set(key, [...(executions.get(key) ?? []), summaryOf(JSON.parse(event)) as unknown as string]);
  }
  return executions;
}

function footprintOf(node: FaultNode): Footprint {
  const keys = (names: string[]) => [...new Set(names.map((name) => name.replace(/\.\w+$/, '')))];
  const output = join(node.stateDir, 'daemon', 'output');
  return {
    descriptors: descriptorsOf(node.pid),
    cells: keys(readdirSync(join(node.stateDir, 'daemon', 'cells'))),
    work: readdirSync(join(node.stateDir, 'work')),
    empty: readdirSync(output).filter((name) => isEmpty(join(output, name))),
    cgroups: node.controlGroups().filter((name) => name.includes('/')),
  };
}

/** False for one that is gone meanwhile. */
function isEmpty(directory: string): boolean {
  try {
    return readdirSync(directory).length === 0;
  } catch {
    return false;
  }
}

/** What a process has open, in words. */
export function descriptorsOf(pid: number): string[] {
  const names = readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      const name = readlinkSync(`/proc/${pid}/fd/${fd}`);
      // Node opens one when first a file is watched, and keeps it.
      return name === 'anon_inode:inotify' || isOfSleep(name)
        ? []
        : [name.replace(/^.*\//, '').replace(/:\[\d+\]/, '')];
    } catch {
      return [];
    }
  });
  return names.sort();
}
