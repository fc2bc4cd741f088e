import { fstatSync, ftruncateSync, readSync } from 'node:fs';
import { announceOutput, dropOutput, outputLimit } from '../../workers/javascript/output-limit.ts';
import { OUTPUT, SHARED } from '../../workers/javascript/shared.ts';
import { type OutputDescriptors, type OutputStream, OutputWriter } from '../../workers/output-writer.ts';
import { keptOf } from '../output/kept.ts';
import { bytesIn, closeDestination } from '../output/output-destination.ts';
import { killTrees, untilGone } from '../processes.ts';
import { writersOf } from './file-writers.ts';

/** How often the files of a guest are looked at that has somebody else write to them. */
const LOOK_MS = 50;

/** How long those are looked for that have the output of a guest that is gone. */
const WRITERS_LIMIT_MS = 5_000;

/** How much of the end of standard error is of interest. */
const LAST_WORDS_BYTES = 8_192;

/**
 * The output files of one guest, kept to its limit. What its threads write they keep to it themselves; what others write
 * to the files is cut off here: up to 50 ms late where it was announced, or once it was found, else at the next look.
 */
export class GuestOutput {
  readonly descriptors: OutputDescriptors;
  /** For what the cell has to say in the guest's place. */
  readonly writer: OutputWriter;
  readonly #shared: Int32Array;
  readonly #limitBytes: number | undefined;
  readonly #onExceeded: () => void;
  #sizes: Record<OutputStream, number> = { stdout: 0, stderr: 0 };
  #timer: NodeJS.Timeout | undefined;
  #told = false;
  /** What standard error ended with when it was cut. */
  #cutOff = '';
  /** Once it is closed: what was in the files then. */
  #closedAt: Record<OutputStream, number> | undefined;

  /** Takes over the opened files. Throws when one cannot be written to; `onExceeded` is called at most once. */
  constructor(
    descriptors: OutputDescriptors,
    shared: Int32Array,
    limitBytes: number | undefined,
    onExceeded: () => void,
  ) {
    this.descriptors = descriptors;
    this.writer = new OutputWriter(this.descriptors, outputLimit(shared, limitBytes));
    this.#shared = shared;
    this.#limitBytes = limitBytes;
    this.#onExceeded = onExceeded;
    if (limitBytes !== undefined) void this.#watch();
  }

  /**
   * What standard error ends with, or did before it was cut; of rotated files the first one, which a process has as its
   * descriptor 2 for as long as it runs, whatever has become of its name.
   */
  lastWords(): string {
    const fromByte = this.#cutOff === '' ? 0 : this.#sizes.stderr;
    const { stderr } = this.descriptors;
    const buffer = Buffer.alloc(LAST_WORDS_BYTES);
    const position = Math.max(fromByte, fstatSync(stderr).size - buffer.length);
    const count = readSync(stderr, buffer, 0, buffer.length, position);
    return (this.#cutOff + buffer.toString('latin1', 0, count)).slice(-LAST_WORDS_BYTES);
  }

  /** How many bytes of each stream there are, or were when it was closed. */
  get bytes(): Record<OutputStream, number> {
    return this.#closedAt ?? bytesIn(this.descriptors);
  }

  /** To be called now and then: not everybody who writes past the writer announces that. */
  look(): void {
    // Rotated files are not cut: what was written past their writer is theirs to keep.
    if (this.#limitBytes === undefined || this.descriptors.rotation !== undefined) return;
    if (this.#closedAt !== undefined) return;
    try {
      this.#cut();
    } catch {
      // The next look tries again: what a guest has done to its files is no matter of its neighbours.
    }
  }

  /**
   * Ends what a guest that is gone has left of processes that have its output, as far as it told that there might be any:
   * some have run away from their parent, and nobody would keep them to a limit.
   */
  async endWriters(): Promise<void> {
    const { stdout, stderr, rotation } = this.descriptors;
    if (rotation !== undefined || (Atomics.load(this.#shared, SHARED.output) & OUTPUT.direct) === 0) return;
    const endMs = performance.now() + WRITERS_LIMIT_MS;
    while (performance.now() < endMs) {
      const left = await writersOf([stdout, stderr]);
      if (left.length === 0) return;
      await untilGone(killTrees(left), endMs - performance.now());
    }
  }

  /** To be called when nobody writes any more. */
  close(): void {
    this.look();
    this.#tell();
    clearInterval(this.#timer);
    announceOutput(this.#shared, OUTPUT.ended);
    this.writer.close();
    this.#closedAt = bytesIn(this.descriptors);
    closeDestination(this.descriptors);
  }

  async #watch(): Promise<void> {
    for (let seen = 0; (seen & OUTPUT.ended) === 0; seen = Atomics.load(this.#shared, SHARED.output)) {
      this.#tell();
      if ((seen & OUTPUT.direct) !== 0) this.#timer ??= setInterval(() => this.look(), LOOK_MS).unref();
      const change = Atomics.waitAsync(this.#shared, SHARED.output, seen);
      if (change.async) await change.value;
    }
  }

  #tell(): void {
    if (this.#told || (Atomics.load(this.#shared, SHARED.output) & OUTPUT.exceeded) === 0) return;
    this.#told = true;
    this.#onExceeded();
  }

  /** Cuts the files back to the limit. */
  #cut(): void {
    const sizes = bytesIn(this.descriptors);
    const excess = sizes.stdout + sizes.stderr - (this.#limitBytes as number);
    if (excess > 0) {
      announceOutput(this.#shared, OUTPUT.direct);
      dropOutput(this.#shared, excess);
    }
    const kept = keptOf(sizes, this.#limitBytes as number, this.#sizes);
    if (kept.stderr < sizes.stderr) this.#cutOff = this.lastWords();
    for (const stream of ['stdout', 'stderr'] as const) {
      if (kept[stream] < sizes[stream]) ftruncateSync(this.descriptors[stream], kept[stream]);
    }
    this.#sizes = kept;
  }
}
