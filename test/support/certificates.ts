import { writeFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { type GenerateResult, generate } from 'selfsigned';
import type { KeyPairFiles } from '../../src/credential-files.ts';

export type { KeyPairFiles };

const EC_KEY = { keyType: 'ec', algorithm: 'sha256' } as const;

/** An authority of a test's own, with what it issues as PEM files in a directory. */
export class Authority {
  readonly #directory: string;
  readonly #own: GenerateResult;
  /** Its own certificate. */
  readonly certFile: string;

  private constructor(directory: string, own: GenerateResult, certFile: string) {
    this.#directory = directory;
    this.#own = own;
    this.certFile = certFile;
  }

  static async create(directory: string, name: string): Promise<Authority> {
    const extensions = [
      { name: 'basicConstraints', cA: true, critical: true } as const,
      { name: 'keyUsage', keyCertSign: true, critical: true } as const,
    ];
    const own = await generate([{ name: 'commonName', value: name }], { ...EC_KEY, extensions });
    const certFile = join(directory, `${name}.crt`);
    await writeFile(certFile, own.cert);
    return new Authority(directory, own, certFile);
  }

  /** Issues a certificate for a server at these addresses and names, or for a client. */
  async issue(name: string, hosts: string[]): Promise<KeyPairFiles> {
    const altNames = hosts.map((host) =>
      isIP(host) === 0 ? ({ type: 2, value: host } as const) : ({ type: 7, ip: host } as const),
    );
    const extensions = [
      { name: 'basicConstraints', cA: false } as const,
      ...(altNames.length === 0 ? [] : [{ name: 'subjectAltName', altNames } as const]),
    ];
    const ca = { key: this.#own.private, cert: this.#own.cert };
    const issued = await generate([{ name: 'commonName', value: name }], { ...EC_KEY, ca, extensions });
    const files = { certFile: join(this.#directory, `${name}.crt`), keyFile: join(this.#directory, `${name}.key`) };
    await writeFile(files.certFile, issued.cert);
    await writeFile(files.keyFile, issued.private, { mode: 0o600 });
    return files;
  }
}
