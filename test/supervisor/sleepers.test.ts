import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
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

let groups: ControlGroups;
beforeAll(() => {
  groups = ControlGroups.open();
});
afterAll(() => groups.close());

const ACTS: [what: string, act: (child: ChildProcess) => void][] = [
  ['computes', (child) => child.stdin?.write('compute\n')],
  ['has a thread compute', (child) => child.stdin?.write('thread\n')],
  ['grows', (child) => child.stdin?.write('grow\n')],
  ['ends', (child) => child.kill('SIGKILL')],
];

/** `none`: nothing says what they use together. `left`: they are not in the group that does. */
const GROUPS = ['none', 'own', 'left'] as const;

test.each(ACTS.flatMap(([what, act]) => GROUPS.map((group) => [what, group, act] as const)))(
  'who sleeps is left alone until one of them %s (group: %s), and that is told once',
  async (what, group, act) => {
    const children = [await sleeper(), await sleeper()] as const;
    const other = await sleeper();
    const name = `${what.replaceAll(' ', '-')}-${group}`;
    let awoken = 0;
    try {
      const counted = { none: [], own: children, left: [other] }[group];
      for (const { pid } of counted) groups.add(name, pid);
      const sleepers = new Sleepers(
        children.map(({ pid }) => pid),
        group === 'none' ? undefined : groups.usageFile(name),
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
      for (const child of [...children, other]) child.kill('SIGKILL');
      await groups.remove(name);
    }
  },
);

test('who is no more watched is not told of', async () => {
  const child = await sleeper();
  try {
    const sleepers = new Sleepers([child.pid], undefined, () => expect.unreachable());
    sleepers[Symbol.dispose]();
    child.stdin?.write('compute\n');
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    await new Promise((resolve) => setTimeout(resolve, 500));
  } finally {
    child.kill('SIGKILL');
  }
});
