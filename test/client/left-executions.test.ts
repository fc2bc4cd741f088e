import { expect, test, vi } from 'vitest';
import { connectDaemon, LeftExecutions } from '../../src/client/index.ts';
import { TestDaemon } from '../support/daemon.ts';

test.each(['end', 'forget'] as const)(
  'what is left is asked for again where the daemon could not say, to %s it',
  async (what) => {
    await using own = await TestDaemon.start();
    using client = connectDaemon({ socket: own.endpoints.socket as string });
    const session = await own.session();
    const execution = await session.submit('setInterval(() => {}, 1000)');
    const left = new LeftExecutions();
    vi.spyOn(own.daemon, 'pageOfExecutions').mockRejectedValueOnce(new Error('once'));
    const end = () => left[what](client, session.sessionId, () => true);

    await end();
    if (what === 'forget') {
      await expect(execution.snapshot()).rejects.toThrow('not found');
      return;
    }
    expect((await execution.snapshot()).state).not.toBe('exited');
    await end();

    expect((await execution.snapshot()).result?.reason).toBe('cancelled');
  },
);
