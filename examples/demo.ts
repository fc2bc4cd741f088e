// Starts a daemon of its own, runs the programs of examples/snippets in it all at once, shows what becomes of them, and
// leaves nothing behind. Exits with 0 when every one ended as it was meant to.
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { extname } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { connectDaemon, type DaemonClient, type ExecutionSummary } from '../src/client/index.ts';
import { DemoDaemon } from './demo-daemon.ts';
import { Screen } from './demo-screen.ts';

interface Piece {
  name: string;
  file: string;
  /** `REASON RUNG EXIT-CODE`: how it must end. */
  end: string;
  /** What it must have written, on stdout. */
  writes: string;
  /** Its run limit. */
  timeoutMs?: number;
  /** Its output is shown as it comes. */
  followed?: boolean;
  /** It is stopped this long after it said that it is ready, with this grace period. */
  stop?: { afterMs: number; graceMs: number };
}

const PIECES: Piece[] = [
  { name: 'hello', file: 'hello.mjs', end: 'completed - 0', writes: 'hello from node' },
  { name: 'parcels', file: 'parcels.ts', end: 'completed - 0', writes: 'large parcel to Pune: no room' },
  { name: 'report', file: 'report.py', end: 'completed - 0', writes: '"north": 12.5, "south": 21.1' },
  { name: 'ticker', file: 'ticker.mjs', end: 'completed - 0', writes: 'tick 10 of 10', followed: true },
  {
    name: 'cleanup',
    file: 'cleanup.mjs',
    end: 'cancelled graceful 3',
    writes: 'lock released',
    stop: { afterMs: 1_500, graceMs: 5_000 },
  },
  {
    name: 'stubborn-js',
    file: 'stubborn.mjs',
    end: 'cancelled forced 137',
    writes: 'ready',
    stop: { afterMs: 500, graceMs: 1_000 },
  },
  {
    name: 'stubborn-py',
    file: 'stubborn.py',
    end: 'cancelled forced 137',
    writes: 'no',
    stop: { afterMs: 1_000, graceMs: 1_000 },
  },
  { name: 'overtime', file: 'overtime.mjs', end: 'timed_out graceful 143', writes: 'ready', timeoutMs: 2_000 },
];

const LANGUAGES: Record<string, string> = { '.mjs': 'javascript', '.ts': 'typescript', '.py': 'python' };
const SNIPPETS = new URL(import.meta.url.endsWith('.ts') ? './snippets/' : '../../examples/snippets/', import.meta.url);
const SESSION = 'demo';
/** The demo gives up after this long, in ms. */
const LIMIT_MS = 25_000;

const languageOf = ({ file }: Piece) => LANGUAGES[extname(file)] as string;
const say = (text: string) => void process.stdout.write(`${text}\n`);

async function demo(): Promise<number> {
  const over = new AbortController();
  const limit = setTimeout(() => over.abort(new Error(`not done after ${LIMIT_MS / 1000} s`)), LIMIT_MS);
  const daemon = new DemoDaemon();
  let exitCode = 1;
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      exitCode = 128 + constants.signals[name];
      if (over.signal.aborted) daemon.interrupt();
      else over.abort(new Error(`${name}: stopping`));
    });
  }
  process.stdout.on('error', () => over.abort(new Error('nobody is watching')));
  process.stderr.on('error', () => {}); // Nobody is told that, then.

  try {
    const wrong = await show(daemon, over.signal);
    exitCode = wrong === 0 ? 0 : 1;
  } catch (error) {
    const why = over.signal.aborted ? over.signal.reason : error;
    process.stderr.write(`demo: ${(why as Error).message}\n`);
  }
  clearTimeout(limit);
  if (!over.signal.aborted) over.abort(new Error('done'));
  const { processes, left } = await daemon.stop();
  if (left.length > 0) {
    process.stderr.write(`demo: left behind: ${left.join(', ')}\n`);
    return exitCode || 1;
  }
  say(`Nothing left behind: ${processes} processes have ended, the socket and the state directory are gone.`);
  return exitCode;
}

/** The demonstration itself; resolves with how many executions did not end as they were meant to. */
async function show(daemon: DemoDaemon, signal: AbortSignal): Promise<number> {
  say(await daemon.ready(signal));
  using client = connectDaemon({ socket: daemon.socket });
  const python = (await client.languages({ signal })).find(({ name }) => name === 'python');
  const pieces = PIECES.filter((piece) => languageOf(piece) !== 'python' || python?.available);
  if (!python?.available) say(`Python is not shown: ${python?.message}`);
  await client.createSession(SESSION, {}, { signal });

  const screen = new Screen(pieces.map((piece) => ({ name: piece.name, language: languageOf(piece) })));
  const beganMs = Date.now();
  try {
    const ends = await Promise.all(pieces.map((piece) => perform(piece, client, daemon, screen, signal)));
    screen.close();
    return report(pieces, ends, beganMs);
  } finally {
    screen.close();
  }
}

interface End {
  execution: ExecutionSummary;
  output: string;
}

/** Runs one program to its end. */
async function perform(
  piece: Piece,
  client: DaemonClient,
  daemon: DemoDaemon,
  screen: Screen,
  signal: AbortSignal,
): Promise<End> {
  const { name, file, timeoutMs } = piece;
  const path = fileURLToPath(new URL(file, SNIPPETS));
  const code = readFileSync(path, 'utf8');
  const snippet = { sessionId: SESSION, executionId: name, language: languageOf(piece), code, sourceFileName: path };
  await client.executeSnippet({ ...snippet, timeoutMs }, { signal });
  const [output] = await Promise.all([
    listen(piece, client, screen, signal),
    (async () => {
      for await (const { state, rung } of client.watchExecution(SESSION, name, { signal })) {
        screen.state(name, state, rung);
        if (state === 'running') daemon.observe();
      }
    })(),
  ]);
  return { execution: await client.wait(SESSION, name, { signal }), output };
}

/** Reads what a program writes, line by line, until its end; stops it once it is ready if that is its part. */
async function listen(piece: Piece, client: DaemonClient, screen: Screen, signal: AbortSignal): Promise<string> {
  const { name, followed, stop } = piece;
  let stopping: Promise<unknown> | undefined;
  const lines: string[] = [];
  for await (const line of linesOf(client, name, signal)) {
    lines.push(line);
    if (followed) screen.line(name, line);
    if (stop !== undefined && line === 'ready') {
      stopping = pause(stop.afterMs, undefined, { signal }).then(() =>
        client.cancelExecution(SESSION, name, { graceMs: stop.graceMs }, { signal }),
      );
      stopping.catch(() => {}); // It is awaited below, if the output ends at all.
    }
  }
  await stopping;
  return lines.join('\n');
}

async function* linesOf(client: DaemonClient, executionId: string, signal: AbortSignal): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const { data } of client.streamOutput(SESSION, executionId, { streams: ['stdout'], signal })) {
    const lines = (rest + decoder.decode(data, { stream: true })).split('\n');
    rest = lines.pop() ?? '';
    yield* lines;
  }
  if (rest !== '') yield rest;
}

const HEAD = ['NAME', 'LANGUAGE', 'REASON', 'RUNG', 'EXIT', 'QUEUED', 'STARTED', 'RAN', ''];

/** Writes the table of results; returns how many are not what they should be. */
function report(pieces: Piece[], ends: End[], beganMs: number): number {
  const rows = pieces.map((piece, at) => rowOf(piece, ends[at] as End, beganMs));
  const widths = HEAD.map((head, column) => Math.max(head.length, ...rows.map((row) => row[column]?.length ?? 0)));
  say('');
  for (const row of [HEAD, ...rows]) {
    const cells = row.map((cell, at) =>
      at > 3 && at < 8 ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0),
    );
    say(cells.join('  ').trimEnd());
  }
  say('');
  const wrong = rows.filter((row) => row.at(-1) !== 'as it should').length;
  say(
    wrong === 0 ? `All ${rows.length} ended as they should.` : `${wrong} of ${rows.length} did NOT end as they should.`,
  );
  return wrong;
}

function rowOf(piece: Piece, { execution, output }: End, beganMs: number): string[] {
  const { result, times } = execution;
  const { acceptedAtMs, startedAtMs = acceptedAtMs, exitedAtMs = startedAtMs } = times;
  const end = [result?.reason ?? '-', result?.rung ?? '-', String(result?.exitCode ?? '-')];
  const ms = (value: number) => `${Math.max(0, value)} ms`;
  const verdict = end.join(' ') !== piece.end ? `should be: ${piece.end}` : `should write: ${piece.writes}`;
  const good = end.join(' ') === piece.end && output.includes(piece.writes);
  return [
    piece.name,
    execution.language,
    ...end,
    ms(startedAtMs - acceptedAtMs),
    ms(startedAtMs - beganMs),
    ms(exitedAtMs - startedAtMs),
    good ? 'as it should' : verdict,
  ];
}

const code = await demo();
process.stdout.write('', () => process.exit(code));
