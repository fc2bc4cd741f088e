import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';
import { Sleepers } from '../../src/supervisor/sleepers.ts';
import { eventually } from '../support/eventually.ts';

const PROGRAM = `
import sys, threading, time
held = []
print('ready', flush=True)
for line in sys.stdin:
    if line == 'compute\\n': sum(range(3_000_000))
    if line == 'thread\\n': threading.Thread(target=lambda: [time.sleep(1), sum(range(3_000_000))]).start()
    if line == 'grow\\n': held.append(bytearray(8 << 20))
    print('done', flush=True)
`;

async function sleeper(): Promise<ChildProcess & { pid: number }> {
  const child = spawn('python3', ['-c', PROGRAM], { stdio: ['pipe', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  return child as unknown as ChildProcess & { pid: number };
}

test.each<[what: string, act: (child: ChildProcess) => void]>([
  ['computes', (child) => child.stdin?.write('compute\n')],
  ['has a thread compute', (child) => child.stdin?.write('thread\n')],
  ['grows', (child) => child.stdin?.write('grow\n')],
  ['ends', (child) => child.kill('SIGKILL')],
])('who sleeps is left alone until one of them %s, and that is told once', async (_, act) => {
  const children = [await sleeper(), await sleeper()] as const;
  let awoken = 0;
  try {
    const sleepers = new Sleepers(
      children.map(({ pid }) => pid),
      () => {
        awoken += 1;
      },
    );
    expect(sleepers.areAsleep()).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(awoken).toBe(0);

    act(children[1]);

    await eventually('awake', () => awoken > 0);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(awoken).toBe(1);
  } finally {
    for (const child of children) child.kill('SIGKILL');
  }
});

test('who is no more watched is not told of', async () => {
  const child = await sleeper();
  try {
    const sleepers = new Sleepers([child.pid], () => expect.unreachable());
    sleepers[Symbol.dispose]();
    child.stdin?.write('compute\n');
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    await new Promise((resolve) => setTimeout(resolve, 500));
  } finally {
    child.kill('SIGKILL');
  }
});
