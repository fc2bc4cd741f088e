import { createHash, timingSafeEqual } from 'node:crypto';
import { experimental, ServerCredentials, ServerInterceptingCall, type ServerInterceptor } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { type CheckedConfig, isLoopback } from '../config.ts';
import { readCertificates, readKeyPair, readToken } from '../credential-files.ts';
import { StartupError, UnauthenticatedError } from '../errors.ts';
import { statusOf } from './status.ts';

/**
 * What the daemon shows on TCP, and asks of everyone there, whatever the service. Throws a `StartupError` that names the
 * setting and the path of a file that is not what it should be.
 */
export function tcpCredentials({ tcp, tls, tokenFile }: CheckedConfig, log: Logger): ServerCredentials {
  try {
    const credentials = tls === undefined ? ServerCredentials.createInsecure() : tlsCredentials(tls);
    if (tokenFile === undefined) return credentials;
    if (tls === undefined && tcp !== undefined && !isLoopback(tcp)) {
      log.warn(`without tls others can read the token on its way to tcp ${tcp}`);
    }
    const guard = requireToken(readToken('tokenFile', tokenFile));
    return experimental.createServerCredentialsWithInterceptors(credentials, [guard]);
  } catch (error) {
    throw new StartupError((error as Error).message, { cause: error });
  }
}

function tlsCredentials({ clientCaFile, ...files }: NonNullable<CheckedConfig['tls']>): ServerCredentials {
  const { cert, key } = readKeyPair('tls.', files);
  const clientCa = clientCaFile === undefined ? null : readCertificates('tls.clientCaFile', clientCaFile);
  return ServerCredentials.createSsl(clientCa, [{ cert_chain: cert, private_key: key }], clientCa !== null);
}

/** Ends every call that does not carry `authorization: Bearer TOKEN`, before anything looks at its request. */
function requireToken(token: string): ServerInterceptor {
  const wanted = digestOf(token);
  return (_method, call) =>
    new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, accept) => {
            const [header, ...more] = metadata.get('authorization').map(String);
            const given = more.length > 0 ? undefined : /^Bearer +(\S+)$/i.exec(header ?? '')?.[1];
            if (given !== undefined && timingSafeEqual(digestOf(given), wanted)) accept(metadata);
            else call.sendStatus(statusOf(refusalOf(header)));
          },
        }),
    });
}

function refusalOf(header: string | undefined): UnauthenticatedError {
  const found = header === undefined ? 'this call has none' : 'the one of this call is another';
  return new UnauthenticatedError(`over TCP this daemon wants its token (authorization: Bearer TOKEN); ${found}`);
}

/** Of one length whatever the token's: how long a comparison takes tells nothing. */
function digestOf(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}
