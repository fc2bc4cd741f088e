import type { EventEmitter } from 'node:events';
import { ServerInterceptingCall, type ServerInterceptor } from '@grpc/grpc-js';

/** Said of every call, also of one that is over: an error of its own for each would take the stack each time. */
export const GONE = new Error('the call is over');

/**
 * For every server: a call that is over, as its deadline has passed, before its half-close comes is not begun. What grpc-js
 * puts around an intercepted call sees to that; without, the call is begun, and never hears that it is over.
 */
export const beginsOnlyOpenCalls: ServerInterceptor = (_method, call) => new ServerInterceptingCall(call);

/** Aborts when the caller of a call leaves. */
export function leavingOf(call: EventEmitter): AbortSignal {
  const left = new AbortController();
  const leave = () => left.abort(GONE);
  call.on('cancelled', leave);
  call.on('error', leave);
  return left.signal;
}

/** A call that is answered with messages. */
interface Answered<Res> extends EventEmitter {
  /** How many of its messages have not gone out yet. */
  readonly writableLength: number;
  write(message: Res, sent: () => void): boolean;
}

/**
 * Writes messages as they come, no faster than the caller reads, until it leaves. While one goes out the next one waits,
 * and no more: what gRPC itself lets wait is counted in messages, whatever their size.
 */
export async function pump<Res>(
  call: Answered<Res>,
  messages: AsyncIterable<Res>,
  leaving: AbortSignal,
): Promise<void> {
  let proceed = () => {};
  const sent = () => proceed();
  leaving.addEventListener('abort', sent);
  for await (const message of messages) {
    if (leaving.aborted) return;
    call.write(message, sent);
    while (call.writableLength > 1 && !leaving.aborted) {
      await new Promise<void>((resolve) => {
        proceed = resolve;
      });
    }
    if (leaving.aborted) return;
  }
}
