import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join, normalize, relative } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { nanoid } from 'nanoid';
import { killAll, processesOf, tryRemove } from '../cgroup-directory.ts';
import { startTimeOf } from '../processes.ts';

/** The controllers a daemon has a use for. */
export const CONTROLLERS = ['memory', 'pids', 'cpu'] as const;
export type Controller = (typeof CONTROLLERS)[number];

/** What the cells get where a processor is contended; the default, which the daemon keeps, is 1024 (v1) and 100 (v2). */
const CELL_SHARES = 512;
const CELL_WEIGHT = 50;
/** The daemon's own on v2, where it is one group beside those of its cells. */
const DAEMON_WEIGHT = 1_000;

/** How often a directory that is still busy is tried again, and for how long, in ms. */
const REMOVE_RETRY_MS = 5;
const REMOVE_LIMIT_MS = 2_000;

/** `elide-PID-STARTTIME-RANDOM`: says whether the daemon that made it still lives. */
const DAEMON_DIRECTORY = /^elide-(\d+)-(\d+)-/;

/** Where one cell may make groups for its guests: what `GuestGroups` takes. */
export interface CellGroups {
  /** 0: nowhere. */
  version: 0 | 1 | 2;
  /** Absolute directories by controller: `memory` and `pids`, those of them that there are. */
  cgroups: Record<string, string>;
}

/** What {@link ControlGroups} found: directories of its own, by controller. Those of version 2 are one and the same. */
interface Layout {
  version: 0 | 1 | 2;
  directories: Map<Controller, string>;
  /** Version 1, where it is mounted: counts CPU time, as each group of version 2 does. */
  accounting?: string | undefined;
  why: string;
  /** The daemon was moved out of this group, which may not hold processes beside groups. */
  movedFrom?: string;
}

/**
 * The daemon's control groups (Linux cgroups, version 1 or 2): one directory below its own group, or in a place that it is
 * told, and in it one for each cell. Where that is not possible it has version 0 and says why.
 */
export class ControlGroups {
  readonly version: 0 | 1 | 2;
  readonly controllers: ReadonlySet<Controller>;
  /** Why there are none, one line for people; empty when there are. */
  readonly why: string;
  readonly #layout: Layout;
  readonly #cells = new Set<string>();
  /** Groups that an older daemon made for cells that were taken over, by cell. */
  readonly #adopted = new Map<string, string[]>();
  /** Read once: dead daemons make no more of them. */
  #older: Map<string, string[]> | undefined;

  private constructor(layout: Layout) {
    this.#layout = layout;
    this.version = layout.version;
    this.controllers = new Set(layout.directories.keys());
    this.why = layout.why;
  }

  /**
   * Makes the daemon's directory and removes those of daemons that are gone with all their cells. Never throws. On
   * version 2 this process, if it is alone in its group, moves into a group below it; one that systemd has started does
   * not, as no other could be started in its group while cells of it live. `place` is a group from the root of its
   * hierarchy, as in `/proc/PID/cgroup`: the directory lies there, is made if need be, and stays. Nothing wanted: nothing
   * is done.
   */
  static open(wanted: readonly Controller[] = CONTROLLERS, place = ''): ControlGroups {
    if (wanted.length === 0) return new ControlGroups({ version: 0, directories: new Map(), why: 'switched off' });
    const name = `elide-${process.pid}-${startTimeOf(process.pid)}-${nanoid(8)}`;
    const reasons: string[] = [];
    for (const attempt of [openVersion2, openVersion1]) {
      const layout = attempt(name, wanted, place && normalize(place));
      if (layout.version > 0) return new ControlGroups(layout);
      reasons.push(layout.why);
    }
    return new ControlGroups({ version: 0, directories: new Map(), why: reasons.join('; ') });
  }

  /**
   * Makes a cell's groups and moves its process in, which has no children yet, or they stay outside. Throws the file
   * system's error; that the process is gone already is none.
   */
  add(cellKey: string, pid: number): CellGroups {
    const { version, directories } = this.#layout;
    this.#cells.add(cellKey);
    const groups = this.#groupsOf(cellKey);
    for (const group of groups) mkdirSync(group, { recursive: true });
    const cgroups: Record<string, string> = {};
    for (const [controller, parent] of directories) {
      const directory = join(parent, `cell-${cellKey}`);
      if (controller !== 'cpu') cgroups[controller] = directory;
      else if (version === 1) write(directory, 'cpu.shares', CELL_SHARES);
      else write(directory, 'cpu.weight', CELL_WEIGHT);
    }
    if (version === 1) for (const group of groups) moveInto(group, pid);
    const [directory] = Object.values(cgroups);
    if (version === 2 && directory !== undefined) {
      write(directory, 'cgroup.subtree_control', enabling(Object.keys(cgroups)));
      moveInto(makeDirectory(directory, 'cell'), pid);
    } else if (version === 2) {
      for (const parent of directories.values()) moveInto(join(parent, `cell-${cellKey}`), pid);
    }
    return { version, cgroups };
  }

  /** The file that says how much CPU time a cell uses with all its guests that are processes; undefined when there is none. */
  usageFile(cellKey: string): string | undefined {
    const groups = this.#adopted.get(cellKey) ?? this.#groupsOf(cellKey);
    const name = this.version === 2 ? 'cpu.stat' : 'cpuacct.usage';
    return groups.map((group) => join(group, name)).find(existsSync);
  }

  /** Takes over the groups that an older daemon made for a cell, wherever that had its own. */
  adopt(cellKey: string): void {
    this.#older ??= this.#groupsOfOthers();
    this.#adopted.set(cellKey, this.#older.get(`cell-${cellKey}`) ?? []);
    this.#cells.add(cellKey);
  }

  /** Removes what an older daemon made for a cell that is gone. */
  async removeOf(cellKey: string): Promise<void> {
    this.adopt(cellKey);
    await this.remove(cellKey);
  }

  /** Removes a cell's groups, with force against what may be left in them. Resolves when they are gone, or after 2 s. */
  async remove(cellKey: string): Promise<void> {
    if (!this.#cells.delete(cellKey)) return;
    const adopted = this.#adopted.get(cellKey);
    this.#adopted.delete(cellKey);
    const groups = adopted ?? this.#groupsOf(cellKey);
    await Promise.all(groups.map(removeTree));
    // The last cell of the older daemon leaves nothing of that behind.
    for (const group of adopted ?? []) removeOfDead(dirname(group));
  }

  /** Removes every cell's groups and the daemon's own; with `detach` leaves them to the cells, which live on. */
  async close({ detach = false } = {}): Promise<void> {
    if (detach) return;
    await Promise.all([...this.#cells].map((cellKey) => this.remove(cellKey)));
    const { movedFrom, directories } = this.#layout;
    for (const directory of this.#unique()) {
      if (movedFrom !== undefined) moveBack(movedFrom, directory, [...directories.keys()]);
      await removeTree(directory);
    }
  }

  /** The groups that daemons made for cells, by name: those of one cell have the same one. */
  #groupsOfOthers(): Map<string, string[]> {
    // Groups of guests are not looked through, which may be many; but this daemon may be in one itself.
    const tops = new Set([...this.#unique().map(dirname), ...hierarchies()]);
    const daemons = new Set([...tops].flatMap(daemonDirectoriesBelow));
    const groups = [...daemons].flatMap((each) => subdirectories(each).map((name) => join(each, name)));
    return Map.groupBy(groups, (group) => basename(group));
  }

  #groupsOf(cellKey: string): string[] {
    return this.#unique().map((parent) => join(parent, `cell-${cellKey}`));
  }

  #unique(): string[] {
    const { directories, accounting } = this.#layout;
    return [...new Set([...directories.values(), ...(accounting === undefined ? [] : [accounting])])];
  }
}

// ------------------------------------------------------------------------------------------------------- version 2

function openVersion2(name: string, wanted: readonly Controller[], place: string): Layout {
  const none = (why: string): Layout => ({ version: 0, directories: new Map(), why: `cgroup v2: ${why}` });
  const start = startingDirectory('cgroup2', '', place);
  if (start === undefined) return none('not mounted, or this process is in none of its groups');
  const made: string[] = [];
  const make = (above: string, child: string) => {
    const directory = makeDirectory(above, child);
    made.unshift(directory);
    return directory;
  };
  let movedFrom: string | undefined;
  try {
    const parent = makePlace(start, place, wanted);
    const controllers = offeredBy(parent, wanted);
    removeStale(parent);
    const directory = make(parent, name);
    try {
      enable(parent, controllers);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw error;
      if (place === '' && isMainProcessOfUnit()) {
        throw new Error(`"${parent}" is a systemd unit's, and would keep it from starting again: set controlGroups`);
      }
      const others = processesOf(parent).filter((pid) => pid !== process.pid);
      if (others.length > 0) throw new Error(`"${parent}" holds other processes than the daemon, ${others[0]} for one`);
      moveInto(make(directory, 'daemon'), process.pid);
      movedFrom = parent;
      enable(parent, controllers);
      enable(directory, controllers);
      if (controllers.includes('cpu')) write(join(directory, 'daemon'), 'cpu.weight', DAEMON_WEIGHT);
    }
    enable(directory, controllers);
    const directories = new Map(controllers.map((controller) => [controller, directory]));
    return { version: 2, directories, why: '', ...(movedFrom !== undefined && { movedFrom }) };
  } catch (error) {
    if (movedFrom !== undefined) moveBack(movedFrom, made.at(-1) ?? movedFrom, wanted);
    for (const directory of made) tryRemove(directory);
    return none((error as Error).message);
  }
}

/** Makes the groups down to a place where they are not there yet, and lets each have what is wanted. */
function makePlace(start: string, place: string, wanted: readonly Controller[]): string {
  let group = start;
  for (const name of place.split('/').filter(Boolean)) {
    enable(group, offeredBy(group, wanted));
    group = join(group, name);
    mkdirSync(group, { recursive: true });
  }
  return group;
}

function offeredBy(group: string, wanted: readonly Controller[]): Controller[] {
  const offered = readWords(group, 'cgroup.controllers');
  const controllers = wanted.filter((controller) => offered.includes(controller));
  if (controllers.length === 0) throw new Error(`"${group}" offers none of ${wanted.join(', ')}`);
  return controllers;
}

/** Lets the groups below one have controllers. Where they have, nothing is written: it may be somebody else's. */
function enable(group: string, controllers: readonly Controller[]): void {
  const enabled = readWords(group, 'cgroup.subtree_control');
  if (controllers.every((controller) => enabled.includes(controller))) return;
  write(group, 'cgroup.subtree_control', enabling(controllers));
}

/** `SYSTEMD_EXEC_PID` of systemd.exec(5), from systemd 248 on: the next main process will be put into the group that this one has. */
function isMainProcessOfUnit(): boolean {
  return process.env.SYSTEMD_EXEC_PID === String(process.pid);
}

/** Undoes the move of {@link openVersion2}, as far as that goes: a group that others use now stays as it is. */
function moveBack(own: string, directory: string, controllers: readonly Controller[]): void {
  const disabling = controllers.map((controller) => `-${controller}`).join(' ');
  try {
    for (const from of [directory, own]) write(from, 'cgroup.subtree_control', disabling);
    moveInto(own, process.pid);
  } catch {
    // the daemon stays where it is, and its directory is removed by the next one
  }
}

function enabling(controllers: readonly string[]): string {
  return controllers.map((controller) => `+${controller}`).join(' ');
}

// ------------------------------------------------------------------------------------------------------- version 1

function openVersion1(name: string, wanted: readonly Controller[], place: string): Layout {
  const directories = new Map<Controller, string>();
  const reasons: string[] = [];
  const make = (controller: string): string => {
    const start = startingDirectory('cgroup', controller, place);
    if (start === undefined) throw new Error(`${controller} is not mounted`);
    const parent = join(start, place);
    removeStale(parent);
    const directory = join(parent, name);
    mkdirSync(directory, { recursive: true }); // several controllers may share a hierarchy
    return directory;
  };
  for (const controller of wanted) {
    try {
      const directory = make(controller);
      directories.set(controller, directory);
      // A group weighs on each processor a share of this, by what it runs there.
      if (controller === 'cpu') write(directory, 'cpu.shares', CELL_SHARES * availableParallelism());
    } catch (error) {
      reasons.push((error as Error).message);
    }
  }
  if (directories.size === 0) return { version: 0, directories, why: `cgroup v1: ${reasons.join(', ')}` };
  let accounting: string | undefined;
  try {
    accounting = make('cpuacct');
  } catch {
    // one look at each process instead
  }
  return { version: 1, directories, accounting, why: '' };
}

// ---------------------------------------------------------------------------------------------------------- shared

type Hierarchy = 'cgroup' | 'cgroup2';

/** What a place is below: the root of its hierarchy, or with no place this process's own group. Undefined: not to be seen. */
function startingDirectory(type: Hierarchy, controller: string, place: string): string | undefined {
  return place === '' ? ownDirectory(type, controller) : mountsOf(type, controller)[0]?.mountPoint;
}

/** The roots of all hierarchies that a daemon has a use for. */
function hierarchies(): string[] {
  const version1 = [...CONTROLLERS, 'cpuacct'].map((controller) => mountsOf('cgroup', controller)[0]);
  return [mountsOf('cgroup2', '')[0], ...version1].flatMap((mount) => mount?.mountPoint ?? []);
}

function daemonDirectoriesBelow(directory: string): string[] {
  return subdirectories(directory).flatMap((name) => {
    const path = join(directory, name);
    return DAEMON_DIRECTORY.test(name) ? [path] : daemonDirectoriesBelow(path);
  });
}

/** The directory of this process's own group. */
function ownDirectory(type: Hierarchy, controller: string): string | undefined {
  const path = readLines('/proc/self/cgroup')
    .map((line) => /^\d+:([^:]*):(.*)$/.exec(line))
    .find((match) => match?.[1]?.split(',').includes(controller))?.[2];
  if (path === undefined) return undefined;
  for (const { root, mountPoint } of mountsOf(type, controller)) {
    // In a container the mount may show only a part of the tree.
    const below = relative(root, path);
    if (!below.startsWith('..')) return join(mountPoint, below);
  }
  return undefined;
}

function mountsOf(type: Hierarchy, controller: string): { root: string; mountPoint: string }[] {
  return readLines('/proc/self/mountinfo').flatMap((line) => {
    const [before = '', after = ''] = line.split(' - ');
    const [, , , root = '', mountPoint = ''] = before.split(' ').map(unescapeOctal);
    const [mounted, , options = ''] = after.split(' ');
    if (mounted !== type || (type === 'cgroup' && !options.split(',').includes(controller))) return [];
    return [{ root, mountPoint }];
  });
}

function readLines(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n').filter(Boolean);
  } catch {
    return [];
  }
}

function readWords(directory: string, file: string): string[] {
  return readFileSync(join(directory, file), 'utf8').trim().split(/\s+/);
}

/** Blanks in the fields of proc_pid_mountinfo(5). */
function unescapeOctal(field: string): string {
  return field.replaceAll(/\\(\d{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

function makeDirectory(parent: string, name: string): string {
  const directory = join(parent, name);
  mkdirSync(directory);
  return directory;
}

function write(directory: string, file: string, value: string | number): void {
  writeFileSync(join(directory, file), String(value));
}

function moveInto(directory: string, pid: number): void {
  try {
    write(directory, 'cgroup.procs', pid);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Removes what dead daemons left. */
function removeStale(parent: string): void {
  for (const name of subdirectories(parent)) removeOfDead(join(parent, name));
}

/** Removes the directory of a daemon if that is dead. One with a process in it, a cell that outlives it, is not touched. */
function removeOfDead(daemonDirectory: string): void {
  const [, pid, startTime] = DAEMON_DIRECTORY.exec(basename(daemonDirectory)) ?? [];
  if (pid === undefined || startTimeOf(Number(pid)) === startTime) return;
  const tree = treeBelow(daemonDirectory);
  if (tree.every((directory) => processesOf(directory).length === 0)) tree.forEach(tryRemove);
}

async function removeTree(directory: string): Promise<void> {
  const endMs = performance.now() + REMOVE_LIMIT_MS;
  for (;;) {
    const tree = treeBelow(directory);
    tree.forEach(killAll);
    if (tree.map(tryRemove).at(-1) || performance.now() > endMs) return;
    await wait(REMOVE_RETRY_MS);
  }
}

/** A directory and all below it, children first. */
function treeBelow(directory: string): string[] {
  return [...subdirectories(directory).flatMap((name) => treeBelow(join(directory, name))), directory];
}

function subdirectories(directory: string): string[] {
  try {
    const entries = readdirSync(directory, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  } catch {
    return [];
  }
}
