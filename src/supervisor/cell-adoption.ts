import { readdirSync, readFileSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { basename, dirname } from 'node:path';
import { StartupError } from '../errors.ts';
import { type Exited, FromCell, Hello, ToCell, type Welcome } from '../gen/elide/cell/v1/cell.ts';
import { readPlainFile } from '../plain-file.ts';
import { endSessionOf, isBusy, killTrees, processNamed, sendSignal, startTimeOf, untilGone } from '../processes.ts';
import { readEndRecord } from '../wire/end-record.ts';
import { FramedSocket, PROTOCOL_VERSION } from '../wire/framing.ts';
import { readProcessRecord } from '../wire/process-record.ts';
import { cellFiles } from './cell-process.ts';
import type { AdoptableCell, EngineKind } from './cell-supervisor.ts';
import { watchForStuck } from './stuck-watch.ts';

/**
 * How long a cell may take to answer a daemon that comes back, in ms. It needs a few; the time in which it is busy, as it is
 * with a large program that begins, does not count, but for the second of these.
 */
const ANSWER_LIMIT_MS = 2_000;
const BUSY_LIMIT_MS = 60_000;
/** How long a cell that is of no use may take to be gone once it was killed, in ms. */
const KILL_LIMIT_MS = 2_000;
/** How much is read of a token, or of the name of a process: both are shorter. */
const MOST_BYTES = 1024;

/** What an older daemon left of its cells. */
export interface FoundCells {
  /** They run, and have let themselves be claimed. */
  cells: AdoptableCell[];
  /** The keys of all others: they are gone, or do not answer. */
  lost: string[];
}

/** What is left of cells that are gone. */
export interface CellRemains {
  /** Ends that they wrote down, by execution. */
  ends: Map<string, Exited>;
  /** To be removed once these ends are journaled, which nobody else knows. */
  files: string[];
}

/**
 * Finds the cells of an older daemon by their sockets, and claims them. Rejects with a `StartupError` when one speaks
 * another version of the protocol: all are left alone then. What a copy of another directory names is that one's.
 */
export async function findCells(directory: string, isCopy: boolean): Promise<FoundCells> {
  const names = readdirSync(directory);
  const cellKeys = [...new Set(names.map((name) => name.replace(/\.\w+$/, '')))];
  const processes = cellProcesses(directory);
  const claims = cellKeys.map(async (cellKey) => {
    const files = cellFiles(directory, cellKey);
    const pids = new Set(processes.get(cellKey));
    const named = isCopy ? undefined : namedBy(files.process);
    // Where the directory was moved since, no path leads here that it was started with.
    if (named !== undefined) pids.add(named);
    return pids.size === 0 ? undefined : await claim(cellKey, [...pids], files);
  });
  const settled = await Promise.allSettled(claims);
  const cells = settled.flatMap((claimed) => (claimed.status === 'fulfilled' && claimed.value ? [claimed.value] : []));
  const refused = settled.find(({ status }) => status === 'rejected');
  if (refused !== undefined) {
    for (const { connection } of cells) connection.destroy();
    throw (refused as PromiseRejectedResult).reason;
  }
  const claimed = new Set(cells.map(({ cellKey }) => cellKey));
  return { cells, lost: cellKeys.filter((cellKey) => !claimed.has(cellKey)) };
}

/** Ends what still runs of cells that nobody could claim. */
export async function endLost(directory: string, lost: string[]): Promise<CellRemains> {
  const ends = new Map<string, Exited>();
  const remains = { ends, files: lost.flatMap((cellKey) => Object.values(cellFiles(directory, cellKey))) };
  if (lost.length === 0) return remains;
  const processes = cellProcesses(directory);
  const ended = lost.map(async (cellKey) => {
    const files = cellFiles(directory, cellKey);
    await untilGone(killTrees(processes.get(cellKey) ?? []), KILL_LIMIT_MS);
    const name = readPlainFile(files.process, MOST_BYTES)?.toString();
    if (name !== undefined) await endSessionOf(name);
    await Promise.all(readProcessRecord(files.guests).map(endSessionOf));
    for (const exited of readEndRecord(files.ends)) ends.set(exited.executionKey, exited);
  });
  await Promise.all(ended);
  return remains;
}

/** The process whose name a file holds, if that lives. */
function namedBy(path: string): number | undefined {
  const name = readPlainFile(path, MOST_BYTES)?.toString();
  return name === undefined ? undefined : processNamed(name);
}

/**
 * Every process that was started for a cell here, by the cell's key: a process id that is used again has another command
 * line. Guests may have started others that look the same.
 */
function cellProcesses(directory: string): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    // SOCKET and TOKEN_FILE are the last two arguments, with a NUL behind each.
    const socket = commandOf(entry).split('\0').at(-3);
    if (socket === undefined || !socket.endsWith('.sock') || !isSameDirectory(dirname(socket), directory)) continue;
    const cellKey = basename(socket, '.sock');
    found.set(cellKey, [...(found.get(cellKey) ?? []), Number(entry)]);
  }
  return found;
}

/** Whether two paths lead to one directory. */
function isSameDirectory(one: string, other: string): boolean {
  try {
    const [a, b] = [one, other].map((path) => statSync(path, { bigint: true }));
    return a !== undefined && a.dev === b?.dev && a.ino === b.ino;
  } catch {
    // A command line can say anything.
    return false;
  }
}

function commandOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    // Gone meanwhile.
    return '';
  }
}

/** Undefined when the cell is of no use: it does not answer, or no daemon ever made it anything. */
async function claim(
  cellKey: string,
  pids: number[],
  files: ReturnType<typeof cellFiles>,
): Promise<AdoptableCell | undefined> {
  const token = readPlainFile(files.token, MOST_BYTES)?.toString();
  if (token === undefined) return undefined;
  // A guest can stop the process it runs in, which then does not answer.
  for (const pid of pids) sendSignal(pid, 'SIGCONT');
  const connection = new FramedSocket<FromCell, ToCell>(connect(files.socket), FromCell, ToCell);
  const answered = Promise.withResolvers<Welcome | undefined>();
  const said: FromCell[] = [];
  let welcome: Welcome | undefined;
  connection.on('message', (message) => {
    if (message.body?.$case === 'welcome') welcome = message.body.value;
    else said.push(message);
    const isOther = welcome !== undefined && welcome.protocolVersion !== PROTOCOL_VERSION;
    if (isOther || message.body?.$case === 'ready') answered.resolve(welcome);
  });
  connection.on('close', () => answered.resolve(undefined));
  const hello = Hello.create({ protocolVersion: PROTOCOL_VERSION, token });
  connection.send({ body: { $case: 'hello', value: hello } });
  const giveUp = () => answered.resolve(undefined);
  const limit = setTimeout(giveUp, BUSY_LIMIT_MS);
  const named = namedBy(files.process);
  const own = pids.filter((pid) => pid === named);
  const endWatch = watchForStuck(own, ANSWER_LIMIT_MS, giveUp, undefined, () => own.some(isBusy));
  const made = await answered.promise;
  clearTimeout(limit);
  endWatch();
  if (made !== undefined && made.protocolVersion !== PROTOCOL_VERSION) {
    connection.destroy();
    throw new StartupError(
      `cell ${cellKey} (process ${made.pid}) of an older daemon speaks version ${made.protocolVersion} of the protocol, ` +
        `this daemon version ${PROTOCOL_VERSION}; it was left alone: start the daemon that made it, or end it`,
    );
  }
  const startTime = made && startTimeOf(made.pid);
  if (made === undefined || made.sessionKey === '' || startTime === undefined || !pids.includes(made.pid)) {
    connection.destroy();
    return undefined;
  }
  const { pid, sessionKey, executionKeys, controllers, build } = made;
  const kind = made.engine as EngineKind;
  return { cellKey, pid, startTime, connection, said, sessionKey, kind, controllers, build, executionKeys };
}
