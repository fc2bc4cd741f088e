import { execFileSync, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { ExitReason } from '../../machines/execution.ts';
import { childrenOf, sendSignal } from '../../src/processes.ts';
import { eventually } from '../support/eventually.ts';
import type { Round } from './round.ts';

/** Something that goes wrong. What lasts is mended after `lastsMs` at the latest, by a promise in `round.mending`. */
export interface Fault {
  inject(round: Round, lastsMs: number): Promise<void>;
  /** How executions of the session it strikes may end by it; everything else ends as if nothing had happened. */
  tolerates?: readonly ExitReason[];
  /** Guests may find no room for what they write. */
  losesOutput?: boolean;
  /** Only root can cause it. */
  needsRoot?: boolean;
}

const ELIDECTL = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url));
const SMALLEST_WRITE = 4096;
const DUPLICATES = 1_000;
const HALF_OPEN = 20;
/** What HTTP/2 begins with, and a frame that never ends. */
const HALF_A_REQUEST = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x10';
const HOUR_MS = 3_600_000;

function signal(pid: number | undefined, name: NodeJS.Signals): void {
  if (pid !== undefined) sendSignal(pid, name);
}

/** Stops a process, and lets it go on later. */
function pause(round: Round, pid: number | undefined, lastsMs: number): void {
  signal(pid, 'SIGSTOP');
  round.mending.push(sleep(lastsMs).then(() => signal(pid, 'SIGCONT')));
}

/** A client in a process of its own that follows the newest execution. */
function follower(round: Round) {
  const { sessionId, executionId } = round.newest.snippet;
  const args = [ELIDECTL, '--socket', round.node.socket, 'logs', '--follow', '--session', sessionId, executionId];
  return spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'ignore'] });
}

async function zygoteOf(round: Round): Promise<number | undefined> {
  const cells = await round.cells();
  return cells.flatMap(({ pid }) => childrenOf(pid)).find((pid) => /zygote\.py/.test(commandOf(pid)));
}

function commandOf(pid: number): string {
  return existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '';
}

async function cellOf(round: Round): Promise<number | undefined> {
  return (await round.cells()).at(-1)?.pid;
}

/**
 * Says how much a process may have: descriptors (`NOFILE`), or bytes in any file it writes to (`FSIZE`: with 0 each write
 * fails, also to files that are open). undefined: as much as this one.
 */
function limit(pid: number, resource: 'NOFILE' | 'FSIZE', soft: number | undefined): void {
  const program =
    'import resource as r, sys; pid, kind, soft = int(sys.argv[1]), getattr(r, "RLIMIT_" + sys.argv[2]), int(sys.argv[3]); ' +
    'own, most = r.getrlimit(kind); r.prlimit(pid, kind, (own if soft < 0 else soft, most))';
  execFileSync('python3', ['-c', program, String(pid), resource, String(soft ?? -1)]);
}

/** The same until this is disposed of: a daemon that is kept from writing cannot end in good order. */
export function limited(pid: number, resource: 'NOFILE' | 'FSIZE', soft: number): Disposable {
  limit(pid, resource, soft);
  return {
    [Symbol.dispose]: () => {
      if (existsSync(`/proc/${pid}`)) limit(pid, resource, undefined);
    },
  };
}

/** Writes until nothing fits any more. */
export function fill(path: string): void {
  const fd = openSync(path, 'a');
  try {
    for (let size = 1024 * 1024; size >= SMALLEST_WRITE; ) {
      try {
        writeSync(fd, Buffer.alloc(size));
      } catch {
        size /= 2;
      }
    }
  } finally {
    closeSync(fd);
  }
}

export const FAULTS = {
  'daemon killed': { inject: ({ node }) => node.exclusively(() => node.restart()) },
  'daemon replaced in good order': {
    inject: ({ node }) =>
      node.exclusively(async () => {
        await node.end('SIGTERM');
        await node.start();
      }),
  },
  'daemon paused': { inject: async (round, lastsMs) => pause(round, round.node.pid, lastsMs) },
  'cell killed': {
    inject: async (round) => signal(await cellOf(round), 'SIGKILL'),
    // The daemon may be gone before it could say so.
    tolerates: ['cell_lost', 'daemon_lost'],
  },
  'cell paused': {
    inject: async (round, lastsMs) => pause(round, await cellOf(round), lastsMs),
    tolerates: ['cell_lost'],
  },
  'cell killed while there is no daemon': {
    inject: async (round) => {
      const cells = await round.cells();
      await round.node.exclusively(async () => {
        await round.node.end();
        for (const { pid } of cells) signal(pid, 'SIGKILL');
        await round.node.start();
      });
    },
    tolerates: ['daemon_lost'],
  },
  'zygote killed': {
    inject: async (round) => signal(await zygoteOf(round), 'SIGKILL'),
    tolerates: ['start_failed', 'signaled', 'cell_lost'],
  },
  'zygote paused': {
    inject: async (round, lastsMs) => pause(round, await zygoteOf(round), lastsMs),
    tolerates: ['start_failed', 'cell_lost'],
  },
  'guest killed': { inject: async (round) => signal(await round.guest(), 'SIGKILL'), tolerates: ['signaled'] },
  'guest paused': { inject: async (round) => signal(await round.guest(), 'SIGSTOP') },
  'client killed': {
    inject: async (round, lastsMs) => {
      const client = follower(round);
      round.mending.push(sleep(lastsMs).then(() => void client.kill('SIGKILL')));
    },
  },
  'client paused': {
    inject: async (round, lastsMs) => {
      const client = follower(round);
      client.stdout.once('data', () => client.kill('SIGSTOP'));
      round.atEnd.push(async () => void client.kill('SIGKILL'));
      await sleep(Math.min(lastsMs, 200));
    },
  },
  'slow client': {
    inject: async (round) => {
      const { sessionId, executionId } = await round.execute('floods', 'python');
      const output = round.node.client.streamOutput(sessionId, executionId);
      // It takes the first piece, and then nothing more.
      const first = output.next().catch(() => {});
      round.atEnd.push(async () => {
        await first;
        await output.return(undefined).catch(() => {});
      });
    },
  },
  'half-open clients': {
    inject: async (round) => {
      const sockets = Array.from({ length: HALF_OPEN }, () => connect(round.node.socket));
      for (const socket of sockets) {
        socket.on('error', () => {});
        socket.write(HALF_A_REQUEST);
      }
      round.atEnd.push(async () => {
        for (const socket of sockets) socket.destroy();
      });
    },
  },
  'socket removed': {
    inject: async (round) => {
      rmSync(round.node.socket, { force: true });
      round.atEnd.push(() => eventually('the socket is there again', () => existsSync(round.node.socket)));
    },
  },
  "cell's socket removed": {
    inject: async (round) => {
      const [cell] = await round.cells();
      if (cell === undefined) return;
      rmSync(join(round.node.stateDir, 'daemon', 'cells', `${cell.cellKey}.sock`), { force: true });
    },
    // Only by the next fault.
    tolerates: ['daemon_lost'],
  },
  'disk full': {
    inject: async (round, lastsMs) => {
      const ballast = join(round.node.root, 'ballast');
      fill(ballast);
      round.mending.push(sleep(lastsMs).then(() => rmSync(ballast, { force: true })));
    },
    tolerates: ['start_failed', 'failed', 'cell_lost', 'signaled'],
    losesOutput: true,
    needsRoot: true,
  },
  'fsync fails': {
    inject: async ({ node, mending }, lastsMs) => {
      await node.exclusively(() => node.afflict({ fsync: true }));
      // It does so for as long as this daemon lives.
      mending.push(sleep(lastsMs).then(() => node.exclusively(() => node.restart())));
    },
  },
  'clock jumps ahead': { inject: ({ node }) => node.exclusively(() => node.afflict({ clockMs: HOUR_MS })) },
  'clock jumps back': { inject: ({ node }) => node.exclusively(() => node.afflict({ clockMs: -HOUR_MS })) },
  'no descriptors left': {
    inject: async ({ node: { pid }, mending }, lastsMs) => {
      const used = limited(pid, 'NOFILE', readdirSync(`/proc/${pid}/fd`).length);
      mending.push(sleep(lastsMs).then(() => used[Symbol.dispose]()));
    },
    tolerates: ['start_failed', 'cell_lost'],
  },
  'a thousand duplicates': {
    inject: async (round) => void (await round.execute('slow', 'javascript', DUPLICATES)),
  },
  'a late cancel': {
    inject: async (round) => {
      const { sessionId, executionId } = await round.execute('hello', 'python');
      await round.persistently((client) => client.wait(sessionId, executionId));
      const cancelled = await round.persistently((client) => client.cancelExecution(sessionId, executionId));
      if (cancelled) round.violation(`I1 ${executionId} has exited and was cancelled`);
    },
  },
  'deleted while starting': {
    inject: async (round) => {
      await round.execute('ticks', 'javascript');
      await round.execute('ticks', 'python');
      await round.deleteSession();
    },
  },
} satisfies Record<string, Fault>;

export type FaultName = keyof typeof FAULTS;
const canBe = (name: FaultName) => !('needsRoot' in FAULTS[name]) || process.getuid?.() === 0;
/** Those that this user can cause. */
export const FAULT_NAMES = (Object.keys(FAULTS) as FaultName[]).filter(canBe);
/** Those left out, each needing root. */
export const LEFT_OUT = (Object.keys(FAULTS) as FaultName[]).filter((name) => !canBe(name));
