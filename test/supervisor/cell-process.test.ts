import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { Exited, FromCell, Started, ToCell } from '../../src/gen/elide/cell/v1/cell.ts';
import { isAlive, startTimeOf } from '../../src/processes.ts';
import { CellProcess, cellFiles, type GuestObserver } from '../../src/supervisor/cell-process.ts';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { FramedSocket } from '../../src/wire/framing.ts';
import { eventually, temporaryDirectory } from '../support/daemon.ts';

/** No kernel has so many processes. */
const MOST_PROCESSES = 2 ** 22;

const NOBODY: GuestObserver = { started() {}, limitReached() {}, gone() {}, exited() {}, lost() {} };

function sleeping() {
  const child = spawn('sleep', ['600'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  return { kill: () => child.kill('SIGKILL'), pid: child.pid as number };
}

/** A cell of one guest, `guest`, in which a process that sleeps stands for all but the protocol, which `say` speaks. */
async function cellOfOne(observer: GuestObserver = NOBODY) {
  const directory = temporaryDirectory();
  const server = createServer().listen(join(directory, 'sock'));
  const socket = connect(join(directory, 'sock'));
  const [far] = (await once(server, 'connection')) as [Socket];
  server.close();
  const { pid } = sleeping();
  const exited = Promise.withResolvers<void>();
  let isLeft = false;
  const cell = new CellProcess({
    cellKey: 'cell',
    directory,
    origin: {
      found: {
        cellKey: 'cell',
        pid,
        startTime: startTimeOf(pid) as string,
        connection: new FramedSocket<FromCell, ToCell>(socket, FromCell, ToCell),
        executionKeys: ['guest'],
        said: [],
      },
    },
    controlGroups: ControlGroups.open([]),
    observer: { spawned() {}, ready() {}, worn() {}, exited: () => exited.resolve() },
  });
  const end = async () => {
    cell.kill();
    far.destroy();
    if (!isLeft) await exited.promise;
  };
  onTestFinished(end);
  cell.resume('guest', directory, observer);
  const inside = new FramedSocket<ToCell, FromCell>(far, ToCell, FromCell);
  const say = (body: NonNullable<FromCell['body']>) => inside.send({ body });
  const leave = () => {
    isLeft = true;
    cell.detach();
  };
  return { cell, say, leave, end, directory, files: cellFiles(directory, 'cell') };
}

/** In ms. */
function timeOf(act: () => void): number {
  const startedMs = performance.now();
  act();
  return performance.now() - startedMs;
}

test.each([
  ['a guest that has ended', 3, 'cell_lost'],
  ['a thread that the only guest has started', 5, 'memory_exceeded'],
  ['the only guest', 4, 'memory_exceeded'],
])('a cell that aborts for the heap of %s is told so of who is left', async (_, exhausted, reason) => {
  const lost = Promise.withResolvers<string>();
  const ended = Promise.withResolvers<void>();
  const { cell, say, end, directory, files } = await cellOfOne({ ...NOBODY, exited: () => ended.resolve() });
  cell.resume('neighbour', directory, { ...NOBODY, lost: (why) => lost.resolve(why) });
  const at = { atMs: 1, monotonicMs: 1 };
  for (const [executionKey, thread] of [
    ['guest', 3],
    ['neighbour', 4],
  ] as const) {
    say({ $case: 'started', value: Started.create({ executionKey, thread, ...at }) });
  }
  say({ $case: 'exited', value: Exited.create({ executionKey: 'guest', ...at }) });
  await ended.promise;
  writeFileSync(files.log, 'FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory\n');
  writeFileSync(files.report, `{"header":{"threadId":${exhausted}}}`);

  await end();

  expect(await lost.promise).toBe(reason);
});

test('a guest is held up until all that was killed with it is gone, and who is gone is looked at once', async () => {
  const { cell, say } = await cellOfOne();
  const last = sleeping();
  const gone = Array.from({ length: 10_000 }, (_, index) => MOST_PROCESSES + index);
  const startTimes = [...gone.map(() => ''), startTimeOf(last.pid) as string];
  const onceMs = timeOf(() => gone.forEach(isAlive));
  const looks: boolean[] = [];
  expect(cell.isHeldUp('guest')).toBe(false);

  say({ $case: 'killed', value: { executionKey: 'guest', pids: [...gone, last.pid], startTimes } });
  await eventually('it hears of them', () => cell.isHeldUp('guest'));
  const allMs = timeOf(() => {
    while (looks.length < 200) looks.push(cell.isHeldUp('guest'));
  });

  expect(looks).not.toContain(false);
  expect(allMs).toBeLessThan(10 * onceMs);
  last.kill();
  await eventually('it is held up no more', () => !cell.isHeldUp('guest'));
});

test('a guest is not held up by a process that was given an id of what was killed with it', async () => {
  const { cell, say } = await cellOfOne();
  const [killed, other] = [sleeping(), sleeping()];
  const pids = [other.pid, killed.pid];
  const began = startTimeOf(killed.pid) as string;

  say({ $case: 'killed', value: { executionKey: 'guest', pids, startTimes: [`${Number(began) - 1}`, began] } });
  await eventually('it hears of them', () => cell.isHeldUp('guest'));
  killed.kill();

  await eventually('it is held up no more', () => !cell.isHeldUp('guest'));
  expect(isAlive(other.pid)).toBe(true);
});

test('a cell that is left to the next daemon keeps its record of ends, also when one of them is acknowledged later', async () => {
  const heard = Promise.withResolvers<void>();
  const { cell, say, leave, files } = await cellOfOne({ ...NOBODY, exited: () => heard.resolve() });
  writeFileSync(files.ends, 'what it writes down');

  say({ $case: 'exited', value: Exited.fromPartial({ executionKey: 'guest' }) });
  await heard.promise;
  leave();
  cell.acknowledge('guest');

  expect(existsSync(files.ends)).toBe(true);
});

test('what a cell has not brought to readers is removed with it, and what it has brought is not thought of any more', async () => {
  const ends = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  const { cell, say, end, directory } = await cellOfOne({ ...NOBODY, exited: () => ends[0].resolve() });
  const other = temporaryDirectory();
  cell.resume('other', other, { ...NOBODY, exited: () => ends[1].resolve() });
  const [brought, left] = [join(directory, 'stdout.spool.0'), join(other, 'stdout.spool.0')];
  const force = (executionKey: string) =>
    say({ $case: 'exited', value: Exited.fromPartial({ executionKey, stopRung: 'forced' }) });
  writeFileSync(left, 'for a slow reader');

  force('guest');
  await ends[0].promise;
  force('other');
  await ends[1].promise;
  writeFileSync(brought, 'of somebody else');
  await end();

  expect([brought, left].map((path) => existsSync(path))).toEqual([true, false]);
});
