import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createDaemon } from '../src/index.ts';
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
  await using library = await LibraryDaemon.start();
  const rates: Record<string, number[]> = { cat: [], javascript: [], python: [], 'javascript, read in process': [] };
  for (let round = 0; round < ROUNDS; round += 1) {
    rates.cat?.push(await rate(() => cat()));
    for (const [language, code] of Object.entries(GUESTS)) {
      rates[language]?.push(await rate(() => follow(daemon, language, code)));
    }
    rates['javascript, read in process']?.push(await rate(() => library.follow('javascript', GUESTS.javascript)));
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

/** A daemon in this process, read without gRPC. */
class LibraryDaemon implements AsyncDisposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
  readonly #daemon = createDaemon({ stateDir: join(this.#directory, 'state'), socket: false, logLevel: 'warn' });
  #next = 0;

  static async start(): Promise<LibraryDaemon> {
    const library = new LibraryDaemon();
    await library.#daemon.start();
    await library.#daemon.createSession('s');
    return library;
  }

  async follow(language: string, code: string): Promise<number> {
    this.#next += 1;
    const executionId = `e${this.#next}`;
    await this.#daemon.executeSnippet({ sessionId: 's', executionId, language, code });
    let bytes = 0;
    for await (const { data } of this.#daemon.streamOutput('s', executionId)) bytes += data.byteLength;
    return bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
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
