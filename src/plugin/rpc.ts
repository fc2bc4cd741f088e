import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  type ServerWritableStream,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import { leavingOf, pump } from '../wire/calls.ts';
import { statusText } from '../wire/status-text.ts';
import { noteCall } from './quiet.ts';

/** 0 for what is not said. */
export const millisecondsOf = (duration: Duration | undefined) =>
  Number(duration?.seconds ?? 0n) * 1000 + Math.round((duration?.nanos ?? 0) / 1e6);

/** An error that says itself with which status it is answered. */
export interface RpcError extends Error {
  rpcStatus(): Partial<ServiceError>;
}

/** Makes a gRPC handler of an async function. Its signal aborts when the caller leaves. */
export function unary<Req, Res>(
  answer: (request: Req, signal: AbortSignal) => Promise<Res>,
): handleUnaryCall<Req, Res> {
  return (call, callback) => {
    const leaving = leavingOf(call);
    const run = async () => answer(call.request, leaving);
    run()
      .then(
        (response) => callback(null, response),
        (error) => callback(statusOf(error)),
      )
      .finally(noteCall);
  };
}

/** The same for a function whose messages are sent as they come, no faster than the host takes them. */
export function stream<Req, Res>(
  answer: (request: Req, signal: AbortSignal) => AsyncIterable<Res>,
): handleServerStreamingCall<Req, Res> {
  return (call) => answerStream(call, (leaving) => pump(call, answer(call.request, leaving), leaving));
}

/** The same for one that is called when there is a message: what the host is too slow for is left out. */
export function pushes<Req, Res>(
  answer: (request: Req, push: (message: Res) => void, signal: AbortSignal) => Promise<void>,
): handleServerStreamingCall<Req, Res> {
  return (call) => {
    const push = (message: Res) => {
      if (!call.writableNeedDrain) call.write(message);
    };
    return answerStream(call, (leaving) => answer(call.request, push, leaving));
  };
}

async function answerStream<Req, Res>(
  call: ServerWritableStream<Req, Res>,
  answer: (leaving: AbortSignal) => Promise<void>,
): Promise<void> {
  const leaving = leavingOf(call);
  try {
    await answer(leaving);
    call.end();
  } catch (error) {
    if (!leaving.aborted) call.emit('error', statusOf(error));
  }
}

/** Never UNAVAILABLE nor CANCELLED: from those a host concludes that its plugin has died. */
export function statusOf(error: unknown): Partial<ServiceError> {
  const { message, rpcStatus } = error as RpcError;
  return rpcStatus === undefined
    ? { code: status.UNKNOWN, details: statusText(message) }
    : rpcStatus.call(error as RpcError);
}
