import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, onTestFinished, test, vi } from 'vitest';
import { unwrittenOf, writersOf } from '../../src/output/file-writers.ts';
import { OwnFile } from '../../src/output/own-file.ts';
import { openFiles } from '../support/processes.ts';

/** Has as many descriptors as it may, up to 19,000, and a file open for writing after all of them. */
const HOLDER = `
import os, resource, sys
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
limit = 19000 if limit == resource.RLIM_INFINITY else min(limit, 19000)
while os.dup(0) < limit - 2: pass
os.open(sys.argv[1], os.O_WRONLY)
print(os.getpid(), flush=True)
sys.stdin.read()`;

/** Starts one as a grandchild: children of this process are not looked for. */
async function startHolder(path: string): Promise<number> {
  const script = `exec 3<&0; python3 -c "$0" "$1" <&3 & wait`;
  const shell = spawn('sh', ['-c', script, HOLDER, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => void shell.stdin.end());
  return Number(String((await once(shell.stdout, 'data'))[0]));
}

function openFile(): { path: string; file: OwnFile } {
  const directory = mkdtempSync(join(tmpdir(), 'elide-test-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'stdout');
  const fd = openSync(path, 'w');
  onTestFinished(() => closeSync(fd));
  return { path, file: new OwnFile(fd) };
}

const nobody = new Int32Array(new SharedArrayBuffer(4));

/** Of a processor, by this thread, in ms: how many others use it does not count. Exact only once the thread has slept. */
function usedMs(): number {
  Atomics.wait(nobody, 0, 0, 0.01);
  return Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[0]) / 1e6;
}

/** The longest that this thread computes without a turn for others while that lasts. */
async function longestTurnMs(running: Promise<unknown>): Promise<number> {
  let longestMs = 0;
  let done = false;
  void running.finally(() => {
    done = true;
  });
  while (!done) {
    const beganMs = usedMs();
    await nextTurn();
    longestMs = Math.max(longestMs, usedMs() - beganMs);
  }
  return longestMs;
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] as number;
}

test('whoever writes to a file is found among any number of descriptors, while others have their turns', async () => {
  const { path, file } = openFile();
  const holder = await startHolder(path);
  const before = openFiles().length;
  const [listMs, turnMs]: [number[], number[]] = [[], []];

  for (let round = 0; round < 7; round += 1) {
    const beganMs = usedMs();
    readdirSync(`/proc/${holder}/fd`);
    listMs.push(usedMs() - beganMs);
    const found = writersOf([file], Number.POSITIVE_INFINITY);
    turnMs.push(await longestTurnMs(found));
    expect(await found).toEqual([holder]);
  }

  // A turn of its own takes 2 ms, which is as much as the list does where few descriptors are allowed.
  expect(median(turnMs)).toBeLessThan(Math.max(4, 0.75 * median(listMs)));
  expect(openFiles().length).toBe(before);
});

test('a search for writers ends with its time, also amid the descriptors of one process', async () => {
  const { path, file } = openFile();
  const holder = await startHolder(path);
  const tookMs: number[] = [];
  for (let round = 0; round < 3; round += 1) {
    const beganMs = performance.now();
    expect(await writersOf([file], Number.POSITIVE_INFINITY)).toEqual([holder]);
    tookMs.push(performance.now() - beganMs);
  }
  const before = openFiles().length;

  // Nearly all of the time goes to that process, which is the newest of all.
  const found = await writersOf([file], performance.now() + Math.min(...tookMs) / 8);

  expect(found).toEqual([]);
  expect(openFiles().length).toBe(before);
});

test('a process is left once each of the files was found there', async () => {
  const { path, file } = openFile();
  const others = Array.from({ length: 3 }, () => openSync(path, 'a'));
  onTestFinished(() => others.forEach(closeSync));
  const asked = vi.spyOn(file, 'is');

  expect(await unwrittenOf([file], Number.POSITIVE_INFINITY)).toEqual(new Set());

  // Beside that, twice for its path.
  expect(asked.mock.calls.length).toBe(3);
});

test('of a search that had no time to see all, nobody learns that a file is not written to', async () => {
  const { file } = openFile();
  expect(await unwrittenOf([file], performance.now())).toBeUndefined();
  expect(await unwrittenOf([file], Number.POSITIVE_INFINITY)).toEqual(new Set());
});

test('a file that is removed during a search is known to be unwritten only by a later one', async () => {
  const { path } = openFile();
  const fd = openSync(path, 'r');
  onTestFinished(() => closeSync(fd));
  const file = new OwnFile(fd);

  const found = unwrittenOf([file], Number.POSITIVE_INFINITY);
  unlinkSync(path);

  expect(await found).toEqual(new Set());
});
