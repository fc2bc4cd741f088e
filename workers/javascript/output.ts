import { Writable } from 'node:stream';
import type { OutputStream } from '../output-writer.ts';
import { program } from './program.ts';

/** What the built-in stream has beside Writable, for programs that look. */
export type StandardOutput = Writable & {
  fd: number;
  _type: string;
  _isStdio: boolean;
  isTTY?: boolean;
  destroySoon: Writable['destroy'];
  _undestroy(): void;
};

const { nextTick } = process;

/**
 * `process.stdout` or `process.stderr`: what `write` has returned from is in the execution's file. Node's own streams
 * in a worker pass by the parent thread instead, and a thread that is terminated loses what it wrote.
 */
export function createOutput(stream: OutputStream, fd: number): StandardOutput {
  const output = new Writable({
    decodeStrings: true,
    write(chunk: Uint8Array, _encoding, callback) {
      try {
        program.writer?.write(stream, chunk);
      } catch (error) {
        // The console mutes errors of its stream while it writes. Output that is lost unnoticed is worse than a program
        // that ends, so an error nobody listens for is thrown, a moment later.
        nextTick(throwUnheard, output, error);
        callback(error as Error);
        return;
      }
      callback();
    },
    // As Node's own, where that is a file: whatever ends it, also a stream that was piped there, it takes what is written
    // later.
    destroy(error, callback) {
      callback(error);
      output._undestroy();
    },
  }) as StandardOutput;
  output.fd = fd;
  output._type = 'fs';
  output._isStdio = true;
  output.destroySoon = output.destroy;
  answerParent(output, process[stream]);
  return output;
}

function throwUnheard(output: Writable, error: unknown): void {
  if (output.listenerCount('error') === 0) throw error;
}

/**
 * The parent thread asks a worker's built-in stream for more through a method with a private name, at any time up to
 * well after the boot of a busy machine's thread. Ours has nothing for it, but must have that method.
 */
function answerParent(output: Writable, original: object): void {
  for (let owner: object | null = original; owner !== null; owner = Object.getPrototypeOf(owner)) {
    for (const key of Object.getOwnPropertySymbols(owner)) {
      if (key.description === 'kStdioWantsMoreDataCallback') {
        Object.defineProperty(output, key, { value: () => {} });
        return;
      }
    }
  }
}
