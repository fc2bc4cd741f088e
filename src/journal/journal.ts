import { accessSync, constants } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { ResourceExhaustedError, StartupError, UnavailableError } from '../errors.ts';
import type { SealedOutput } from '../output/sealed-output.ts';
import { JOURNAL_THREAD } from '../package-root.ts';
import { sizeOf } from '../supervisor/requests.ts';
import { openDatabase } from './database.ts';
import type { Durability, Entry, FinishedEntry, FinishedExecution, JournalContents, OutputPlace } from './entries.ts';
import { finishedEntries } from './rows.ts';
import { fullnessAt, type Opened, settleLoss } from './store.ts';
import type { JournalAnswer, JournalCommand, JournalQuery, JournalThreadData } from './thread.ts';

/** How long after a failure the same entries are tried again, and whether there is room again, in ms. */
const RETRY_MS = 250;
/** How often its thread is begun before a journal that was never open is given up. */
const MOST_STARTS = 5;
/** How long a journal that is closed waits for its last entries, in ms. */
const CLOSE_LIMIT_MS = 5_000;

/** The disk does not answer, and holds the journal's thread, and with that its process, for as long. */
export class HungJournalError extends Error {
  override readonly name = 'HungJournalError';

  constructor(path: string, lost: number) {
    super(`the disk of ${path} does not answer: ${lost} entries of the journal were not written`);
  }
}

/** What a journal held when it was opened. */
export type OpenedJournal = Omit<Opened, 'store' | 'contents'> & { journal: Journal; contents: JournalContents };

interface Appended {
  entry: Entry;
  /** Who waits for it. */
  onWritten: (() => void)[];
  /** How much its request takes, of one that has such. */
  bytes: number;
}

/**
 * The one truth of sessions and executions, on disk. Entries are written in their order by a thread of their own;
 * whatever comes while it writes shares the next transaction (group commit). What cannot be written is kept and tried
 * again until it can.
 */
export class Journal {
  readonly #data: JournalThreadData;
  readonly #onFailure: (failure: string | undefined) => void;
  readonly #onRefused: (why: string) => void;
  #thread: Worker | undefined;
  /** How often one was begun. */
  #starts = 0;
  /** On their way to the disk. */
  #writing: Appended[] = [];
  /** The thread has them. */
  #sent = false;
  #next: Appended[] = [];
  /** What is on its way failed, and will be tried again. */
  #retrying = false;
  #scheduled = false;
  #failure: string | undefined;
  /** When the entries were handed to the thread that it has not answered yet. */
  #sentMs: number | undefined;
  /** Of requests that were accepted, and are not on the disk yet. */
  #unwrittenBytes = 0;
  #closing = false;
  readonly #requests = new Map<number, PromiseWithResolvers<unknown>>();
  #lastRequest = 0;
  #recovery: NodeJS.Timeout | undefined;
  /** Set until it is open: it keeps all that the journal held then. */
  #opening: PromiseWithResolvers<OpenedJournal> | undefined;

  private constructor(
    data: JournalThreadData,
    onFailure: (failure: string | undefined) => void,
    onRefused: (why: string) => void,
    opening: PromiseWithResolvers<OpenedJournal>,
  ) {
    this.#data = data;
    this.#onFailure = onFailure;
    this.#onRefused = onRefused;
    this.#opening = opening;
    this.#start();
  }

  /**
   * Opens the journal or begins it. Rejects with a `StartupError` for a file that it cannot use. `onFailure` hears why
   * nothing can be written, and undefined when it can again; `onRefused`, of an entry that can never be: it is left out.
   */
  static open(
    path: string,
    durability: Durability,
    onFailure: (failure: string | undefined) => void,
    onRefused: (why: string) => void = () => {},
  ): Promise<OpenedJournal> {
    const opening = Promise.withResolvers<OpenedJournal>();
    new Journal({ path, durability }, onFailure, onRefused, opening);
    return opening.promise;
  }

  /** Read here: to hand over very many of them takes the thread longer than to read them. */
  #finishedEntries(): FinishedEntry[] {
    const database = openDatabase(this.#data.path, { readOnly: true });
    try {
      return finishedEntries(database);
    } finally {
      database.close();
    }
  }

  /** Why it cannot be written now, as far as that was tried. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /** For how long its thread has not answered what it is to write; 0 when there is nothing. */
  get unansweredMs(): number {
    return this.#sentMs === undefined ? 0 : performance.now() - this.#sentMs;
  }

  /** Why nothing new should be begun now, because it could not be kept; undefined when all is well. */
  get hindrance(): string | undefined {
    return this.#failure ?? this.#obstacle();
  }

  /** Throws when nothing new, of a request of so many bytes, can be accepted now, because it could not be kept. */
  requireWritable(bytes = 0): void {
    const failure = this.#failure ?? this.#obstacle(bytes);
    if (failure === undefined) return;
    const message = `the journal cannot be written (${failure}); nothing new is accepted until it can`;
    if (/full|ENOSPC|EDQUOT/.test(failure)) throw new ResourceExhaustedError(message, { retryAfterMs: 1_000 });
    throw new UnavailableError(message);
  }

  /** A disk that has turned full or read-only says so before anything is written to it. */
  #obstacle(bytes = 0): string | undefined {
    const { path } = this.#data;
    try {
      accessSync(path, constants.W_OK);
      // Once in the log, and once more in the database.
      return fullnessAt(path, 2 * (this.#unwrittenBytes + bytes));
    } catch (error) {
      return (error as Error).message;
    }
  }

  /** Adds an entry; `onWritten` is called once it is as durable as asked for, in the order of the entries. */
  append(entry: Entry, onWritten?: () => void): void {
    const told = this.#data.durability === 'off';
    const bytes = entry.type === 'execution.accepted' ? sizeOf(entry.request) : 0;
    this.#unwrittenBytes += bytes;
    this.#next.push({ entry, onWritten: told || onWritten === undefined ? [] : [onWritten], bytes });
    this.#schedule();
    if (told) onWritten?.();
  }

  /** Resolves when everything appended so far is as durable as asked for. */
  async written(): Promise<void> {
    if (this.#data.durability !== 'off') await this.#flushed();
  }

  /** Whether what was told of an execution is still on its way to the disk, as it may be with `durability: off`. */
  isUnwritten(number: number): boolean {
    if (this.#data.durability !== 'off') return false;
    const isOfIt = ({ entry }: Appended) => entry.type === 'execution.event' && entry.number === number;
    return this.#writing.some(isOfIt) || this.#next.some(isOfIt);
  }

  /** What finished executions came to, those left out that are not known (any more), not written yet, or cannot be read. */
  finished(numbers: number[]): Promise<FinishedExecution[]> {
    return this.#query<FinishedExecution[]>({ type: 'finished', numbers });
  }

  /** What a finished execution wrote, if that was taken into the journal. */
  output(number: number): Promise<SealedOutput | undefined> {
    return this.#query<SealedOutput | undefined>({ type: 'output', number });
  }

  /**
   * Takes the output of finished executions into the journal where it is small, and removes the files of it then. Rejects,
   * and leaves all files as they are, when there is no room to spare or it cannot be written.
   */
  seal(places: OutputPlace[]): Promise<void> {
    return this.#query<void>({ type: 'seal', places });
  }

  async #query<Value>(query: JournalQuery): Promise<Value> {
    if (this.#closing) throw new UnavailableError('the daemon has stopped');
    if (this.#thread === undefined) throw new UnavailableError('the journal cannot be read now');
    const answered = Promise.withResolvers<unknown>();
    this.#lastRequest += 1;
    this.#requests.set(this.#lastRequest, answered);
    this.#ask({ type: 'ask', request: this.#lastRequest, query });
    return (await answered.promise) as Value;
  }

  /** What a lost journal knew is dealt with: from here on what this one does not know is nobody's. */
  settleLoss(): void {
    settleLoss(this.#data.path);
  }

  /** Writes what is left, and lets the file go. Rejects when that takes longer than 5 s, with the number of entries lost. */
  async close(): Promise<void> {
    const limit = Promise.withResolvers<void>();
    const timer = setTimeout(limit.resolve, CLOSE_LIMIT_MS);
    await Promise.race([this.#emptied(), limit.promise]);
    clearTimeout(timer);
    clearTimeout(this.#recovery);
    this.#closing = true;
    const lost = this.#writing.length + this.#next.length;
    const thread = this.#thread;
    if (thread !== undefined) {
      const exited = new Promise<true>((resolve) => thread.once('exit', () => resolve(true)));
      this.#ask({ type: 'close' });
      if (!(await Promise.race([exited, sleep(CLOSE_LIMIT_MS)]))) {
        void thread.terminate();
        if (!(await Promise.race([exited, sleep(CLOSE_LIMIT_MS)]))) throw new HungJournalError(this.#data.path, lost);
      }
    }
    if (lost > 0) throw new Error(`${lost} entries of the journal were not written: ${this.#failure ?? 'too slow'}`);
  }

  async #flushed(): Promise<void> {
    const last = this.#next.at(-1) ?? this.#writing.at(-1);
    if (last === undefined) return;
    await new Promise<void>((resolve) => last.onWritten.push(resolve));
  }

  /** Who hears of an entry may append another one. */
  async #emptied(): Promise<void> {
    while (this.#writing.length + this.#next.length > 0) await this.#flushed();
  }

  #start(): void {
    this.#starts += 1;
    let thread: Worker;
    try {
      thread = new Worker(JOURNAL_THREAD, { workerData: this.#data, name: 'journal', execArgv: [], env: {} });
    } catch (error) {
      this.#tell((error as Error).message);
      this.#startAgain();
      return;
    }
    this.#thread = thread;
    thread.on('message', (answer: JournalAnswer) => this.#hear(answer));
    thread.on('error', (error) => this.#tell((error as Error).message));
    thread.once('exit', () => {
      this.#thread = undefined;
      this.#sent = false;
      this.#sentMs = undefined;
      for (const { reject } of this.#requests.values()) reject(new UnavailableError('the journal cannot be read now'));
      this.#requests.clear();
      if (this.#closing) return;
      this.#tell(this.#failure ?? 'its thread has ended');
      this.#startAgain();
    });
  }

  #startAgain(): void {
    if (this.#opening === undefined || this.#starts < MOST_STARTS) {
      setTimeout(() => this.#closing || this.#start(), RETRY_MS);
      return;
    }
    this.#closing = true;
    this.#opening.reject(new StartupError(`journal: ${this.#failure}`));
  }

  #hear(answer: JournalAnswer): void {
    if (answer.type === 'written' || answer.type === 'failed') this.#sentMs = undefined;
    switch (answer.type) {
      case 'opened': {
        const { contents, setAside, isLost, strain } = answer;
        const opening = this.#opening;
        this.#opening = undefined;
        this.#tell(strain);
        if (opening !== undefined) {
          try {
            const finished = this.#finishedEntries();
            opening.resolve({ journal: this, contents: { ...contents, finished }, setAside, isLost });
          } catch (cause) {
            const refusal = new StartupError(`journal: ${(cause as Error).message}`, { cause });
            void this.close().finally(() => opening.reject(refusal));
          }
        }
        this.#send();
        break;
      }
      case 'refused':
        // The thread ends with that: once it was open, it is tried again.
        this.#closing ||= this.#opening !== undefined;
        this.#opening?.reject(new StartupError(`journal: ${answer.message}`));
        this.#tell(answer.message);
        break;
      case 'written': {
        this.#sent = false;
        this.#retrying = false;
        const written = this.#writing;
        this.#writing = [];
        for (const { bytes } of written) this.#unwrittenBytes -= bytes;
        this.#tell(answer.strain);
        for (const why of answer.refused) this.#onRefused(why);
        for (const { onWritten } of written) for (const tell of onWritten) tell();
        this.#send();
        break;
      }
      case 'failed':
        this.#retrying = true;
        this.#tell(answer.message);
        setTimeout(() => {
          this.#sent = false;
          this.#send();
        }, RETRY_MS);
        break;
      case 'recovered':
        // What could not be written decides, not the room there is.
        if (!this.#retrying) this.#tell(answer.strain);
        break;
      case 'answered': {
        const { request, value, failure } = answer;
        const answered = this.#requests.get(request);
        this.#requests.delete(request);
        if (failure === undefined) answered?.resolve(value);
        else answered?.reject(new UnavailableError(`the journal cannot be read: ${failure}`));
        break;
      }
    }
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#send();
    });
  }

  #send(): void {
    if (this.#sent || this.#thread === undefined) return;
    if (this.#writing.length === 0) {
      this.#writing = this.#next;
      this.#next = [];
    }
    if (this.#writing.length === 0) return;
    this.#sent = true;
    this.#sentMs = performance.now();
    this.#ask({ type: 'write', entries: this.#writing.map(({ entry }) => entry) });
  }

  #ask(command: JournalCommand): void {
    this.#thread?.postMessage(command);
  }

  /** As long as something is wrong, it is looked again whether there is room; a failed write is tried again by itself. */
  #tell(failure: string | undefined): void {
    if (failure !== undefined && this.#opening === undefined && !this.#closing) {
      clearTimeout(this.#recovery);
      this.#recovery = setTimeout(() => this.#ask({ type: 'recover' }), RETRY_MS).unref();
    }
    if (failure === this.#failure) return;
    this.#failure = failure;
    this.#onFailure(failure);
  }
}
