import type { OutputStream } from '../../workers/output-writer.ts';

type Sizes = Record<OutputStream, number>;

/**
 * How much stays of each stream where both together may hold `limitBytes`. The one that grew most since `before` is cut
 * first, as that is what came last.
 */
export function keptOf(sizes: Sizes, limitBytes: number, before: Sizes = { stdout: 0, stderr: 0 }): Sizes {
  const kept = { ...sizes };
  let excess = sizes.stdout + sizes.stderr - limitBytes;
  const grown = (stream: OutputStream) => sizes[stream] - before[stream];
  const order: OutputStream[] = grown('stderr') > grown('stdout') ? ['stderr', 'stdout'] : ['stdout', 'stderr'];
  for (const stream of order) {
    if (excess <= 0) break;
    kept[stream] = Math.max(0, sizes[stream] - excess);
    excess -= sizes[stream] - kept[stream];
  }
  return kept;
}
