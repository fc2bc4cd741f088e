import { setTimeout as wait } from 'node:timers/promises';

/** For what the system tells by no event: resolves once `look` finds it, rejects after a while with what it is about. */
export async function eventually(
  about: string,
  look: () => boolean | Promise<boolean>,
  limitMs = 30_000,
): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (!(await look())) {
    if (performance.now() > deadline) throw new Error(`not within ${limitMs} ms: ${about}`);
    await wait(5);
  }
}
