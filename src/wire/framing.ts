import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';

/** The version both sides of a cell's socket speak. */
export const PROTOCOL_VERSION = 3;

/** The largest frame that a cell sends, in bytes: the figures of a hundred thousand guests. */
const FROM_CELL_BYTES = 16 * 1024 * 1024;
/** The largest that it is sent: code, or input of any length, and the envelope. */
export const TO_CELL_BYTES = 1024 * 1024 * 1024 + 16 * 1024 * 1024;
const HEADER_BYTES = 4;

/** A ts-proto message type. */
interface Codec<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(bytes: Uint8Array): T;
}

/**
 * Messages of a type each way over one socket, each behind a 4-byte big-endian length. Emits `message`, and `close` once,
 * with the reason when the other side broke the protocol.
 */
export class FramedSocket<In, Out> extends EventEmitter<{ message: [In]; close: [Error | undefined] }> {
  readonly #socket: Socket;
  readonly #outgoing: Codec<Out>;
  readonly #incoming: Codec<In>;
  /** A longer frame than this is garbage, not a message, and is not waited for. */
  maxFrameBytes = FROM_CELL_BYTES;
  #chunks: Buffer[] = [];
  #bytes = 0;
  #failure: Error | undefined;

  constructor(socket: Socket, incoming: Codec<In>, outgoing: Codec<Out>) {
    super();
    this.#socket = socket;
    this.#incoming = incoming;
    this.#outgoing = outgoing;
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (error) => {
      this.#failure ??= error;
    });
    socket.once('close', () => this.emit('close', this.#failure));
  }

  get isClosed(): boolean {
    return this.#socket.closed;
  }

  /** Sends a message; after the close, drops it. */
  send(message: Out): void {
    if (this.#socket.destroyed || !this.#socket.writable) return;
    const body = this.#outgoing.encode(message).finish();
    const header = Buffer.allocUnsafe(HEADER_BYTES);
    header.writeUInt32BE(body.byteLength);
    this.#socket.cork();
    this.#socket.write(header);
    this.#socket.write(body);
    this.#socket.uncork();
  }

  /** Ends the connection at once. */
  destroy(reason?: Error): void {
    this.#failure ??= reason;
    this.#socket.destroy();
  }

  #take(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.byteLength;
    try {
      for (let frame = this.#next(); frame !== undefined; frame = this.#next()) {
        this.emit('message', this.#incoming.decode(frame));
      }
    } catch (error) {
      this.destroy(new Error('the other side sent something that is no message', { cause: error }));
    }
  }

  /** Takes one whole frame from what has arrived, joining chunks only when a frame needs it. */
  #next(): Buffer | undefined {
    if (this.#bytes < HEADER_BYTES) return undefined;
    const head = this.#join(HEADER_BYTES);
    const length = head.readUInt32BE();
    if (length > this.maxFrameBytes) throw new RangeError(`a frame of ${length} bytes`);
    if (this.#bytes < HEADER_BYTES + length) return undefined;
    const joined = this.#join(HEADER_BYTES + length);
    const rest = joined.subarray(HEADER_BYTES + length);
    if (rest.byteLength > 0) this.#chunks[0] = rest;
    else this.#chunks.shift();
    this.#bytes -= HEADER_BYTES + length;
    return joined.subarray(HEADER_BYTES, HEADER_BYTES + length);
  }

  /** The first chunk, grown until it holds at least `bytes`; the caller knows that so many have arrived. */
  #join(bytes: number): Buffer {
    const first = this.#chunks[0] as Buffer;
    if (first.byteLength >= bytes) return first;
    const joined = Buffer.concat(this.#chunks);
    this.#chunks = [joined];
    return joined;
  }
}
