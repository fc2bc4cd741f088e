import { parentPort, workerData } from 'node:worker_threads';
import type { Durability, Entry, FinishedExecution } from './entries.ts';
import { JournalStore, type Opened } from './store.ts';

/** The journal's thread: it waits for the disk, so that the daemon never does. */

/** From the daemon. */
export type JournalCommand =
  | { type: 'write'; entries: Entry[] }
  | { type: 'find'; request: number; numbers: number[] }
  /** See whether there is room again. */
  | { type: 'recover' }
  | { type: 'close' };

/** To the daemon. `strain`: see {@link JournalStore.strain}. */
export type JournalAnswer =
  | ({ type: 'opened'; strain: string | undefined } & Omit<Opened, 'store'>)
  | { type: 'refused'; message: string }
  | { type: 'written'; strain: string | undefined }
  | { type: 'failed'; message: string }
  | { type: 'recovered'; strain: string | undefined }
  | { type: 'found'; request: number; executions: FinishedExecution[]; failure: string | undefined };

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
  const { store, contents, setAside } = JournalStore.open(path, durability);
  answer({ type: 'opened', contents, setAside, strain: store.strain });
  port.on('message', (command: JournalCommand) => obey(store, command));
} catch (error) {
  answer({ type: 'refused', message: (error as Error).message });
}

function obey(store: JournalStore, command: JournalCommand): void {
  switch (command.type) {
    case 'write':
      try {
        store.write(command.entries);
        answer({ type: 'written', strain: store.strain });
      } catch (error) {
        answer({ type: 'failed', message: (error as Error).message });
      }
      break;
    case 'find': {
      const { request, numbers } = command;
      try {
        answer({
          type: 'found',
          request,
          executions: numbers.flatMap((number) => store.finished(number) ?? []),
          failure: undefined,
        });
      } catch (error) {
        answer({ type: 'found', request, executions: [], failure: (error as Error).message });
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
