import { fstatSync, readSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { announceOutput, dropOutput, outputLimit } from '../../workers/javascript/output-limit.ts';
import { OUTPUT, SHARED } from '../../workers/javascript/shared.ts';
import {
  type OutputDescriptors,
  type OutputRotation,
  type OutputStream,
  OutputWriter,
} from '../../workers/output-writer.ts';
import { writersLeftOf, writersOf } from '../output/file-writers.ts';
import { keptOf } from '../output/kept.ts';
import { OwnFile } from '../output/own-file.ts';
import { bytesSince, filesFrom } from '../output/rotated-files.ts';
import type { OutputName } from '../output/sealed-output.ts';
import { killTrees, untilGone } from '../processes.ts';

/** How often the files of a guest are looked at that has somebody else write to them. */
const LOOK_MS = 50;

/**
 * Rotated files may be many. After one look at them the next is not before so many times what it took, or this time in ms,
 * unless the guest ends.
 */
const LOOK_RATIO = 100;
const LONGEST_LOOK_MS = 1_000;

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
  /** What the descriptors are of, until they are closed; nothing where the files are rotated. */
  readonly #files = new Map<OutputName, OwnFile>();
  /** The first file of each stream where they are rotated. */
  readonly #first: OwnFile[] = [];
  /** How much there was of each stream when that was measured last. */
  #bytes: Record<OutputStream, number> = { stdout: 0, stderr: 0 };
  #sizes: Record<OutputStream, number> = { stdout: 0, stderr: 0 };
  /** When rotated files may be looked at again, by `performance.now`. */
  #countAgainMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #told = false;
  /** What standard error ended with when it was cut. */
  #cutOff = '';

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
    if (descriptors.rotation !== undefined) {
      this.#first.push(new OwnFile(descriptors.stdout), new OwnFile(descriptors.stderr));
    } else {
      for (const name of ['stdout', 'stderr', 'marks'] as const) this.#files.set(name, new OwnFile(descriptors[name]));
    }
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

  /** How many bytes of each stream there are, or were when it was closed; 0 where the files are rotated. */
  get bytes(): Record<OutputStream, number> {
    return this.#measure();
  }

  /** As far as it told, others may have its files open. */
  get isShared(): boolean {
    return (Atomics.load(this.#shared, SHARED.output) & OUTPUT.direct) !== 0;
  }

  /** To be called now and then: not everybody who writes past the writer announces that. */
  look(): void {
    if (this.#limitBytes === undefined) return;
    try {
      if (this.descriptors.rotation !== undefined) this.#count(this.descriptors.rotation, this.#limitBytes);
      else if (this.#files.size > 0) this.#cut();
    } catch {
      // The next look tries again: what a guest has done to its files is no matter of its neighbours.
    }
  }

  /**
   * Ends what a guest that is gone has left of processes that have its output, as far as it told that there might be any:
   * some have run away from their parent, and nobody would keep them to a limit.
   */
  async endWriters(): Promise<void> {
    if (!this.isShared) return;
    const endMs = performance.now() + WRITERS_LIMIT_MS;
    while (performance.now() < endMs) {
      try {
        const left = await this.#writersLeft(endMs);
        if (left.length === 0) return;
        await untilGone(killTrees(left), endMs - performance.now());
      } catch {
        // No descriptor is left to look with.
        await wait(LOOK_MS);
      }
    }
  }

  #writersLeft(endMs: number): Promise<number[]> {
    const { rotation } = this.descriptors;
    if (rotation === undefined) {
      return writersOf(
        (['stdout', 'stderr'] as const).flatMap((stream) => this.#files.get(stream) ?? []),
        endMs,
      );
    }
    const later = (['stdout', 'stderr'] as const).flatMap((stream, index) => {
      const directory = dirname((this.#first[index] as OwnFile).path);
      return filesFrom(join(directory, basename(rotation.paths[stream])), rotation.start[stream].file + 1);
    });
    return writersLeftOf([...this.#first, ...later], endMs);
  }

  /** To be called when nobody writes any more. */
  close(): void {
    this.#countAgainMs = 0;
    this.look();
    this.#tell();
    clearInterval(this.#timer);
    announceOutput(this.#shared, OUTPUT.ended);
    this.writer.close();
    this.#measure();
    for (const file of this.#files.values()) file.close();
    this.#files.clear();
  }

  #measure(): Record<OutputStream, number> {
    const of = (stream: OutputStream) => this.#files.get(stream)?.size ?? this.#bytes[stream];
    this.#bytes = { stdout: of('stdout'), stderr: of('stderr') };
    return this.#bytes;
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

  /** Rotated files are not cut: what was written past their writer is theirs to keep. */
  #count({ paths, start, maxFileBytes }: OutputRotation, limitBytes: number): void {
    const beganMs = performance.now();
    if (!this.isShared || beganMs < this.#countAgainMs) return;
    const written = (stream: OutputStream) => bytesSince(paths[stream], start[stream], maxFileBytes);
    if (written('stdout') + written('stderr') > limitBytes) announceOutput(this.#shared, OUTPUT.exceeded);
    const endMs = performance.now();
    this.#countAgainMs = endMs + Math.min(LOOK_RATIO * (endMs - beganMs), LONGEST_LOOK_MS);
  }

  /** Cuts the files back to the limit. */
  #cut(): void {
    const sizes = this.#measure();
    const excess = sizes.stdout + sizes.stderr - (this.#limitBytes as number);
    if (excess > 0) {
      announceOutput(this.#shared, OUTPUT.direct);
      dropOutput(this.#shared, excess);
    }
    const kept = keptOf(sizes, this.#limitBytes as number, this.#sizes);
    for (const stream of ['stdout', 'stderr'] as const) {
      const file = this.#files.get(stream);
      if (kept[stream] === sizes[stream] || file === undefined) continue;
      if (stream === 'stderr' && file.isOpen) this.#cutOff = this.lastWords();
      file.truncate(kept[stream]);
    }
    this.#bytes = kept;
    this.#sizes = kept;
  }
}
