import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { connect, constants } from 'node:http2';
import { join } from 'node:path';
import { Client, credentials, Metadata, status } from '@grpc/grpc-js';
import { pino } from 'pino';
import { beforeAll, describe, expect, test } from 'vitest';
import { connectDaemon, type TcpAddress, UnreachableError } from '../../src/client/index.ts';
import { checkConfig, type DaemonConfig } from '../../src/config.ts';
import { InvalidArgumentError, NotFoundError, StartupError, UnauthenticatedError } from '../../src/errors.ts';
import { tcpCredentials } from '../../src/grpc/tcp-credentials.ts';
import { Authority, type KeyPairFiles } from '../support/certificates.ts';
import { TestDaemon, temporaryDirectory } from '../support/daemon.ts';

const TCP = '127.0.0.1:0';
let directory: string;
let tokenFile: string;

beforeAll(() => {
  directory = temporaryDirectory();
  tokenFile = secret('token', 'correct-horse\n');
});

/** A file that only its owner may read. */
function secret(name: string, content: string): string {
  const path = join(directory, name);
  writeFileSync(path, content, { mode: 0o600 });
  return path;
}

/** The code of a call with this metadata, by its whole name. */
async function codeOf(target: string, path: string, headers: Record<string, string>): Promise<number> {
  const client = new Client(target, credentials.createInsecure());
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.add(name, value);
  const { promise, resolve } = Promise.withResolvers<number>();
  const bytes = (value: Buffer) => value;
  client.makeUnaryRequest(path, bytes, bytes, Buffer.alloc(0), metadata, (error) => resolve(error?.code ?? status.OK));
  return promise.finally(() => client.close());
}

describe('a daemon with a token', () => {
  test('serves calls and streams over TCP to whoever has it', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    using client = connectDaemon({ tcp: node.endpoints.tcp as string, tokenFile });

    await client.createSession('s');
    await client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'js', code: 'console.log(1)' });
    const written: Buffer[] = [];
    for await (const { data } of client.streamOutput('s', 'e')) written.push(data);

    expect((await client.health()).healthy).toBe(true);
    expect(Buffer.concat(written).toString()).toBe('1\n');
  });

  test('refuses another token, and none, and does nothing for them', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    const tcp = node.endpoints.tcp as string;
    using wrong = connectDaemon({ tcp, tokenFile: secret('wrong', 'correct-horsf') });
    using none = connectDaemon({ tcp });

    await expect(wrong.createSession('s')).rejects.toThrow(UnauthenticatedError);
    await expect(wrong.health()).rejects.toThrow(/wants its token.*the one of this call is another/);
    await expect(none.health()).rejects.toThrow(/wants its token.*this call has none/);
    await expect(wrong.watchExecution('s', 'e').next()).rejects.toThrow(UnauthenticatedError);

    await expect(node.daemon.getSession('s')).rejects.toThrow(NotFoundError);
  });

  test('tells each of many calls at once that its token is another', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    const address = { tcp: node.endpoints.tcp as string, tokenFile: secret('wrong', 'correct-horsf') };
    const failures: unknown[] = [];

    // A refused call has the client read its files anew, while others are on their way.
    for (let round = 0; round < 20; round += 1) {
      using client = connectDaemon(address);
      const calls: Promise<unknown>[] = [];
      for (let count = 0; count < 20; count += 1) {
        calls.push(client.health().catch((error) => failures.push(error)));
        await new Promise(setImmediate);
      }
      await Promise.all(calls);
    }

    expect(failures.length).toBe(400);
    for (const failure of failures) expect(failure).toBeInstanceOf(UnauthenticatedError);
  });

  test('asks for it for every service and for every header that could be one', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    const tcp = node.endpoints.tcp as string;
    const check = '/grpc.health.v1.Health/Check';
    const right = { authorization: 'Bearer correct-horse' };

    expect(await codeOf(tcp, check, right)).toBe(status.OK);
    expect(await codeOf(tcp, check, { Authorization: 'bearer correct-horse' })).toBe(status.OK);
    for (const authorization of ['correct-horse', 'Basic correct-horse', 'Bearer', 'Bearer correct-horse x', '']) {
      expect(await codeOf(tcp, check, { authorization })).toBe(status.UNAUTHENTICATED);
    }
    expect(await codeOf(tcp, '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', {})).toBe(
      status.UNAUTHENTICATED,
    );
  });

  test.each([
    ['a wrong token', 'Health', 'Bearer wrong'],
    ['an unknown method', 'Unknown', 'Bearer wrong'],
    ['a message that is too large', 'Health', 'Bearer correct-horse'],
  ])('keeps nothing open of calls with %s, whose requests never end', async (_, method, authorization) => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    const connection = connect(`http://${node.endpoints.tcp}`);
    connection.on('error', () => {});
    const headers = { ':method': 'POST', 'content-type': 'application/grpc', authorization };
    const path = `/elide.daemon.v1alpha1.ExecutionApi/${method}`;

    const calls = Array.from({ length: 1000 }, async () => {
      const call = connection.request({ ...headers, ':path': path }, { endStream: false }).resume();
      call.write(Buffer.from([0, 0xff, 0xff, 0xff, 0xff]));
      const [[answer]] = await Promise.all([once(call, 'response'), once(call, 'close')]);
      return [answer['grpc-status'], call.rstCode];
    });
    const answers = await Promise.all(calls);

    for (const [code, rstCode] of answers) {
      expect(code).not.toBe(`${status.OK}`);
      expect(rstCode).toBe(constants.NGHTTP2_NO_ERROR);
    }
    connection.destroy();
  });

  test('asks for none on its socket', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tokenFile });
    using client = connectDaemon({ socket: node.endpoints.socket as string });
    const check = '/grpc.health.v1.Health/Check';

    expect((await client.health()).healthy).toBe(true);
    expect(await codeOf(`unix:${node.endpoints.socket}`, check, {})).toBe(status.OK);
  });
});

describe('a daemon with a certificate', () => {
  let authority: Authority;
  let other: Authority;
  let server: KeyPairFiles;
  beforeAll(async () => {
    authority = await Authority.create(directory, 'authority');
    other = await Authority.create(directory, 'other');
    server = await authority.issue('server', ['127.0.0.1', 'localhost']);
  });

  /** What a client with these credentials gets: healthy, or the error. */
  async function answer(node: TestDaemon, address: Omit<TcpAddress, 'tcp'>, host = '127.0.0.1'): Promise<unknown> {
    const tcp = (node.endpoints.tcp as string).replace('127.0.0.1', host);
    using client = connectDaemon({ tcp, ...address });
    return await client.health({ deadlineMs: 10_000 }).then(
      ({ healthy }) => healthy,
      (error) => error,
    );
  }

  test('is known by the address and the name in it, with a token beside it', async () => {
    await using node = await TestDaemon.start({ tcp: TCP, tls: server, tokenFile });
    const tls = { caFile: authority.certFile };

    expect(await answer(node, { tls, tokenFile })).toBe(true);
    expect(await answer(node, { tls, tokenFile }, 'localhost')).toBe(true);
    expect(await answer(node, { tls })).toBeInstanceOf(UnauthenticatedError);
  });

  test('is not spoken to by whoever trusts another authority, expects another address, or speaks without TLS', async () => {
    const elsewhere = await authority.issue('elsewhere', ['example.com', '127.0.0.2']);
    await using node = await TestDaemon.start({ tcp: TCP, tls: server });
    await using stray = await TestDaemon.start({ tcp: TCP, tls: elsewhere });

    const untrusted = await answer(node, { tls: { caFile: other.certFile } });
    const misplaced = await answer(stray, { tls: { caFile: authority.certFile } });
    const plain = await answer(node, {});

    for (const error of [untrusted, misplaced, plain]) expect(error).toBeInstanceOf(UnreachableError);
    expect((untrusted as Error).message).toMatch(/certificate/);
    expect((misplaced as Error).message).toMatch(/127\.0\.0\.1.*is not in the cert's list/);
    expect(await answer(node, { tls: {} })).toBeInstanceOf(UnreachableError);
    expect(await answer(node, { tls: { caFile: authority.certFile } })).toBe(true);
  });

  test('wants one of its clients where it is told their authority', async () => {
    const tls = { ...server, clientCaFile: authority.certFile };
    await using node = await TestDaemon.start({ tcp: TCP, tls });
    const [own, foreign] = [await authority.issue('client', []), await other.issue('foreign', [])];
    const { certFile: caFile } = authority;

    expect(await answer(node, { tls: { caFile, ...own } })).toBe(true);
    expect(await answer(node, { tls: { caFile } })).toBeInstanceOf(UnreachableError);
    expect(await answer(node, { tls: { caFile, ...foreign } })).toBeInstanceOf(UnreachableError);
  });

  test('does not start with files that are not what they should be, and names setting and path', async () => {
    const { certFile, keyFile } = server;
    const none = join(directory, 'none.pem');
    const garbage = secret('garbage.pem', 'garbage');
    const client = await authority.issue('client-2', []);
    const open = secret('open', 'token');
    chmodSync(open, 0o604);
    const cases: [DaemonConfig, string][] = [
      [{ tls: { certFile: none, keyFile } }, `tls.certFile ${none}: ENOENT`],
      [{ tls: { certFile: garbage, keyFile } }, `tls.certFile ${garbage}: there is no certificate in PEM format in it`],
      [{ tls: { certFile, keyFile: none } }, `tls.keyFile ${none}: ENOENT`],
      [{ tls: { certFile, keyFile: garbage } }, `tls.keyFile ${garbage}: it cannot be read as PEM`],
      [
        { tls: { certFile, keyFile: client.keyFile } },
        `tls.keyFile ${client.keyFile}: it is not the key of ${certFile}`,
      ],
      [{ tls: { ...server, clientCaFile: garbage } }, `tls.clientCaFile ${garbage}: there is no certificate`],
      [{ tokenFile: none }, `tokenFile ${none}: ENOENT`],
      [{ tokenFile: directory }, `tokenFile ${directory}: `],
      [{ tokenFile: secret('empty', '\n') }, 'a token is one line of visible ASCII characters'],
      [{ tokenFile: secret('two', 'a\nb') }, 'a token is one line of visible ASCII characters'],
      [{ tokenFile: open }, `tokenFile ${open}: it is open to others; make it 0600`],
    ];

    const refusal = (config: DaemonConfig) => {
      try {
        tcpCredentials(checkConfig({ tcp: TCP, ...config }), pino({ level: 'silent' }));
        return undefined;
      } catch (error) {
        return error;
      }
    };
    for (const [config, message] of cases) {
      expect(refusal(config)).toBeInstanceOf(StartupError);
      expect(refusal(config)).toMatchObject({ message: expect.stringContaining(message) });
    }
    await expect(TestDaemon.start({ tcp: TCP, tokenFile: none })).rejects.toThrow(`tokenFile ${none}: ENOENT`);
  });

  test('a client with such files says so at once', () => {
    const tcp = '127.0.0.1:1';
    const none = join(directory, 'none.pem');

    expect(() => connectDaemon({ tcp, tls: { caFile: none } })).toThrow(`tls.caFile ${none}: ENOENT`);
    expect(() => connectDaemon({ tcp, tokenFile: none })).toThrow(InvalidArgumentError);
    expect(() => connectDaemon({ tcp, tls: { certFile: server.certFile } })).toThrow('belong together');
  });
});
