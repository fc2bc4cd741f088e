import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

/** Leaves at a message, which it hears as a signal. */
const LEAVING = `process.once('SIGTERM', () => process.exit(3));
require('node:worker_threads').parentPort.once('message', (name) => process.emit(name)).postMessage('ready');`;

/** A thread of this process that waits to be told to leave. */
export class BareThread {
  readonly #worker: Worker;

  private constructor(worker: Worker) {
    this.#worker = worker;
  }

  static async start(): Promise<BareThread> {
    const worker = new Worker(LEAVING, { eval: true });
    await once(worker, 'message');
    return new BareThread(worker);
  }

  /** Resolves when it has left. */
  async leave(): Promise<void> {
    this.#worker.postMessage('SIGTERM');
    await once(this.#worker, 'exit');
  }
}
