import { setTimeout as wait } from 'node:timers/promises';
import { monotonicMs } from '../clock.ts';
import { writtenOf } from './file-writers.ts';
import type { OwnFile } from './own-file.ts';

/** How long after the beginning of one look the next is, in ms: at least this, and this many times what it took. */
const LOOK_MS = 1_000;
const LOOK_RATIO = 20;
/** How long one may take, in ms. */
const LOOK_LIMIT_MS = 5_000;

interface Question {
  files: readonly OwnFile[];
  answer(unwritten: OwnFile[]): void;
}

/** Those that the next look answers. */
const questions: Question[] = [];
let isLooking = false;

/**
 * Those of these files that no process can write to, once that was looked at: a look at all there is, for all who ask, is
 * never more than a small part of the time.
 */
export function unwrittenFiles(files: readonly OwnFile[]): Promise<OwnFile[]> {
  const { promise, resolve } = Promise.withResolvers<OwnFile[]>();
  questions.push({ files, answer: resolve });
  if (!isLooking) void look();
  return promise;
}

async function look(): Promise<void> {
  isLooking = true;
  while (questions.length > 0) {
    const asked = questions.splice(0);
    const all = asked.flatMap(({ files }) => files);
    const beganMs = monotonicMs();
    // Where no descriptor is left to look with, all of them may be written to.
    const written = await writtenOf(all, performance.now() + LOOK_LIMIT_MS).catch(() => new Set(all));
    for (const { files, answer } of asked) answer(files.filter((file) => !written.has(file)));
    await wait(Math.max(LOOK_MS, LOOK_RATIO * (monotonicMs() - beganMs)), undefined, { ref: false });
  }
  isLooking = false;
}
