import { parentPort, workerData } from 'node:worker_threads';
import { removeSmallOutput, smallOutput } from '../output/sealed-output.ts';
import type { Durability, Entry, OutputPlace } from './entries.ts';
import { JournalStore, type Opened } from './store.ts';

/** The journal's thread: it waits for the disk, so that the daemon never does. */

/** From the daemon. */
export type JournalCommand =
  | { type: 'write'; entries: Entry[] }
  | { type: 'ask'; request: number; query: JournalQuery }
  /** See whether there is room again. */
  | { type: 'recover' }
  | { type: 'close' };

/** What is answered one by one. */
export type JournalQuery =
  /** What finished executions came to: a `FinishedExecution[]`. */
  | { type: 'finished'; numbers: number[] }
  /** What one of them wrote, if that is in the journal: a `SealedOutput`. */
  | { type: 'output'; number: number }
  /** Take small output of finished executions into the journal, and remove its files. */
  | { type: 'seal'; places: OutputPlace[] };

/** To the daemon. `strain`: see {@link JournalStore.strain}. */
export type JournalAnswer =
  | ({ type: 'opened'; strain: string | undefined } & Omit<Opened, 'store'>)
  | { type: 'refused'; message: string }
  /** `refused`: see {@link JournalStore.write}. */
  | { type: 'written'; strain: string | undefined; refused: string[] }
  | { type: 'failed'; message: string }
  | { type: 'recovered'; strain: string | undefined }
  | { type: 'answered'; request: number; value: unknown; failure: string | undefined };

/** What the thread is made with. */
export interface JournalThreadData {
  path: string;
  durability: Durability;
}

const port = parentPort;
if (port === null) throw new TypeError('the journal runs in a thread');
const answer = (message: JournalAnswer) => port.postMessage(message);
const { path, durability } = workerData as JournalThreadData;

try {
  const { store, ...opened } = JournalStore.open(path, durability);
  answer({ type: 'opened', ...opened, strain: store.strain });
  port.on('message', (command: JournalCommand) => obey(store, command));
} catch (error) {
  answer({ type: 'refused', message: (error as Error).message });
}

function obey(store: JournalStore, command: JournalCommand): void {
  switch (command.type) {
    case 'write':
      try {
        const refused = store.write(command.entries);
        answer({ type: 'written', strain: store.strain, refused });
      } catch (error) {
        answer({ type: 'failed', message: (error as Error).message });
      }
      break;
    case 'ask': {
      const { request, query } = command;
      try {
        answer({ type: 'answered', request, value: answerTo(store, query), failure: undefined });
      } catch (error) {
        answer({ type: 'answered', request, value: undefined, failure: (error as Error).message });
      }
      break;
    }
    case 'recover':
      store.recover();
      answer({ type: 'recovered', strain: store.strain });
      break;
    case 'close':
      store.close();
      port?.close();
      break;
  }
}

function answerTo(store: JournalStore, query: JournalQuery): unknown {
  switch (query.type) {
    case 'finished':
      return query.numbers.flatMap((number) => store.finished(number) ?? []);
    case 'output':
      return store.output(query.number);
    case 'seal':
      return seal(store, query.places);
  }
}

/** The files go once the journal has what was in them: whoever finds none finds it there. */
function seal(store: JournalStore, places: OutputPlace[]): void {
  const small = places.flatMap(({ number, directory }) => {
    const output = smallOutput(directory);
    return output === undefined ? [] : [{ number, directory, output }];
  });
  for (const { directory } of store.seal(small)) removeSmallOutput(directory);
}
