import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { InvalidArgumentError } from './errors.ts';

/** The certificate that one side shows, and its private key: paths of PEM files. */
export interface KeyPairFiles {
  /** With the certificates between it and its authority's, in that order, where there are any. */
  certFile: string;
  /** Not encrypted, and closed to all but its owner and group. */
  keyFile: string;
}

/** A certificate chain and its private key, as PEM. */
export interface KeyPair {
  cert: Buffer;
  key: Buffer;
}

/** What a gRPC header carries, and a person can tell apart. */
const TOKEN = /^[\x21-\x7e]+$/;
const CERTIFICATES = /-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----/gs;

/**
 * Reads a bearer token: a file of one line of visible ASCII. Throws an `InvalidArgumentError` that names setting and path
 * when there is none, or everyone may read it.
 */
export function readToken(setting: string, path: string): string {
  return read(setting, path, () => {
    requireClosed(path);
    const token = readFileSync(path, 'utf8').trim();
    if (!TOKEN.test(token)) throw new Error('a token is one line of visible ASCII characters');
    return token;
  });
}

/** Reads certificates of authorities, as PEM. Throws as {@link readToken} does. */
export function readCertificates(setting: string, path: string): Buffer {
  return read(setting, path, () => readCertificate(path).pem);
}

/** Reads a certificate and its key; settings are named with this prefix. Throws as {@link readToken} does. */
export function readKeyPair(prefix: string, { certFile, keyFile }: KeyPairFiles): KeyPair {
  const { pem: cert, first } = read(`${prefix}certFile`, certFile, () => readCertificate(certFile));
  return read(`${prefix}keyFile`, keyFile, () => {
    requireClosed(keyFile);
    const key = readFileSync(keyFile);
    if (!first.checkPrivateKey(createPrivateKey(key))) throw new Error(`it is not the key of ${certFile}`);
    return { cert, key };
  });
}

/** Every certificate of the file is looked at; the first is the one that a key may belong to. */
function readCertificate(path: string): { pem: Buffer; first: X509Certificate } {
  const pem = readFileSync(path);
  const [first] = (pem.toString('latin1').match(CERTIFICATES) ?? []).map((text) => new X509Certificate(text));
  if (first === undefined) throw new Error('there is no certificate in PEM format in it');
  return { pem, first };
}

function requireClosed(path: string): void {
  if ((statSync(path).mode & 0o007) !== 0) throw new Error('it is open to others; make it 0600');
}

function read<T>(setting: string, path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    const { message, code = '' } = error as NodeJS.ErrnoException;
    // What OpenSSL says (`no start line`) is nothing to whoever named the wrong file.
    const why = /^ERR_OSSL|^ERR_MISSING_PASSPHRASE/.test(code) ? `it cannot be read as PEM (${message})` : message;
    throw new InvalidArgumentError(`${setting} ${path}: ${why}`, { cause: error });
  }
}
