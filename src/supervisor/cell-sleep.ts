import { Sleepers } from './sleepers.ts';

/** Stands for the cell's own process among its guests that doze. */
const CELL = '';

/** The cell whose guests may sleep. */
export interface SleepingCell {
  /** By execution key; a guest that is a thread has no process of its own: 0. */
  readonly guests: ReadonlyMap<string, { readonly pid: number }>;
  /** Its own process. */
  pid(): number;
  /** See {@link Sleepers}. */
  usageFile(): string | undefined;
  /** Tells the cell that these guests are awake, with none that all who are threads are. */
  wake(executionKeys: string[]): void;
}

/** Who sleeps in one cell: guests that are processes one by one, those that are threads all together, as their cell does. */
export class CellSleep implements Disposable {
  readonly #cell: SleepingCell;
  #sleepers: Sleepers | undefined;

  constructor(cell: SleepingCell) {
    this.#cell = cell;
  }

  /** While a guest sleeps the same object all the time, and another one in its next sleep. */
  of(executionKey: string): object | undefined {
    return this.#sleepers?.get(this.#keyOf(executionKey));
  }

  /** Looks now whether they still sleep. */
  look(): void {
    this.#sleepers?.look();
  }

  /** These guests doze, the cell says: they are watched from here. Of `changed` it has just told figures. */
  begin(executionKeys: string[], changed: ReadonlySet<string>): void {
    const { guests } = this.#cell;
    this.#sleepers ??= new Sleepers(this.#cell.usageFile(), (key) => this.#wake(key));
    let areThreads = false;
    for (const executionKey of executionKeys) {
      const guest = guests.get(executionKey);
      // One that nobody here knows yet is not watched.
      if (guest === undefined) this.#wake(executionKey);
      else if (guest.pid > 0) this.#watch(executionKey, guest.pid, changed.has(executionKey));
      else areThreads = true;
    }
    if (!areThreads) return;
    // One that is on its way there has not been seen to sleep.
    if (executionKeys.length === guests.size) this.#watch(CELL, this.#cell.pid(), changed.size > 0);
    else this.#wake(CELL);
  }

  /** What is sent to a guest wakes it, however little it does then. */
  rouse(executionKey: string): void {
    const key = this.#keyOf(executionKey);
    if (this.#sleepers?.get(key) === undefined) return;
    this.#sleepers.delete(key);
    this.#wake(key);
  }

  /** A guest is on its way to the cell, which is awake with it. */
  onStart(): void {
    this.#sleepers?.delete(CELL);
  }

  onExit(executionKey: string): void {
    this.#sleepers?.delete(executionKey);
  }

  [Symbol.dispose](): void {
    this.#sleepers?.[Symbol.dispose]();
  }

  #keyOf(executionKey: string): string {
    const { pid = 0 } = this.#cell.guests.get(executionKey) ?? {};
    return pid > 0 ? executionKey : CELL;
  }

  #wake(key: string): void {
    this.#cell.wake(key === CELL ? [] : [key]);
  }

  #watch(key: string, pid: number, isChanged: boolean): void {
    if (isChanged || this.#sleepers?.get(key) === undefined) this.#sleepers?.add(key, pid);
  }
}
