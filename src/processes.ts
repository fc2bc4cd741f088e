import { existsSync, readdirSync, statSync } from 'node:fs';
import { setImmediate as nextTurn, setTimeout as wait } from 'node:timers/promises';
import { bootId } from './clock.ts';
import { readKernelFile, statFields } from './proc-file.ts';
import { withDescriptor } from './spare-descriptor.ts';

/**
 * How soon a killed process is looked at again until it is gone, in ms. The kernel may hold one for ever: where nothing has
 * changed for long, after this share of that time.
 */
const LOOK_MS = 2;
const LOOK_SHARE = 1 / 8;
const LONGEST_LOOK_MS = 1_000;

/**
 * How long the processes of a tree may take to stop before it is killed as far as it is known, in ms: those in a wait that
 * only their end interrupts, and the others, which may have to wait for a processor.
 */
const HELD_LIMIT_MS = 20;
const STOP_LIMIT_MS = 100;

/** Some processes by their ids, which are used again: with each when it began (see `startTimeOf`), unless it was gone then. */
export type Processes = ReadonlyMap<number, string | undefined>;

/**
 * Kills processes and everything below them, and says what that was. All are stopped first, so that none makes another
 * one, or runs away from its parent, while the rest is looked for. One that is just forking stops only after that; what
 * cannot stop in time is killed, and looked at once more then: a process that is to die finishes no fork.
 */
export function killTrees(roots: Iterable<number>): Processes {
  const tree = new Map([...roots].filter(isOther).map((pid) => [pid, startTimeOf(pid)]));
  const startedMs = performance.now();
  const mayStop = (pid: number) => {
    const tookMs = performance.now() - startedMs;
    return tookMs < STOP_LIMIT_MS && isRunning(pid) && (tookMs < HELD_LIMIT_MS || !isHeld(pid));
  };
  const isNew = (pid: number) => !tree.has(pid);
  for (let found = [...tree.keys()]; found.length > 0; ) {
    for (const pid of found) sendSignal(pid, 'SIGSTOP');
    while (found.some(mayStop));
    found = found.flatMap(childrenOf).filter(isNew);
    // All of it only once nothing is below: a chain is as deep as its guest likes.
    if (found.length === 0) {
      const late = performance.now() - startedMs < HELD_LIMIT_MS ? [] : [...tree.keys()].filter(isRunning);
      found = [...tree.keys()].flatMap(childrenOf).filter(isNew);
      if (found.length === 0) found = late.flatMap(killAndLook).filter(isNew);
    }
    for (const pid of found) tree.set(pid, startTimeOf(pid));
  }
  for (const pid of tree.keys()) sendSignal(pid, 'SIGKILL');
  return tree;
}

/** The children it has after that are all that it will ever have; those before it had as well, in case it is gone so soon. */
function killAndLook(pid: number): number[] {
  const before = childrenOf(pid);
  sendSignal(pid, 'SIGKILL');
  return [...new Set([...before, ...childrenOf(pid)])];
}

/** Resolves when all of these processes, which were killed, are gone, or when the limit has passed. */
export async function untilGone(killed: Processes, limitMs = Number.POSITIVE_INFINITY): Promise<void> {
  const endMs = performance.now() + limitMs;
  for (const [pid, startTime] of killed) {
    const beganMs = performance.now();
    while (isSameProcess(pid, startTime) && performance.now() < endMs) await wait(lookAfter(beganMs));
  }
}

/** In how many ms to look again at what has not changed since then. */
function lookAfter(sinceMs: number): number {
  return Math.min(Math.max(LOOK_MS, (performance.now() - sinceMs) * LOOK_SHARE), LONGEST_LOOK_MS);
}

/** The children that one thread of this process has started; they are the process's as well. */
export function childrenOfThread(threadId: number): number[] {
  return listOf(`/proc/self/task/${threadId}/children`);
}

/** Whether a process is a child of this one, of whichever thread, that was not waited for yet; it may have ended. */
export function isOwnChild(pid: number): boolean {
  return statOf(pid)?.parent === process.pid;
}

/** Empty when the thread is gone, or the kernel does not keep this list. */
function listOf(path: string): number[] {
  return (readKernelFile(path) ?? '').split(' ').filter(Boolean).map(Number);
}

/** Some processes and all below them. */
export function treeOf(roots: Iterable<number>): Set<number> {
  const tree = new Set(roots);
  for (const pid of tree) for (const child of childrenOf(pid)) tree.add(child);
  return tree;
}

/** How many children of a process have ended and were not waited for. */
export function zombiesOf(pid: number): number {
  return childrenOf(pid).filter((child) => statOf(child)?.ended).length;
}

/** A kernel may be built without these lists. */
export const LISTS_CHILDREN = existsSync(`/proc/self/task/${process.pid}/children`);

/** Process ids of a process's children, of whichever thread; empty for one that is gone. */
export function childrenOf(pid: number): number[] {
  if (!LISTS_CHILDREN) return processes(({ parent }) => parent === pid).map((child) => child.pid);
  return threadsOf(pid).flatMap((thread) => listOf(`/proc/${pid}/task/${thread}/children`));
}

/** Kernel ids of a process's threads; empty for one that is gone. */
export function threadsOf(pid: number): string[] {
  try {
    return withDescriptor(() => readdirSync(`/proc/${pid}/task`));
  } catch {
    return [];
  }
}

/** Sessions of processes (`setsid`) that are being ended, by their leaders. */
const ending = new Map<number, PromiseWithResolvers<void>>();
let endsSessions = false;
/** Has them looked at within {@link LOOK_MS}. */
let lookSoon = () => {};

/**
 * Kills a session of processes, and resolves when all of them are gone (or only zombies are left). Never gives up: what the
 * kernel holds in an uninterruptible wait is still there, and saying otherwise would be untrue.
 */
export function killSessionUntilGone(leader: number): Promise<void> {
  if (!isOther(leader)) return Promise.resolve();
  const known = ending.get(leader);
  if (known !== undefined) return known.promise;
  const end = Promise.withResolvers<void>();
  ending.set(leader, end);
  if (endsSessions) lookSoon();
  else void endSessions();
  return end.promise;
}

/** All at once: a look at every process there is costs as much for one session as for a thousand. */
async function endSessions(): Promise<void> {
  endsSessions = true;
  let before = '';
  let sinceMs = performance.now();
  for (await nextTurn(); ending.size > 0; await untilLook(lookAfter(sinceMs))) {
    const leaders = new Set(ending.keys());
    let left: ProcessStat[];
    try {
      left = processes(({ session, ended }) => !ended && leaders.has(session));
    } catch {
      // They cannot be seen now.
      continue;
    }
    const now = `${[...leaders]} ${left.map(({ pid }) => pid)}`;
    if (now !== before) sinceMs = performance.now();
    before = now;
    for (const { pid, session } of left) {
      sendSignal(pid, 'SIGKILL');
      leaders.delete(session);
    }
    for (const leader of leaders) {
      ending.get(leader)?.resolve();
      ending.delete(leader);
    }
  }
  endsSessions = false;
}

/** Resolves after that time, or soon after another session is to be ended. */
async function untilLook(ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  lookSoon = () => setTimeout(resolve, LOOK_MS);
  await promise;
  clearTimeout(timer);
}

/**
 * Names a process for good, over every use of its id and every start of the machine, or of a container, in which ids begin
 * anew; undefined when it is gone.
 */
export function processName(pid: number, startTime = startTimeOf(pid)): string | undefined {
  return startTime && `${bootId()} ${pid} ${startTime} ${pidNamespace()}`;
}

let namespace: string | undefined;

/**
 * Names what ids of processes mean here. The number of a namespace that is gone is used again: the start of its first
 * process is part of it, if that can be seen.
 */
function pidNamespace(): string {
  namespace ??= `${statSync('/proc/self/ns/pid', { throwIfNoEntry: false })?.ino ?? ''}:${startTimeOf(1) ?? ''}`;
  return namespace;
}

/**
 * Kills what is left of the session (`setsid`) that a process of this name leads or led, and resolves when nothing is. No
 * process gets an id that a session still has: where another one has it now, there is no such session any more.
 */
export async function endSessionOf(name: string): Promise<void> {
  const leader = leaderOf(name);
  if (leader !== undefined) await killSessionUntilGone(leader);
}

/** Leaders of the sessions that processes of these names lead or led, of which something is left. */
export function sessionsLeft(names: Iterable<string>): number[] {
  const leaders = new Set([...names].flatMap((name) => leaderOf(name) ?? []));
  const left = processes(({ session, ended }) => !ended && isOther(session) && leaders.has(session));
  return [...new Set(left.map(({ session }) => session))];
}

/** The process that a name stands for, while it is there. */
export function processNamed(name: string): number | undefined {
  const leader = leaderOf(name);
  return leader !== undefined && isOther(leader) && isAlive(leader) ? leader : undefined;
}

/**
 * The id of the session, and of the group, that a process of this name leads or led. Undefined where none can be meant: it
 * is of another start of the machine, another process has the id now, or none has and the id was given in another namespace.
 */
export function leaderOf(name: string): number | undefined {
  const [boot, pid = '', startTime, givenIn] = name.split(' ');
  if (boot !== bootId()) return undefined;
  const found = startTimeOf(Number(pid));
  const isSame = found === undefined ? givenIn === pidNamespace() : found === startTime;
  return isSame ? Number(pid) : undefined;
}

/** False for a process that has stopped, ended or gone. */
function isRunning(pid: number): boolean {
  const fields = fieldsOf(pid);
  return fields !== undefined && !isEnded(pid, fields) && !'Tt'.includes(fields[0] as string);
}

/** In a wait that no signal but the last ends, if any does; or its first thread has ended, and nobody sees the others stop. */
function isHeld(pid: number): boolean {
  return 'DZ'.includes(fieldsOf(pid)?.[0] ?? 'X');
}

/** Whether the first thread of a process runs, or waits for a processor. */
export function isBusy(pid: number): boolean {
  return fieldsOf(pid)?.[0] === 'R';
}

/** How many threads of a process run, or wait for a processor. */
export function busyThreadsOf(pid: number): number {
  return threadsOf(pid).filter((thread) => fieldsOf(`${pid}/task/${thread}`)?.[0] === 'R').length;
}

/** True while the process exists and has not ended; a zombie has ended. Linux only: reads /proc. */
export function isAlive(pid: number): boolean {
  return statOf(pid)?.ended === false;
}

/**
 * True once a process has given its memory back, by which it begins to end: its user, unless root, may then see no more of it.
 * True also for one that is gone.
 */
export function hasNoMemory(pid: number): boolean {
  return (readKernelFile(`/proc/${pid}/statm`) ?? '0 ').startsWith('0 ');
}

/** In clock ticks since boot, as proc_pid_stat(5) has it: with the process id it names a process for good. */
export function startTimeOf(pid: number): string | undefined {
  return fieldsOf(pid)?.[19];
}

/** True while that very process exists and has not ended: a process id is used again. */
export function isSameProcess(pid: number, startTime: string | undefined): boolean {
  const fields = fieldsOf(pid);
  return fields !== undefined && !isEnded(pid, fields) && fields[19] === startTime;
}

/**
 * How a process ended that nobody has waited for, as wait(2) tells; undefined while it has not, and once it is gone. Its parent
 * does not see that while another process traces it (ptrace(2)), unless that waits for it.
 */
export function waitStatusOf(pid: number): number | undefined {
  const fields = fieldsOf(pid);
  return fields !== undefined && isEnded(pid, fields) ? Number(fields[49]) : undefined;
}

/**
 * Whether a process was started by that one, `parent`, which is below this one. While that is there it can be seen. Once it is
 * gone, `perhaps`: then the first of all has its children, or another one that this process is below (prctl(2),
 * PR_SET_CHILD_SUBREAPER), as `systemd --user` is. Undefined for a process that is gone.
 */
export function isChildOf(
  pid: number,
  parent: number,
  parentStartTime: string | undefined,
): boolean | 'perhaps' | undefined {
  const fields = fieldsOf(pid);
  if (fields === undefined) return undefined;
  const above = Number(fields[1]);
  if (above === parent) {
    // Of one that is gone another process may have the id.
    const startTime = startTimeOf(parent);
    return startTime === undefined || startTime === parentStartTime;
  }
  // Looked at after that: what was its child then would have been below it still.
  if (isSameProcess(parent, parentStartTime)) return false;
  return Number(fields[19]) >= Number(parentStartTime) && isAbove(above) && !isCell(pid) && 'perhaps';
}

/** Whether a process is left of one that is gone, as a child of that or further below; below a cell nothing is. */
export function isLeft(pid: number): boolean {
  for (let each = pid; each > 1 && each !== process.pid && each !== STARTER && !isCell(each); ) {
    each = Number(fieldsOf(each)?.[1] ?? 0);
    if (isAbove(each)) return true;
  }
  return false;
}

/** What this process runs, wherever a version of it lies. */
const PROGRAM = `/${(process.argv[1] ?? '').split('/').slice(-2).join('/')}`;

/**
 * Whether a process is a cell: one beside this one, where the first of all is the daemon, is no orphan. Perhaps another
 * daemon's, or of an older build: all are started as PROGRAM KEY.sock KEY.token.
 */
function isCell(pid: number): boolean {
  const args = (readKernelFile(`/proc/${pid}/cmdline`) ?? '').split('\0');
  const [program = '', socket = '', token] = args.slice(-4, -1);
  return program.endsWith(PROGRAM) && socket.endsWith('.sock') && token === socket.replace(/sock$/, 'token');
}

/** It has children of its own: others do not become its. */
const STARTER = process.ppid;

/** Whether this process is below that one, and that one may have orphans; all are below the first, which has. */
function isAbove(pid: number): boolean {
  if (pid <= 1) return pid === 1;
  let above = process.ppid;
  while (above > 1 && above !== pid) above = Number(fieldsOf(above)?.[1] ?? 0);
  return above === pid && pid !== STARTER;
}

interface ProcessStat {
  pid: number;
  parent: number;
  session: number;
  /** Only a zombie is left. */
  ended: boolean;
}

function processes(wanted: (stat: ProcessStat) => boolean): ProcessStat[] {
  const found: ProcessStat[] = [];
  for (const name of withDescriptor(() => readdirSync('/proc'))) {
    const stat = /^\d+$/.test(name) ? statOf(Number(name)) : undefined;
    if (stat !== undefined && wanted(stat)) found.push(stat);
  }
  return found;
}

function statOf(pid: number): ProcessStat | undefined {
  const fields = fieldsOf(pid);
  return fields && { pid, parent: Number(fields[1]), session: Number(fields[3]), ended: isEnded(pid, fields) };
}

/** proc_pid_stat(5) from the state on; undefined for a process, or a thread (`PID/task/TID`), that is gone. */
function fieldsOf(pid: number | string): string[] | undefined {
  const stat = readKernelFile(`/proc/${pid}/stat`);
  return stat === undefined ? undefined : statFields(stat);
}

/** Not while only the first of its threads has, which is a zombie until the last one is gone. */
function isEnded(pid: number, fields: string[]): boolean {
  if (fields[0] !== 'Z' && fields[0] !== 'X') return false;
  // Whoever traces one of the others may leave that a zombie too.
  return Number(fields[17]) <= 1 || threadsOf(pid).every((thread) => fieldsOf(`${pid}/task/${thread}`)?.[0] === 'Z');
}

/** False for what no guest can be, whoever says so: this process, the first of all, and what stands for many (0, -1). */
function isOther(pid: number): boolean {
  return pid > 1 && pid !== process.pid;
}

/** To a process, or with a negative id to its group; one that is gone, or took another user's rights, hears nothing: then false. */
export function sendSignal(pid: number, name: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, name);
  } catch {
    return false;
  }
}
