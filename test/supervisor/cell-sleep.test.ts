import { spawn } from 'node:child_process';
import { expect, onTestFinished, test } from 'vitest';
import { CellSleep } from '../../src/supervisor/cell-sleep.ts';

/** A process that sleeps stands for the cell and for its guests `p1` and `p2`; `t1` and `t2` are threads. */
function sleeping(...guests: string[]) {
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  const pid = child.pid as number;
  const woken: string[][] = [];
  const sleep = new CellSleep({
    guests: new Map(guests.map((guest) => [guest, { pid: guest.startsWith('p') ? pid : 0 }])),
    pid: () => pid,
    usageFile: () => undefined,
    wake: (executionKeys) => woken.push(executionKeys),
  });
  onTestFinished(() => sleep[Symbol.dispose]());
  return { sleep, woken };
}

const NOTHING = new Set<string>();

test('processes sleep one by one', () => {
  const { sleep, woken } = sleeping('p1', 'p2', 't1');

  sleep.begin(['p1'], NOTHING);

  expect(sleep.of('p1')).toBeDefined();
  expect(sleep.of('p2')).toBeUndefined();
  expect(sleep.of('t1')).toBeUndefined();
  expect(woken).toEqual([]);
});

test('threads sleep all together, or none does', () => {
  const { sleep, woken } = sleeping('t1', 't2');

  sleep.begin(['t1'], NOTHING);
  expect(sleep.of('t1')).toBeUndefined();
  expect(woken).toEqual([[]]);
  sleep.begin(['t1', 't2'], NOTHING);

  expect(sleep.of('t1')).toBeDefined();
  expect(sleep.of('t2')).toBe(sleep.of('t1'));
  sleep.onStart();
  expect(sleep.of('t1')).toBeUndefined();
  expect(woken).toEqual([[]]);
});

test('what is sent wakes the one it is sent to, once', () => {
  const { sleep, woken } = sleeping('p1', 'p2');
  sleep.begin(['p1', 'p2'], NOTHING);

  sleep.rouse('p1');
  sleep.rouse('p1');

  expect(woken).toEqual([['p1']]);
  expect(sleep.of('p1')).toBeUndefined();
  expect(sleep.of('p2')).toBeDefined();
});

test('a sleep goes on until figures are told anew: then it is another one', () => {
  const { sleep } = sleeping('p1');
  sleep.begin(['p1'], NOTHING);
  const first = sleep.of('p1');

  sleep.begin(['p1'], NOTHING);
  expect(sleep.of('p1')).toBe(first);
  sleep.begin(['p1'], new Set(['p1']));

  expect(sleep.of('p1')).toBeDefined();
  expect(sleep.of('p1')).not.toBe(first);
});

test('guests that nobody here knows are kept awake', () => {
  const { sleep, woken } = sleeping('p1');

  sleep.begin(['stranger'], NOTHING);

  expect(woken).toEqual([['stranger']]);
});

test('one that has exited sleeps no more', () => {
  const { sleep, woken } = sleeping('p1');
  sleep.begin(['p1'], NOTHING);

  sleep.onExit('p1');

  expect(sleep.of('p1')).toBeUndefined();
  expect(woken).toEqual([]);
});
