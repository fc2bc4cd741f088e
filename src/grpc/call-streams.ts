import type { Http2Server, ServerHttp2Stream } from 'node:http2';
import type { Server } from '@grpc/grpc-js';

/** What a server listens with; the types of grpc-js keep it to themselves. */
interface Listening {
  http2Servers: Map<Http2Server, unknown>;
}

/** Sees to what grpc-js leaves open of the HTTP/2 streams below calls. To be called for each address that is listened on. */
export function tendStreams(server: Server): void {
  for (const http2Server of (server as unknown as Listening).http2Servers.keys()) {
    http2Server.off('stream', tend).prependListener('stream', tend);
  }
}

/**
 * A call that is answered before its request has ended is over, whatever its caller goes on to send (RFC 9113 8.1). Left
 * open, each would hold its memory for as long as the caller likes, who need not be one that may call at all.
 */
function tend(stream: ServerHttp2Stream): void {
  stream.once('finish', () => {
    if (!stream.readableEnded) setImmediate(() => stream.close());
  });
}
