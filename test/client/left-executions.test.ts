import { expect, test, vi } from 'vitest';
import { connectDaemon, LeftExecutions } from '../../src/client/index.ts';
import { TestDaemon } from '../support/daemon.ts';

test('what is left is asked for again where the daemon could not say', async () => {
  await using own = await TestDaemon.start();
  using client = connectDaemon({ socket: own.endpoints.socket as string });
  const session = await own.session();
  const execution = await session.submit('setInterval(() => {}, 1000)');
  const left = new LeftExecutions();
  vi.spyOn(own.daemon, 'pageOfExecutions').mockRejectedValueOnce(new Error('once'));
  const end = () => left.end(client, session.sessionId, () => true);

  await end();
  expect((await execution.snapshot()).state).not.toBe('exited');
  await end();

  expect((await execution.snapshot()).result?.reason).toBe('cancelled');
});
