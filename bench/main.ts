import { writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { burst } from './burst.bench.ts';
import { choices } from './choices.bench.ts';
import { endurance, journal, restart } from './durability.bench.ts';
import { hello, throughput } from './hello.bench.ts';
import { isolation, lateness, limits, metering } from './limits.bench.ts';
import { memory } from './memory.bench.ts';
import { output } from './output.bench.ts';
import { queue } from './queue.bench.ts';
import { stolenMs } from './stolen.ts';
import { stops } from './stops.bench.ts';

/** Runs the benchmarks named on the command line, or all of them; all of them are written to `bench/RESULTS.md`. */
const BENCHMARKS = {
  hello,
  throughput,
  burst,
  output,
  memory,
  queue,
  stops,
  limits,
  metering,
  lateness,
  isolation,
  journal,
  restart,
  choices,
};

/** Runs only by its name: it takes ten to twenty minutes. */
const LONG = { endurance };

const wanted = process.argv.slice(2);
const unknown = wanted.find((name) => !Object.hasOwn({ ...BENCHMARKS, ...LONG }, name));
if (unknown !== undefined) {
  throw new TypeError(`no benchmark "${unknown}" (there are ${Object.keys({ ...BENCHMARKS, ...LONG }).join(', ')})`);
}

const sections: string[] = [];
for (const [name, run] of Object.entries(wanted.length > 0 ? { ...BENCHMARKS, ...LONG } : BENCHMARKS)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const [startedMs, stolenBefore] = [performance.now(), stolenMs()];
  const figures = await run();
  const stolen = (stolenMs() - stolenBefore) / (performance.now() - startedMs) / cpus().length;
  const section = `${figures}\n\nMeanwhile the host gave ${(stolen * 100).toFixed(1)} % of the processors' time to others.`;
  process.stdout.write(`${section}\n\n`);
  sections.push(section);
}

if (wanted.length === 0) {
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB`;
  const head = [
    '# Results',
    '',
    'Written by `npm run bench`. Every ratio is of figures taken in the same run; single figures depend on the machine.',
    '',
    `Node ${process.versions.node}, Linux, ${machine}.`,
  ].join('\n');
  const target = fileURLToPath(new URL('../../bench/RESULTS.md', import.meta.url));
  writeFileSync(target, `${[head, ...sections].join('\n\n')}\n`);
}
