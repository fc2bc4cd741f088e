import { beforeEach, expect, test } from 'vitest';
import { UnseenMemory } from '../../src/cell/unseen-memory.ts';
import { RETURN_HEAPS } from '../../src/cell-flags.ts';

const MB = 1_000_000;
/** What a thread that has booted takes of its process. */
const THREAD_MB = process.execArgv.includes(RETURN_HEAPS) ? 5 : 3;
const BOOTED = { faults: 0, heapBytes: 8.5 * MB, externalBytes: 0 };

/** A process whose memory the test moves, and a look at it each 20 ms. */
class Process {
  /** Resident and of no file, with what all threads have of it. */
  heldMb = 40;
  touchedMb = 0;
  threads = 0;
  nowMs = 0;

  look = () => ({
    anonymousBytes: this.heldMb * MB,
    faults: faults(this.touchedMb),
    mainBytes: 10 * MB,
    threads: this.threads,
    nowMs: this.nowMs,
  });

  /** A thread boots, or ends with a negative number. */
  boot(threads: number): void {
    this.threads += threads;
    this.heldMb += threads * THREAD_MB;
  }

  touch(mb: number): void {
    this.heldMb += mb;
    this.touchedMb += mb;
  }
}

let cell: Process;
let memory: UnseenMemory<string>;

beforeEach(() => {
  cell = new Process();
  memory = new UnseenMemory(cell.look());
});

function sample(thread: string, externalMb: number, touchedMb: number): void {
  cell.nowMs += 20;
  const figures = { ...BOOTED, externalBytes: externalMb * MB, faults: faults(touchedMb) };
  memory.sample(cell.look(), new Map([[thread, figures]]));
}

function faults(touchedMb: number): number {
  return 1 + Math.round((touchedMb * MB) / 4096);
}

test('memory that goes back before its thread is known to be gone does not burden the next one', () => {
  cell.boot(1);
  memory.add('first', BOOTED, cell.look());
  cell.touch(100);
  sample('first', 100, 100);
  // It is being torn down.
  cell.heldMb -= 100;
  sample('first', 100, 100);
  cell.boot(-1);
  memory.remove('first', cell.look);

  cell.boot(1);
  memory.add('next', BOOTED, cell.look());
  sample('next', 60, 0);
  cell.touch(60);
  sample('next', 60, 60);

  expect(memory.of('next')).toBeLessThan(10 * MB);
});

test('a process that holds less than its threads seem to for good has that room', () => {
  cell.boot(1);
  memory.add('thread', BOOTED, cell.look());
  cell.heldMb -= 30;
  for (let look = 0; look < 60; look += 1) sample('thread', 0, 0);

  cell.touch(30);
  sample('thread', 0, 30);

  expect(memory.of('thread')).toBeGreaterThan(25 * MB);
});

test('what the boot of its thread touched is not what a guest has touched', () => {
  cell.boot(1);
  memory.add('guest', { ...BOOTED, faults: faults(8) }, cell.look());

  // The heap of a spare that is booting, and does not count yet.
  cell.touch(8);
  sample('guest', 0, 8);

  expect(memory.of('guest')).toBe(0);
});
