import type { FileHandle } from 'node:fs/promises';
import { bornMsOf } from './sealed-output.ts';

/** One of an execution's output files, open for reading. */
export interface OutputFile {
  /** How many bytes it has now, and when it was made, in Unix ms. */
  stat(): Promise<{ size: number; bornMs: number }>;
  /** The bytes from a position on, `length` of them or as many as there are. */
  read(position: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

/** Closes what nobody can any more: Node ends a process that leaves an open handle to the garbage collector. */
const dropped = new FinalizationRegistry<FileHandle>((handle) => void handle.close().catch(() => {}));

/** A file, which may grow. It stays readable when it is removed, and open until it is closed or collected. */
export class FileOnDisk implements OutputFile {
  readonly #handle: FileHandle;

  constructor(handle: FileHandle) {
    this.#handle = handle;
    dropped.register(this, handle, this);
  }

  async stat(): Promise<{ size: number; bornMs: number }> {
    const found = await this.#handle.stat();
    return { size: found.size, bornMs: bornMsOf(found) };
  }

  async read(position: number, length: number): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(length);
    let filled = 0;
    while (filled < length) {
      const { bytesRead } = await this.#handle.read(buffer, filled, length - filled, position + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return buffer.subarray(0, filled);
  }

  close(): Promise<void> {
    dropped.unregister(this);
    return this.#handle.close();
  }
}

/** What a file held that was sealed. */
export class SealedFile implements OutputFile {
  readonly #data: Buffer;
  readonly #bornMs: number;

  constructor(data: Uint8Array, bornMs: number) {
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    this.#bornMs = bornMs;
  }

  async stat(): Promise<{ size: number; bornMs: number }> {
    return { size: this.#data.byteLength, bornMs: this.#bornMs };
  }

  async read(position: number, length: number): Promise<Buffer> {
    return this.#data.subarray(position, position + length);
  }

  async close(): Promise<void> {}
}
