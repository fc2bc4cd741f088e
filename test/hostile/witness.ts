import { setTimeout as wait } from 'node:timers/promises';
import type { ExecutionResult } from '../../machines/execution.ts';
import type { TestExecution, TestSession } from '../support/daemon.ts';
import type { HostileGuest } from './guest.ts';

/** Counts the lines it is asked, and answers each with its count. */
const CODE: Record<HostileGuest['language'], string> = {
  javascript: `
    let count = 0;
    process.stdin.on('data', (data) => { for (const byte of data) if (byte === 10) console.log('answer ' + ++count); });
    console.log('ready');`,
  python: `
import sys
print("ready", flush=True)
for count, _ in enumerate(sys.stdin, 1): print("answer", count, flush=True)`,
};

/** How long an answer may take: the machine runs hostile guests meanwhile. */
const ANSWER_LIMIT_MS = 30_000;

/** An ordinary program next to hostile ones: is asked again and again, and must have gone on as if they were not there. */
export class Witness {
  readonly execution: TestExecution;
  readonly #session: TestSession;
  #asked = 0;
  #written = '';
  #change = Promise.withResolvers<void>();
  #result: ExecutionResult | undefined;
  #failure: string | undefined;
  #cell = 0;

  private constructor(session: TestSession, execution: TestExecution) {
    this.#session = session;
    this.execution = execution;
    void this.#read();
  }

  /** Starts one in a session that has no cell of its kind yet. */
  static async start(session: TestSession, language: HostileGuest['language']): Promise<Witness> {
    const witness = new Witness(session, await session.ready({ language, code: CODE[language], stdin: true }));
    witness.#cell = await session.cellPid();
    return witness;
  }

  /**
   * Asks once more. `untouched`: it answered, in the cell it was started in, and has written nothing but its answers.
   * Otherwise what has become of it.
   */
  async ask(): Promise<string> {
    this.#asked += 1;
    const asked = this.#asked;
    this.execution.write('\n').catch(() => {});
    const deadline = AbortSignal.timeout(ANSWER_LIMIT_MS);
    while (!this.#written.includes(`answer ${asked}\n`)) {
      if (this.#result !== undefined) return this.#result.reason;
      if (deadline.aborted) return this.#failure ?? 'silent';
      await Promise.race([
        this.#change.promise,
        wait(ANSWER_LIMIT_MS, undefined, { signal: deadline }).catch(() => {}),
      ]);
    }
    const pids = await this.#session.cellPids();
    if (pids.length !== 1 || pids[0] !== this.#cell) return `in cell ${pids} instead of ${this.#cell}`;
    return this.#isWhole() ? 'untouched' : `wrote ${JSON.stringify(this.#written.slice(-200))}`;
  }

  #isWhole(): boolean {
    const count = this.#written.split('\n').length - 2;
    return this.#written === `ready\n${Array.from({ length: count }, (_, at) => `answer ${at + 1}\n`).join('')}`;
  }

  async #read(): Promise<void> {
    const { daemon, sessionId, executionId } = this.execution;
    try {
      for await (const { data } of daemon.streamOutput(sessionId, executionId)) {
        this.#written += data.toString('latin1');
        this.#changed();
      }
    } catch (error) {
      this.#failure = `unreadable: ${error}`;
    }
    this.#result = (await daemon.wait(sessionId, executionId)).result;
    this.#changed();
  }

  #changed(): void {
    this.#change.resolve();
    this.#change = Promise.withResolvers<void>();
  }
}
