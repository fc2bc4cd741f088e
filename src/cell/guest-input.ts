import type { Input, InputTaken } from '../gen/elide/cell/v1/cell.ts';
import type { Guest } from './engine.ts';

/** How input was answered, see {@link InputTaken}. */
export type InputAnswer = Omit<InputTaken, 'executionKey'>;

/** The standard input of one guest: each byte is written once, in its place, and nothing behind the end. */
export class GuestInput {
  readonly #guest: Pick<Guest, 'write'>;
  #bytes = 0;
  #ended = false;
  #answered: Promise<unknown> = Promise.resolve();

  constructor(guest: Pick<Guest, 'write'>) {
    this.#guest = guest;
  }

  /** Resolves when the guest's pipe took it, or at its refusal, after all that was handed in before. */
  take({ data, end, position }: Input): Promise<InputAnswer> {
    const begin = position === undefined ? this.#bytes : Number(position);
    // What was taken already is said again by a client whose daemon went before it could answer.
    const fresh = data.subarray(Math.max(0, this.#bytes - begin));
    const gapBehind = begin > this.#bytes ? BigInt(this.#bytes) : undefined;
    const ended = this.#ended && fresh.byteLength > 0;
    let written: Promise<unknown> | undefined;
    if (gapBehind === undefined && !ended) {
      this.#bytes += fresh.byteLength;
      this.#ended ||= end;
      written = this.#guest.write(fresh, end);
    }
    this.#answered = Promise.allSettled([this.#answered, written]);
    return this.#answered.then(() => ({ gapBehind, ended }));
  }
}
