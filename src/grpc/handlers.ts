import { BinaryReader, getTextEncoding } from '@bufbuild/protobuf/wire';
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  Metadata,
  type status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { InvalidArgumentError } from '../errors.ts';
import { leavingOf, pump } from '../wire/calls.ts';
import { statusText } from '../wire/status-text.ts';
import { statusOf } from './status.ts';

/** What the deserializer yields for bytes that are no message: an answer to the caller, not a failure of ours. */
class MalformedRequest {
  readonly error: InvalidArgumentError;
  constructor(error: unknown) {
    const { message } = error as Error;
    this.error =
      error instanceof InvalidArgumentError
        ? error
        : new InvalidArgumentError(`the request is no valid message: ${message}`);
  }
}

/** So many tags and lengths a request may have: with as many entries as are allowed it has less, and takes half a second. */
const MOST_NUMBERS = 2_000_000;

/** Reads no more of a message than is soon read: it is read in the daemon's own thread. */
class BoundedReader extends BinaryReader {
  constructor(bytes: Uint8Array) {
    super(bytes, strictText);
    const read = this.uint32;
    let count = 0;
    this.uint32 = () => {
      count += 1;
      if (count > MOST_NUMBERS) throw new Error('it has too many fields');
      return read.call(this);
    };
  }
}

type Method = { requestDeserialize: (bytes: never) => unknown };

/** Bytes that are no UTF-8 would be other text: two ids could become one. */
const strictText = (bytes: Uint8Array) => getTextEncoding().decodeUtf8(bytes, true);

/** The same service, with deserializers that never throw (gRPC would answer INTERNAL), and take no malformed text. */
export function tolerant<T extends Record<string, Method>>(service: T): T {
  const methods = Object.entries(service).map(([name, method]) => {
    const requestDeserialize = (bytes: Buffer) => {
      try {
        return method.requestDeserialize(new BoundedReader(bytes) as never);
      } catch (error) {
        return new MalformedRequest(error);
      }
    };
    return [name, { ...method, requestDeserialize }];
  });
  return Object.fromEntries(methods) as T;
}

/** Makes gRPC handlers of plain async functions that throw our errors. */
export class Handlers {
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  unary<Req, Res>(answer: (request: Req, signal: AbortSignal) => Promise<Res>): handleUnaryCall<Req, Res> {
    return (call, callback) => {
      const leaving = leavingOf(call);
      const run = async () => answer(wellFormed(call.request), leaving);
      run().then(
        (response) => callback(null, response),
        (error) => callback(this.#status(error)),
      );
    };
  }

  /** Writes what the generator yields, no faster than the client reads; ends it when the client goes. */
  stream<Req, Res>(
    answer: (request: Req, signal: AbortSignal) => AsyncIterable<Res>,
  ): handleServerStreamingCall<Req, Res> {
    return (call) => {
      const leaving = leavingOf(call);
      const run = async () => pump(call, answer(wellFormed(call.request), leaving), leaving);
      run().then(
        () => call.end(),
        (error) => call.emit('error', this.#status(error)),
      );
    };
  }

  #status(error: unknown): { code: status; details: string; metadata?: Metadata } {
    const { code, details: text, incidentId, retryAfterMs } = statusOf(error);
    const details = statusText(text);
    if (incidentId !== undefined) this.#log.error({ err: error, incidentId }, 'internal error');
    if (retryAfterMs === undefined) return { code, details };
    const metadata = new Metadata();
    metadata.set('grpc-retry-pushback-ms', String(retryAfterMs));
    return { code, details, metadata };
  }
}

function wellFormed<Req>(request: Req): Req {
  if (request instanceof MalformedRequest) throw request.error;
  return request;
}

/** What a server takes as a service's handlers. */
export type Implementation = UntypedServiceImplementation;
