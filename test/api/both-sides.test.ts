import { afterAll, beforeAll, expect, expectTypeOf, test } from 'vitest';
import { connectDaemon, type DaemonClient } from '../../src/client/client.ts';
import type { Daemon } from '../../src/daemon.ts';
import { InvalidArgumentError } from '../../src/errors.ts';
import { TestDaemon } from '../support/daemon.ts';

let node: TestDaemon;
let client: DaemonClient;
beforeAll(async () => {
  node = await TestDaemon.start();
  client = connectDaemon({ socket: node.endpoints.socket as string });
  await client.createSession('s');
  const code = 'setInterval(() => {}, 1_000_000)';
  await client.executeSnippet({ sessionId: 's', executionId: 'e', language: 'javascript', code });
});
afterAll(async () => {
  client.close();
  await node[Symbol.asyncDispose]();
});

test.each([0, 50])(
  'a wait of library and client ends after %d ms, with the execution as it stands',
  async (timeoutMs) => {
    for (const side of [node.daemon, client]) {
      const { state, result } = await side.wait('s', 'e', { timeoutMs });
      expect([state, result]).toEqual([expect.stringMatching(/pending|running/), undefined]);
    }
  },
);

test.each([-1, 1.5, Number.NaN])('library and client refuse to wait for %d ms', async (timeoutMs) => {
  for (const side of [node.daemon, client]) {
    const refused = side.wait('s', 'e', { timeoutMs });
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(`timeout_ms is ${timeoutMs}`);
  }
});

test('what the client can do by a name the library can, but for what only a client needs', () => {
  type OfClientsOnly = 'address' | 'close' | 'health' | 'openSession' | typeof Symbol.dispose;

  expectTypeOf<Exclude<keyof DaemonClient, keyof Daemon>>().toEqualTypeOf<OfClientsOnly>();
});
