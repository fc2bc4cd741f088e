/** Minimum, median, 99th percentile and maximum of some figures. */
export interface Spread {
  min: number;
  median: number;
  p99: number;
  p999: number;
  max: number;
  count: number;
}

export function spreadOf(values: number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] as number;
  return { min: at(0), median: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1), count: sorted.length };
}

/** `12.3 (10.1-20.4)`: the median and the spread. */
export function show({ min, median, max }: Spread, digits = 1): string {
  return `${median.toFixed(digits)} (${min.toFixed(digits)}-${max.toFixed(digits)})`;
}

/** `12.3 / 20.4 / 31.0`: the median, the 99th percentile and the maximum. */
export function showTail({ median, p99, max }: Spread, digits = 1): string {
  return [median, p99, max].map((value) => value.toFixed(digits)).join(' / ');
}

/** Runs each of the contenders once a round, so that a machine whose speed drifts is fair to all. In ms. */
export async function inTurn<K extends string>(
  rounds: number,
  contenders: Record<K, () => Promise<unknown>>,
): Promise<Record<K, Spread>> {
  const names = Object.keys(contenders) as K[];
  const times = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<K, number[]>;
  for (let round = 0; round < rounds; round += 1) {
    for (const name of names) {
      const startedMs = performance.now();
      await contenders[name]();
      times[name].push(performance.now() - startedMs);
    }
  }
  return Object.fromEntries(names.map((name) => [name, spreadOf(times[name])])) as Record<K, Spread>;
}

/**
 * Runs two contenders in pairs, either first in turn, so that neither has the better place, each after a rest. In ms;
 * `ratio` is the median of the ratios of `all` to `none` within a pair, with its 95 % confidence interval (of order
 * statistics).
 */
export async function pairs(
  count: number,
  rest: () => Promise<unknown>,
  contenders: { none: () => Promise<unknown>; all: () => Promise<unknown> },
): Promise<{ none: Spread; all: Spread; ratio: string }> {
  const times = { none: [] as number[], all: [] as number[] };
  for (let pair = 0; pair < count; pair += 1) {
    for (const name of pair % 2 === 0 ? (['none', 'all'] as const) : (['all', 'none'] as const)) {
      await rest();
      const startedMs = performance.now();
      await contenders[name]();
      times[name].push(performance.now() - startedMs);
    }
  }
  const ratios = times.all.map((ms, pair) => ms / (times.none[pair] as number)).sort((a, b) => a - b);
  const half = 0.98 * Math.sqrt(count);
  const at = (rank: number) => (ratios[Math.min(count - 1, Math.max(0, Math.round(rank)))] as number).toFixed(2);
  const ratio = `${at(count / 2)} (${at(count / 2 - half)}-${at(count / 2 + half)})`;
  return { none: spreadOf(times.none), all: spreadOf(times.all), ratio };
}

/** A Markdown table. */
export function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}
