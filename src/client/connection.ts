import { isIP } from 'node:net';
import { resolve } from 'node:path';
import { checkServerIdentity } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials, Metadata, type VerifyOptions } from '@grpc/grpc-js';
import { readCertificates, readKeyPair, readToken } from '../credential-files.ts';
import { InvalidArgumentError } from '../errors.ts';

/** Where a daemon listens: the path of its unix socket, or an address with what is shown and trusted there. */
export type DaemonAddress = { socket: string } | TcpAddress;

/** A daemon on TCP. The files are read as the client is made, and anew after a call that found no way in; an empty path stands for none. */
export interface TcpAddress {
  /** `HOST:PORT`. */
  tcp: string;
  /** Present: over TLS. */
  tls?: TlsFiles | undefined;
  /** File with the daemon's bearer token. */
  tokenFile?: string | undefined;
  /**
   * How often a connection with calls is asked whether anybody is there, and how long the answer may take, in ms: what is
   * not answered is broken off. As long a new connection may take. Default 15000.
   */
  keepaliveMs?: number | undefined;
}

/** Paths of PEM files. */
export interface TlsFiles {
  /** Authorities of the daemon's certificate. Default: those that Node trusts. */
  caFile?: string | undefined;
  /** Certificate and key of this client, for a daemon that asks for them. */
  certFile?: string | undefined;
  keyFile?: string | undefined;
}

/** Half of how long a machine may be gone before that is noticed, which nothing else tells of, in ms. */
const KEEPALIVE_MS = 15_000;

/** A timer takes no more, in ms. */
export const MAX_TIMER_MS = 2 ** 31 - 1;

/** What a gRPC client is made of. */
export interface Connection {
  target: string;
  credentials: ChannelCredentials;
  options: ChannelOptions;
  /** What each call carries. */
  metadata: Metadata;
  /** How long it may take until it leads to a daemon, in ms. Default: for ever. */
  limitMs?: number | undefined;
}

/** For people: `unix:PATH` or `tcp:HOST:PORT`. */
export function nameOf(address: DaemonAddress): string {
  return 'socket' in address ? `unix:${resolve(address.socket)}` : `tcp:${address.tcp}`;
}

/** Whether a connection depends on what some files hold. */
export function hasFiles(address: DaemonAddress): boolean {
  return 'tcp' in address && Boolean(address.tls ?? address.tokenFile);
}

/** Throws an `InvalidArgumentError` that names the setting, and the path of a file that is not what it should be. */
export function connectionOf(address: DaemonAddress): Connection {
  const metadata = new Metadata();
  if ('socket' in address) {
    return { target: nameOf(address), credentials: credentials.createInsecure(), options: {}, metadata };
  }
  const { tcp, tls, tokenFile, keepaliveMs = KEEPALIVE_MS } = address;
  if (!/.:\d+$/.test(tcp)) throw new InvalidArgumentError(`tcp "${tcp}" is not HOST:PORT`);
  if (tokenFile) metadata.set('authorization', `Bearer ${readToken('tokenFile', tokenFile)}`);
  const secured = tls === undefined ? { credentials: credentials.createInsecure(), options: {} } : securedBy(tls, tcp);
  // Not on a socket: whoever does not answer there is only slow, for its end is always told.
  const keepalive = { 'grpc.keepalive_time_ms': keepaliveMs, 'grpc.keepalive_timeout_ms': keepaliveMs };
  const limitMs = Math.min(keepaliveMs, MAX_TIMER_MS);
  return { target: tcp, metadata, limitMs, ...secured, options: { ...secured.options, ...keepalive } };
}

function securedBy({ caFile, certFile, keyFile }: TlsFiles, tcp: string): Pick<Connection, 'credentials' | 'options'> {
  const ca = caFile ? readCertificates('tls.caFile', caFile) : null;
  if (!certFile !== !keyFile) throw new InvalidArgumentError('tls.certFile and tls.keyFile belong together');
  const own = certFile && keyFile ? readKeyPair('tls.', { certFile, keyFile }) : undefined;
  const create = (verify: VerifyOptions) => credentials.createSsl(ca, own?.key ?? null, own?.cert ?? null, verify);
  const host = tcp.replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
  if (isIP(host) === 0) return { credentials: create({}), options: {} };
  // A server name is no IP address (RFC 6066), Node refuses one: another is sent, the certificate is to be the address's.
  const options = { 'grpc.ssl_target_name_override': 'localhost' };
  const verified = create({ checkServerIdentity: (_name, certificate) => checkServerIdentity(host, certificate) });
  return { credentials: verified, options };
}
