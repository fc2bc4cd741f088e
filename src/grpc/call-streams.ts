import type { Http2Server, IncomingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import type { Server } from '@grpc/grpc-js';

/** What a server listens with; the types of grpc-js keep it to themselves. */
interface Listening {
  http2Servers: Map<Http2Server, unknown>;
}

/** The longest that a timer can wait, in ms. */
const LONGEST_MS = 2 ** 31 - 1;
/** The units of a deadline that can be longer: `99999999m` cannot. */
const UNIT_MS: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1_000 };

/** Sees to what grpc-js gets wrong of the HTTP/2 streams below calls. To be called for each address that is listened on. */
export function tendStreams(server: Server): void {
  for (const http2Server of (server as unknown as Listening).http2Servers.keys()) {
    http2Server.off('stream', tend).prependListener('stream', tend);
  }
}

function tend(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
  forgetFarDeadline(headers);
  endWithAnswer(stream);
}

/** A deadline of 25 days or more is none: for grpc-js it has passed at once. */
function forgetFarDeadline(headers: IncomingHttpHeaders): void {
  const [, value, unit = ''] = /(\d{1,8})\s*([HMS])/.exec(String(headers['grpc-timeout'])) ?? [];
  if (Number(value) * (UNIT_MS[unit] ?? 0) > LONGEST_MS) delete headers['grpc-timeout'];
}

/**
 * A call that is answered before its request has ended is over, whatever its caller goes on to send (RFC 9113 8.1). Left
 * open, each would hold its memory for as long as the caller likes, who need not be one that may call at all.
 */
function endWithAnswer(stream: ServerHttp2Stream): void {
  stream.once('finish', () => {
    if (!stream.readableEnded) setImmediate(() => stream.close());
  });
}
