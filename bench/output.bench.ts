import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { DaemonUnderTest } from './daemon-under-test.ts';
import { show, spreadOf, table } from './statistics.ts';

const MEGABYTES = 256;
const ROUNDS = 5;
const GUESTS = {
  javascript: `const line = Buffer.alloc(65536, 'x'); for (let i = 0; i < ${MEGABYTES * 16}; i++) process.stdout.write(line);`,
  python: `import os\nline = b'x' * 65536\nfor i in range(${MEGABYTES * 16}): os.write(1, line)`,
} as const;

/** Output followed by a client while the guest writes it, against the same bytes through `cat` and a pipe. */
export async function output(): Promise<string> {
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s');
  const rates: Record<string, number[]> = { cat: [], javascript: [], python: [] };
  for (let round = 0; round < ROUNDS; round += 1) {
    rates.cat?.push(await rate(() => cat()));
    for (const [language, code] of Object.entries(GUESTS)) {
      rates[language]?.push(await rate(() => follow(daemon, language, code)));
    }
  }
  const spreads = Object.entries(rates).map(([name, values]) => [name, spreadOf(values)] as const);
  const catMedian = spreads[0]?.[1].median as number;
  return [
    '## Output',
    '',
    `${MEGABYTES} MB in writes of 64 KiB, from the guest's write to the client's read; MB/s, ${ROUNDS} rounds in turn.`,
    '',
    table(
      ['writer', 'median (min-max)', 'against `cat`'],
      spreads.map(([name, spread]) => [name, show(spread, 0), (spread.median / catMedian).toFixed(2)]),
    ),
  ].join('\n');
}

async function rate(run: () => Promise<number>): Promise<number> {
  const startedMs = performance.now();
  const bytes = await run();
  if (bytes !== MEGABYTES * 1024 * 1024) throw new Error(`${bytes} bytes arrived`);
  return MEGABYTES / ((performance.now() - startedMs) / 1000);
}

async function follow(daemon: DaemonUnderTest, language: string, code: string): Promise<number> {
  const executionId = await daemon.execute('s', language, code);
  let bytes = 0;
  for await (const { data } of daemon.output('s', executionId)) bytes += data.byteLength;
  return bytes;
}

async function cat(): Promise<number> {
  const child = spawn('sh', ['-c', `head -c ${MEGABYTES * 1024 * 1024} /dev/zero | cat`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let bytes = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    bytes += chunk.byteLength;
  });
  await once(child, 'close');
  return bytes;
}
