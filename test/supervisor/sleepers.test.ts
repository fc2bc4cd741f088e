import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { Sleepers } from '../../src/supervisor/sleepers.ts';
import { eventually } from '../support/eventually.ts';

const PROGRAM = `
import os, sys, threading, time
held = []
print('ready', flush=True)
for line in sys.stdin:
    if line == 'compute\\n': sum(range(3_000_000))
    if line == 'thread\\n': threading.Thread(target=lambda: [time.sleep(1), sum(range(3_000_000))]).start()
    if line == 'grow\\n': held.append(bytearray(8 << 20))
    if line == 'fork\\n' and os.fork() == 0: os.execvp('sleep', ['sleep', '5'])
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
  ['starts a process', (child) => child.stdin?.write('fork\n')],
  ['ends', (child) => child.kill('SIGKILL')],
];

/** `none`: nothing says what they use together. `left`: they are not in the group that does, and so are looked at seldom. */
const CASES = [
  ...ACTS.flatMap(([what, act]) => [[what, 'none', act] as const, [what, 'own', act] as const]),
  ...ACTS.slice(0, 1).map(([what, act]) => [what, 'left', act] as const),
];

test.each(CASES)(
  'who sleeps is left alone until one of them %s (group: %s), which is told once, and is no more watched',
  async (what, group, act) => {
    const children = [await sleeper(), await sleeper()] as const;
    const other = await sleeper();
    const name = `${what.replaceAll(' ', '-')}-${group}`;
    const awoken: string[] = [];
    try {
      const counted = { none: [], own: children, left: [other] }[group];
      for (const { pid } of counted) groups.add(name, pid);
      using sleepers = new Sleepers(group === 'none' ? undefined : groups.usageFile(name), (key) => awoken.push(key));
      for (const [key, { pid }] of Object.entries(children)) sleepers.add(key, pid);
      const [first, second] = [sleepers.get('0'), sleepers.get('1')];
      await new Promise((resolve) => setTimeout(resolve, 500));
      sleepers.look();
      expect(awoken).toEqual([]);

      act(children[1]);

      await eventually('awake', () => awoken.length > 0);
      await new Promise((resolve) => setTimeout(resolve, 500));
      expect(awoken).toEqual(['1']);
      expect([sleepers.get('0'), sleepers.get('1')]).toEqual([first, undefined]);
      sleepers.add('1', children[0].pid);
      expect(sleepers.get('1')).not.toBe(second);
      act(children[0]);
      await eventually('all are awake', () => awoken.length > 2);
      expect(awoken.toSorted()).toEqual(['0', '1', '1']);
    } finally {
      for (const child of [...children, other]) child.kill('SIGKILL');
      await groups.remove(name);
    }
  },
);

test('who is no more watched is not told of', async () => {
  const child = await sleeper();
  try {
    using sleepers = new Sleepers(undefined, () => expect.unreachable());
    sleepers.add('0', child.pid);
    sleepers.delete('0');
    expect(sleepers.get('0')).toBeUndefined();
    child.stdin?.write('compute\n');
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    await new Promise((resolve) => setTimeout(resolve, 500));
  } finally {
    child.kill('SIGKILL');
  }
});
