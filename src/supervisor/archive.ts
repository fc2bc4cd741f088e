import { rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn, setTimeout as wait } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { OutputStream } from '../../workers/output-writer.ts';
import { monotonicMs } from '../clock.ts';
import { DataLossError, InvalidArgumentError, NotFoundError, OutOfRangeError } from '../errors.ts';
import type { FinishedEntry, OutputBytes } from '../journal/entries.ts';
import type { Journal } from '../journal/journal.ts';
import { type OutputChunk, OutputFiles, type OutputRange, roomIn } from '../output/output-files.ts';
import { MOST_SEALED_BYTES } from '../output/sealed-output.ts';
import { removeSpool } from '../output/spool.ts';
import { ExecutionRecord, type ExecutionSnapshot } from './execution-record.ts';
import { FinishedRecord } from './finished-record.ts';
import { OutputSealer } from './output-sealer.ts';
import { Retention, type RetentionLimits, type UnfinishedOutput } from './retention.ts';
import type { KnownExecution, SessionName, SessionRegistry } from './session-registry.ts';

/** How long output that grows goes without a look, in ms: at least this, and this many times what the look takes. */
const OUTPUT_LOOK_MS = 1_000;
const OUTPUT_LOOK_RATIO = 200;

/** How many finished executions are kept in memory as they were; beyond that, those whose ends are not written yet. */
const MOST_RECENT = 64;

/** What an {@link Archive} is made with. */
export interface ArchiveOptions {
  registry: SessionRegistry;
  journal: Journal;
  /** `daemon/output/` of the state directory. */
  outputDirectory: string;
  limits: RetentionLimits;
  log: Logger;
}

/** How much of each stream was written, as far as somebody saw. */
interface KnownOutput extends OutputBytes {
  /** How much of it is there. */
  left: OutputBytes;
  /** What is not there was removed to make room; else somebody has removed it, or cut it short. */
  evicted: boolean;
}

/** Answers for executions whether they run or have finished, and keeps of those that have what retention lets it. */
export class Archive {
  readonly #options: ArchiveOptions;
  readonly #retention: Retention;
  readonly #sealer: OutputSealer;
  readonly #closing = new AbortController();
  /** What finished last, by number: most is asked right after the end, and needs no look into the journal then. */
  readonly #recent = new Map<number, ExecutionRecord>();
  /** How many bytes executions had written when they fell asleep, by that sleep: threads of a cell share one. */
  readonly #seenAsleep = new WeakMap<object, Map<ExecutionRecord, number>>();

  constructor(options: ArchiveOptions) {
    this.#options = options;
    this.#sealer = new OutputSealer(options.journal, options.outputDirectory, (entry) =>
      this.#inBackground(this.#removeIfLeft(entry)),
    );
    this.#retention = new Retention({
      limits: options.limits,
      onReleased: (entry) => this.#released(entry),
      onOutputEvicted: (entry) => this.#inBackground(this.#evictOutput(entry)),
    });
  }

  /** What an older daemon has left of finished executions, in the order in which they exited. */
  restore(finished: readonly FinishedEntry[]): void {
    for (const entry of finished.toSorted((a, b) => a.number - b.number)) this.#options.registry.add(entry);
    for (const entry of finished) this.#retention.add(entry);
  }

  /**
   * From here on it keeps an eye on what guests write, and makes small what older ones have left. `held`: the sessions that
   * have cells of an older daemon's.
   */
  watch(held: ReadonlySet<string>): void {
    this.#inBackground(this.#watchOutput());
    const known = this.#options.registry.executions();
    const finished = known.filter((each): each is FinishedEntry => !(each instanceof ExecutionRecord));
    this.#inBackground(this.#tidyLeft(finished, held));
  }

  async #tidyLeft(finished: readonly FinishedEntry[], held: ReadonlySet<string>): Promise<void> {
    for (const { sessionKey, executionKey } of await this.#sealer.addLeft(finished)) {
      // A cell goes on with what is left of one that was ended by force.
      if (held.has(sessionKey)) continue;
      removeSpool(join(this.#options.outputDirectory, sessionKey, executionKey));
      await nextTurn();
    }
  }

  /** An execution has exited, and that is journaled. */
  add(record: ExecutionRecord): void {
    const { result } = record.snapshot;
    const { number, sessionId, executionId, sessionKey, executionKey, retention } = record.accepted;
    const { stdoutBytes = 0, stderrBytes = 0 } = result?.usage ?? {};
    const { atMs, monotonicMs } = record.newestAt;
    const written = stdoutBytes + stderrBytes;
    // A long file may be one with holes.
    const outputBytes =
      written <= MOST_SEALED_BYTES ? written : Math.min(written, roomIn(this.#directoryOf(record.accepted)));
    const entry: FinishedEntry = {
      number,
      sessionId,
      executionId,
      sessionKey,
      executionKey,
      exited: { atMs, monotonicMs },
      outputBytes,
      outputEvicted: undefined,
      retention,
    };
    this.#options.registry.add(entry);
    this.#recent.set(number, record);
    for (const oldest of this.#recent.keys()) {
      if (this.#recent.size <= MOST_RECENT || this.#options.journal.isUnwritten(oldest)) break;
      this.#recent.delete(oldest);
    }
    if (outputBytes !== written)
      this.#options.journal.append({ type: 'execution.outputMeasured', number, bytes: outputBytes });
    this.#retention.add(entry);
    this.#sealer.add(entry);
    // Nobody saw the end of it, nor so what it had written by then. What never left the queue has written nothing.
    if (result?.usage === undefined && record.dispatched) this.#inBackground(this.#measureOutput(entry));
  }

  /** Gives up a finished execution. */
  release(entry: FinishedEntry): void {
    this.#retention.release(entry);
  }

  /** A session is deleted; its executions stay. */
  sessionClosed(session: SessionName): void {
    this.#inBackground(this.#removeIfLeft(session));
  }

  async recordOf(known: KnownExecution): Promise<ExecutionRecord | FinishedRecord> {
    const record = await this.#find(known);
    if (record === undefined) throw unknownError(known);
    return record;
  }

  /** What is known of it by now; undefined once it was given up, whoever has its id then. */
  #current({ sessionId, executionId, executionKey }: KnownExecution): KnownExecution | undefined {
    const found = this.#options.registry.find(sessionId, executionId);
    return found?.executionKey === executionKey ? found : undefined;
  }

  #requireKnown(known: KnownExecution): void {
    if (this.#current(known) === undefined) throw unknownError(known);
  }

  /** Undefined for one that was given up meanwhile. */
  async #find(known: KnownExecution): Promise<ExecutionRecord | FinishedRecord | undefined> {
    if (known instanceof ExecutionRecord) return known;
    const recent = this.#recent.get(known.number);
    if (recent !== undefined) return recent;
    const [finished] = await this.#options.journal.finished([known.number]);
    return finished && new FinishedRecord(finished);
  }

  /** All of these as they stand, those left out that are not known any more. */
  async snapshotsOf(wanted: readonly KnownExecution[]): Promise<ExecutionSnapshot[]> {
    const found = wanted.map((known) =>
      known instanceof ExecutionRecord ? known : (this.#recent.get(known.number) ?? known.number),
    );
    const numbers = found.filter((each) => typeof each === 'number');
    const finished = numbers.length === 0 ? [] : await this.#options.journal.finished(numbers);
    const byNumber = new Map(finished.map((execution) => [execution.number, new FinishedRecord(execution)]));
    return found.flatMap((each): ExecutionSnapshot[] => {
      const record = typeof each === 'number' ? byNumber.get(each) : each;
      return record === undefined ? [] : [record.snapshot];
    });
  }

  /** Of an execution whose record is at hand, or is looked for. */
  async outputOf(known: KnownExecution, record?: ExecutionRecord | FinishedRecord): Promise<KnownOutput> {
    const evicted = evictedOf(known);
    if (evicted !== undefined) return { ...evicted, evicted: true, left: { stdout: 0, stderr: 0 } };
    // Its result knows how much there was, as far as somebody saw. Asked first: all of that was in the files then.
    const { stdoutBytes = 0, stderrBytes = 0 } = (record ?? (await this.#find(known)))?.snapshot.result?.usage ?? {};
    const left = await this.#output(known).sizes();
    return {
      stdout: Math.max(left.stdout, stdoutBytes),
      stderr: Math.max(left.stderr, stderrBytes),
      evicted: false,
      left,
    };
  }

  /** The newest output of a stream that is there before `end`, `maxBytes` at most, and where it begins: of what is gone, at its end. */
  async tail(known: KnownExecution, stream: OutputStream, maxBytes: number, end: number) {
    const { left, ...written } = await this.outputOf(known);
    if (left[stream] === 0) return { position: Math.min(written[stream], end), data: Buffer.alloc(0) };
    return this.#output(known).tail(stream, maxBytes, end);
  }

  /** See `Daemon.streamOutput`. */
  async *read(known: KnownExecution, range: OutputRange, signal: AbortSignal): AsyncGenerator<OutputChunk> {
    try {
      yield* this.#read(known, await this.recordOf(known), range, signal);
    } catch (error) {
      // What is not there of one that was given up meanwhile was not lost.
      this.#requireKnown(known);
      throw error;
    }
  }

  async *#read(
    known: KnownExecution,
    record: ExecutionRecord | FinishedRecord,
    range: OutputRange,
    signal: AbortSignal,
  ): AsyncGenerator<OutputChunk> {
    const begun = await this.outputOf(known, record);
    this.#requireKnown(known);
    requireInRange(known, range, begun);
    // There is nothing to read, nor a directory to look at, until the guest has started.
    if (range.follow) {
      for await (const { state } of record.watch(1, signal)) if (state !== 'pending') break;
    }
    const next = { ...range.from };
    const cut = new Map<OutputStream, DataLossError>();
    const { outputLimitBytes: limitBytes } = known instanceof ExecutionRecord ? known.options : {};
    const looked = (sizes: OutputBytes) => {
      if (!(known instanceof ExecutionRecord)) return;
      // At its limit its own cell cuts it back; else nobody may.
      if (sizes.stdout + sizes.stderr >= (limitBytes ?? Number.POSITIVE_INFINITY)) return;
      for (const stream of range.streams) {
        if (sizes[stream] < next[stream])
          cut.set(stream, lossOf(known, stream, `${next[stream]} or more`, sizes[stream]));
      }
    };
    const limited = { ...range, limitBytes };
    // It may be over long before the execution is, without an abort: nothing of it is to stay there until then.
    const reading = new AbortController();
    try {
      for await (const chunk of this.#output(known).read(limited, record.exited(reading.signal), signal, looked)) {
        next[chunk.stream] = chunk.position + chunk.data.byteLength;
        yield chunk;
      }
    } finally {
      reading.abort();
    }
    if (range.follow) await record.exited(signal);
    if (signal.aborted) return;
    for (const loss of cut.values()) throw loss;
    // It may have been removed under the reader.
    const now = this.#current(known);
    const output = await this.outputOf(now ?? known, record);
    const written = { stdout: Math.max(begun.stdout, output.stdout), stderr: Math.max(begun.stderr, output.stderr) };
    requireKept(known, { ...range, from: next }, now === undefined ? { ...output, ...written } : output);
  }

  close(): void {
    this.#closing.abort();
    this.#sealer.close();
    this.#retention.close();
  }

  #directoryOf({ sessionKey, executionKey }: Pick<FinishedEntry, 'sessionKey' | 'executionKey'>): string {
    return join(this.#options.outputDirectory, sessionKey, executionKey);
  }

  #output(known: KnownExecution): OutputFiles {
    const accepted = known instanceof ExecutionRecord ? known.accepted : known;
    const { number } = accepted;
    return new OutputFiles(this.#directoryOf(accepted), async () =>
      known instanceof ExecutionRecord && known.state !== 'exited' ? undefined : this.#options.journal.output(number),
    );
  }

  /** Nobody may ask for it any more. */
  #released(entry: FinishedEntry): void {
    const { journal, registry } = this.#options;
    registry.remove(entry);
    journal.append({ type: 'execution.released', number: entry.number });
    this.#inBackground(this.#removeOutput(entry));
  }

  /** Learns from the files how much room the output of a finished execution takes. */
  async #measureOutput(entry: FinishedEntry): Promise<void> {
    const bytes = await this.#output(entry).room();
    const known = this.#options.registry.find(entry.sessionId, entry.executionId);
    if (known !== entry || bytes === entry.outputBytes) return;
    this.#options.journal.append({ type: 'execution.outputMeasured', number: entry.number, bytes });
    this.#retention.resize(entry, bytes);
  }

  /** Looks again and again at what guests write; never more than a small part of the time. */
  async #watchOutput(): Promise<void> {
    const { signal } = this.#closing;
    for (let tookMs = 0; ; ) {
      await wait(Math.max(OUTPUT_LOOK_MS, tookMs * OUTPUT_LOOK_RATIO), undefined, { ref: false, signal });
      const begunMs = monotonicMs();
      const looked = this.#lookAtOutput();
      this.#inBackground(looked);
      await looked.catch(() => {});
      tookMs = monotonicMs() - begunMs;
    }
  }

  async #lookAtOutput(): Promise<void> {
    const looked: (UnfinishedOutput & { record: ExecutionRecord })[] = [];
    const failures: unknown[] = [];
    for (const record of this.#options.registry.running()) {
      if (record.writesElsewhere) continue;
      const sleep = record.sleep?.();
      // Who sleeps writes nothing: its files are looked at once.
      const seen = sleep && this.#seenAsleep.get(sleep)?.get(record);
      try {
        const bytes = seen ?? (await this.#lookAtFiles(record, sleep));
        const { sessionKey, executionKey } = record.accepted;
        looked.push({ sessionKey, executionKey, bytes, record });
      } catch (error) {
        // What a guest has done to its own files keeps nobody from looking at those of others.
        failures.push(error);
      }
    }
    // Some may have ended meanwhile.
    this.#retention.noteUnfinished(looked.filter(({ record }) => record.measure !== undefined));
    if (failures.length > 0) throw failures[0];
  }

  /** How many bytes of the disk one has that runs. */
  async #lookAtFiles(record: ExecutionRecord, sleep: object | undefined): Promise<number> {
    const bytes = await this.#output(record).room();
    if (sleep !== undefined) {
      const cell = this.#seenAsleep.get(sleep) ?? new Map();
      this.#seenAsleep.set(sleep, cell.set(record, bytes));
    }
    return bytes;
  }

  /** Work on output that nobody waits for; what fails of it harms nothing but the room there is. */
  #inBackground(work: Promise<void>): void {
    work.catch((err) => {
      if (!this.#closing.signal.aborted) this.#options.log.warn({ err }, 'output cannot be looked after');
    });
  }

  async #evictOutput(entry: FinishedEntry): Promise<void> {
    const { journal } = this.#options;
    const left = await this.#output(entry).sizes();
    // Only of what somebody has cut short has its result to be asked.
    const isWhole = left.stdout + left.stderr >= entry.outputBytes;
    const { stdout, stderr } = isWhole ? left : await this.outputOf(entry);
    entry.outputEvicted ??= { stdout, stderr };
    journal.append({ type: 'execution.outputEvicted', number: entry.number, bytes: entry.outputEvicted });
    await this.#removeOutput(entry);
  }

  /** Once that is journaled: a later daemon must not find less than it is told. What cannot be removed is tried again. */
  async #removeOutput(entry: FinishedEntry): Promise<void> {
    const { journal, log } = this.#options;
    await journal.written();
    for (let failed = false; ; failed = true) {
      try {
        await this.#output(entry).remove();
        await this.#removeIfLeft(entry);
        return;
      } catch (err) {
        if (!failed) log.warn({ err }, 'output cannot be removed yet');
      }
      await wait(OUTPUT_LOOK_MS, undefined, { ref: false, signal: this.#closing.signal });
    }
  }

  /**
   * Removes a session's directory once the session is deleted and nothing is in it any more: to be called after each of
   * the two. While a session is open, its cells may be about to use it.
   */
  async #removeIfLeft(session: SessionName): Promise<void> {
    if (this.#options.registry.isOpen(session)) return;
    try {
      await rmdir(join(this.#options.outputDirectory, session.sessionKey));
    } catch (error) {
      if (!['ENOENT', 'ENOTEMPTY', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }
}

function unknownError({ sessionId, executionId }: KnownExecution): NotFoundError {
  return new NotFoundError(`execution "${executionId}" not found in session "${sessionId}" (elidectl ps)`);
}

/** Throws unless each stream that is wanted has the position it is wanted from, or ends there. */
function requireInRange(known: KnownExecution, range: OutputRange, output: KnownOutput): void {
  for (const stream of range.streams) {
    const [position, end, begin] = [range.from[stream], output[stream], output.evicted ? output[stream] : 0];
    if (!Number.isInteger(position) || position < 0) {
      throw new InvalidArgumentError(`${stream}_position is ${position}; it must be a whole number, 0 or more`);
    }
    if (position <= end) continue;
    const which = `${stream} of execution "${known.executionId}" has ${end} bytes, from ${begin} on`;
    throw new OutOfRangeError(`${which}; position ${position} is in the future`);
  }
  requireKept(known, range, output);
}

/** Throws unless each stream that is wanted has something behind the position it is wanted from, or ends there. */
function requireKept(known: KnownExecution, { streams, from }: OutputRange, output: KnownOutput): void {
  for (const stream of streams) {
    const [position, end, left] = [from[stream], output[stream], output.left[stream]];
    if (position >= end || position < left) continue;
    if (!output.evicted) throw lossOf(known, stream, `${end}`, left);
    const which = `${stream} of execution "${known.executionId}"`;
    throw new OutOfRangeError(
      `${which} was evicted to make room: position ${position} is gone, it now begins at ${end}, its end`,
    );
  }
}

/** Somebody else has removed output, or cut it short. */
function lossOf({ executionId }: KnownExecution, stream: OutputStream, written: string, left: number): DataLossError {
  return new DataLossError(
    `${stream} of execution "${executionId}" is lost: it had ${written} bytes, of which ${left} are left`,
  );
}

/** What was written of output that is gone. */
function evictedOf(known: KnownExecution): OutputBytes | undefined {
  return known instanceof ExecutionRecord ? undefined : known.outputEvicted;
}
