import { setTimeout as wait } from 'node:timers/promises';
import { monotonicMs } from '../clock.ts';
import { unwrittenOf } from './file-writers.ts';
import type { OwnFile } from './own-file.ts';

/** How long after the beginning of one look the next is, in ms: at least this, and this many times what it took. */
const LOOK_MS = 1_000;
const LOOK_RATIO = 20;
/** How long one may take, in ms. */
const LOOK_LIMIT_MS = 5_000;

interface Question {
  files: readonly OwnFile[];
  answer(unwritten: ReadonlySet<OwnFile> | undefined): void;
}

/** Those that the next look answers. */
const questions: Question[] = [];
let isLooking = false;

/**
 * Those of these files that no process can write to, and maybe others, once that was looked at: a look at all there is, for
 * all who ask, is never more than a small part of the time. Undefined where that could not be seen.
 */
export function unwrittenFiles(files: readonly OwnFile[]): Promise<ReadonlySet<OwnFile> | undefined> {
  const { promise, resolve } = Promise.withResolvers<ReadonlySet<OwnFile> | undefined>();
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
    // There may be no descriptor to look with.
    const unwritten = await unwrittenOf(all, performance.now() + LOOK_LIMIT_MS).catch(() => undefined);
    for (const { answer } of asked) answer(unwritten);
    await wait(Math.max(LOOK_MS, LOOK_RATIO * (monotonicMs() - beganMs)), undefined, { ref: false });
  }
  isLooking = false;
}
