import { type EventEmitter, once } from 'node:events';
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
  /** False: whoever reads them is behind, and `drain` says when it is not any more. */
  write(message: Res): boolean;
}

/** Writes messages as they come, no faster than the caller reads, until it leaves. */
export async function pump<Res>(
  call: Answered<Res>,
  messages: AsyncIterable<Res>,
  leaving: AbortSignal,
): Promise<void> {
  for await (const message of messages) {
    if (leaving.aborted) return;
    if (!call.write(message)) await once(call, 'drain', { signal: leaving }).catch(() => {});
    if (leaving.aborted) return;
  }
}
