import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { ControlGroups } from '../../src/supervisor/control-groups.ts';
import { removePlace } from '../support/control-groups.ts';

const MODULE = new URL('../../src/supervisor/control-groups.ts', import.meta.url).href;
/** Of the user nobody. */
const NOBODY = 65_534;
const VERSION_2 = existsSync('/sys/fs/cgroup/unified') ? '/sys/fs/cgroup/unified' : '/sys/fs/cgroup';

const children: ChildProcess[] = [];
const opened: ControlGroups[] = [];

afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  for (const control of opened.splice(0)) await control.close();
});

function open(): ControlGroups {
  const control = ControlGroups.open();
  opened.push(control);
  return control;
}

/** A process that stands for a cell. */
function startSleeper(): number {
  const child = spawn('sleep', ['1000']);
  children.push(child);
  return child.pid as number;
}

function groupsOf(pid: number): string {
  return readFileSync(`/proc/${pid}/cgroup`, 'utf8');
}

/** The daemon's directories, which those of its cells lie in; empty where there are no control groups. */
function directoriesOf(control: ControlGroups): string[] {
  const { cgroups } = control.add('probe', startSleeper());
  return [...new Set(Object.values(cgroups).map((directory) => dirname(directory)))];
}

/** Runs a script as a module in a process of its own; what it prints is its result, as JSON. */
function runScript(script: string, options: { uid?: number } = {}): unknown {
  const source = `import { ControlGroups } from ${JSON.stringify(MODULE)};\n${script}`;
  return JSON.parse(
    execFileSync(process.execPath, ['--input-type=module', '-e', source], { timeout: 60_000, ...options }).toString(),
  );
}

test('there are groups, or a reason why there are none', () => {
  const control = open();

  if (control.version === 0) {
    expect(control.why).toMatch(/^cgroup v2: .+; cgroup v1: .+/);
    expect(control.controllers.size).toBe(0);
    expect(control.add('a', process.pid)).toEqual({ version: 0, cgroups: {} });
  } else {
    expect(control.why).toBe('');
    expect([...control.controllers].every((name) => ['memory', 'pids', 'cpu'].includes(name))).toBe(true);
  }
});

test('with nothing wanted nothing is made, and that is the reason', () => {
  const control = ControlGroups.open([]);

  expect(control).toMatchObject({ version: 0, why: 'switched off' });
  expect(control.add('a', process.pid)).toEqual({ version: 0, cgroups: {} });
});

test('a user without rights gets a reason, not an error', () => {
  const found = runScript(
    'const { version, controllers, why } = ControlGroups.open();\nconsole.log(JSON.stringify({ version, size: controllers.size, why }));',
    process.getuid?.() === 0 ? { uid: NOBODY } : {},
  );

  expect(found).toMatchObject({ version: 0, size: 0 });
  expect((found as { why: string }).why).toMatch(/^cgroup v2: .+; cgroup v1: .+/);
});

test('a cell is moved into groups of its own, and weighs less than the daemon', () => {
  const control = open();
  const pid = startSleeper();
  const before = groupsOf(pid);

  const { version, cgroups } = control.add('abc', pid);

  expect(version).toBe(control.version);
  expect(Object.keys(cgroups)).toEqual([...control.controllers].filter((name) => name !== 'cpu'));
  const line = (name: string) => (version === 1 ? `\\d+:[^:]*${name}[^:]*` : '0:');
  for (const name of Object.keys(cgroups)) {
    expect(groupsOf(pid)).toMatch(new RegExp(`^${line(name)}:.*/elide-.*/cell-abc`, 'm'));
  }
  expect(groupsOf(pid) === before).toBe(control.version === 0);
  if (control.version !== 1 || !control.controllers.has('cpu')) return;
  const [, path = ''] = /\bcpu\b[^:]*:(.*)/.exec(groupsOf(pid)) ?? [];
  const shares = (group: string) => Number(readFileSync(join('/sys/fs/cgroup/cpu', group, 'cpu.shares'), 'utf8'));
  expect(shares(path)).toBeLessThan(1_024);
  expect(groupsOf(process.pid)).not.toContain('elide-');
});

test('what a cell uses is counted in one file, wherever there are groups that count', async () => {
  const control = open();
  const busy = spawn('sh', ['-c', 'read go; while :; do :; done']);
  children.push(busy);

  control.add('abc', busy.pid as number);

  const file = control.usageFile('abc');
  expect(file === undefined).toBe(control.version === 0 || !/cpuacct|^0:/m.test(groupsOf(busy.pid as number)));
  if (file === undefined) return;
  const before = readFileSync(file, 'utf8');
  busy.stdin.write('go\n');
  await expect.poll(() => readFileSync(file, 'utf8')).not.toBe(before);
  await control.remove('abc');
  expect(control.usageFile('abc')).toBeUndefined();
});

test('a cell that ended before it was moved is no error', () => {
  const control = open();
  const dead = Number(execFileSync('sh', ['-c', 'echo $$']).toString());

  expect(control.add('abc', dead).version).toBe(control.version);
});

test('the groups of a cell are removed with all that is left in them, and with groups of guests', async () => {
  const control = open();
  const left = startSleeper();
  const { cgroups } = control.add('abc', left);
  const guest = startSleeper();
  for (const directory of Object.values(cgroups)) {
    mkdirSync(join(directory, 'guest-1'));
    writeFileSync(join(directory, 'guest-1', 'cgroup.procs'), String(guest));
  }

  await control.remove('abc');

  expect(Object.values(cgroups).filter(existsSync)).toEqual([]);
  const killed = (pid: number) => children.find((child) => child.pid === pid);
  if (control.version > 0) {
    for (const pid of [left, guest]) await expect.poll(() => killed(pid)?.signalCode).toBe('SIGKILL');
  }
  await control.remove('abc');
});

test('close removes everything', async () => {
  const control = open();
  const own = directoriesOf(control);
  expect(own.length > 0).toBe(control.version > 0);

  await control.close();

  expect(own.filter(existsSync)).toEqual([]);
});

test('what dead daemons left is removed, unless one of their cells lives; a living daemon keeps its own', async () => {
  const control = open();
  const parents = directoriesOf(control).map((directory) => dirname(directory));
  const names = {
    empty: 'elide-999999999-1-empty',
    cell: 'elide-999999999-1-cell',
    reused: `elide-${process.pid}-1-old`,
  };
  const path = (parent: string, name: keyof typeof names) => join(parent, names[name]);
  const cell = startSleeper();
  open(); // has no cell, and so no process in its directories
  const ofThis = (parent: string) => readdirSync(parent).filter((name) => name.startsWith(`elide-${process.pid}-`));
  const living = parents.map(ofThis);
  for (const parent of parents) {
    for (const name of ['empty', 'cell', 'reused'] as const)
      mkdirSync(join(path(parent, name), 'cell-1'), { recursive: true });
    writeFileSync(join(path(parent, 'cell'), 'cell-1', 'cgroup.procs'), String(cell));
    mkdirSync(join(path(parent, 'cell'), 'cell-2'));
  }

  open();

  for (const [index, parent] of parents.entries()) {
    expect(ofThis(parent)).toEqual(expect.arrayContaining(living[index] ?? []));
    expect(existsSync(path(parent, 'empty'))).toBe(false);
    expect(existsSync(path(parent, 'reused'))).toBe(false); // the process of that number started at another time
    for (const name of ['cell-1', 'cell-2']) expect(existsSync(join(path(parent, 'cell'), name))).toBe(true);
  }
  const sleeper = children.find((child) => child.pid === cell);
  expect(sleeper?.signalCode).toBeNull();
  sleeper?.kill('SIGKILL');
  await expect.poll(() => sleeper?.signalCode).toBe('SIGKILL');
  open();
  for (const parent of parents) expect(existsSync(path(parent, 'cell'))).toBe(false);
});

/** Whatever version 2 controls on this machine stands for memory and pids: delegation is the same for all of them. */
function enableVersion2() {
  const [controller = ''] = readFileSync(join(VERSION_2, 'cgroup.controllers'), 'utf8').trim().split(' ');
  const control = join(VERSION_2, 'cgroup.subtree_control');
  const enabled = readFileSync(control, 'utf8').includes(controller);
  writeFileSync(control, `+${controller}`);
  const group = join(VERSION_2, `test-${process.pid}`);
  mkdirSync(group);
  const disable = () => {
    for (const directory of withAllBelow(group)) rmdirSync(directory);
    if (!enabled) writeFileSync(control, `-${controller}`);
  };
  return { controller, group, disable };
}

/** Version 2, or undefined where the kernel has none, or does not let this user try it; a daemon must find the same. */
function tryVersion2(): ReturnType<typeof enableVersion2> | undefined {
  try {
    return enableVersion2();
  } catch (refusal) {
    expect((refusal as NodeJS.ErrnoException).code).toMatch(/ENOENT|EACCES|EPERM|EROFS|EBUSY|EOPNOTSUPP|EINVAL/);
    expect(open().version).not.toBe(2);
    return undefined;
  }
}

/** A directory and all below it, children first. */
function withAllBelow(directory: string): string[] {
  return [...directoriesIn(directory).flatMap((name) => withAllBelow(join(directory, name))), directory];
}

function directoriesIn(directory: string): string[] {
  const entries = readdirSync(directory, { withFileTypes: true });
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

test('version 2: a daemon alone in its group moves below it and back; one that is not alone is told why not', () => {
  const version2 = tryVersion2();
  if (version2 === undefined) return;
  const { controller, group, disable } = version2;
  const script = `
    import { spawn } from 'node:child_process';
    import { readFileSync, writeFileSync } from 'node:fs';
    const group = ${JSON.stringify(group)};
    const where = (pid) => /^0::(.*)$/m.exec(readFileSync('/proc/' + pid + '/cgroup', 'utf8'))[1];
    writeFileSync(group + '/cgroup.procs', String(process.pid));
    const sleeper = spawn('sleep', ['1000']);
    const crowded = ControlGroups.open(['${controller}']);
    const crowdedWhere = where(process.pid);
    writeFileSync(${JSON.stringify(VERSION_2)} + '/cgroup.procs', String(sleeper.pid));
    const control = ControlGroups.open(['${controller}']);
    const daemon = where(process.pid);
    const added = control.add('abc', sleeper.pid);
    const cell = where(sleeper.pid);
    await control.close();
    const after = where(process.pid);
    sleeper.kill();
    writeFileSync(${JSON.stringify(VERSION_2)} + '/cgroup.procs', String(process.pid));
    console.log(JSON.stringify({ crowded: crowded.why, crowdedWhere, version: control.version, added, daemon, cell, after }));`;

  const name = `/test-${process.pid}`;
  let found: unknown;
  let left: string[];
  try {
    found = runScript(script);
  } finally {
    left = directoriesIn(group);
    disable();
  }

  expect(found).toMatchObject({
    crowded: expect.stringContaining('holds other processes than the daemon'),
    crowdedWhere: name,
    version: 2,
    added: { version: 2, cgroups: { [controller]: expect.stringMatching(/\/cell-abc$/) } },
    daemon: expect.stringMatching(`^${name}/elide-.*/daemon$`),
    cell: expect.stringMatching(`^${name}/elide-.*/cell-abc/cell$`),
    after: name,
  });
  expect(left).toEqual([]);
});

/** What a service manager does for a daemon: it is put into the group of its unit, which fails with EBUSY as it fails there. */
const entering = (unit: string) => `
  import { readFileSync, writeFileSync } from 'node:fs';
  process.env.SYSTEMD_EXEC_PID = String(process.pid);
  writeFileSync(${JSON.stringify(join(unit, 'cgroup.procs'))}, String(process.pid));
  const where = () => /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))[1];`;

test.each([
  ['has let its cells go', 'await control.close({ detach: true });'],
  ['has crashed', ''],
])('version 2: with a place, the group of a daemon that %s takes the next one, which finds the cells', (_, end) => {
  const version2 = tryVersion2();
  if (version2 === undefined) return;
  const { controller, group, disable } = version2;
  const unit = join(group, 'elide.service');
  mkdirSync(unit);
  writeFileSync(join(group, 'cgroup.subtree_control'), `+${controller}`);
  const place = `/${basename(group)}/cells/of-daemons`;
  const pid = startSleeper();
  const opening = `const control = ControlGroups.open(['${controller}'], '${place}');`;

  const cell = join('/', relative(VERSION_2, unit));
  let first: unknown;
  let living: string;
  let next: unknown;
  let left: string[];
  try {
    first = runScript(`${entering(unit)}
      ${opening}
      const { version } = control.add('abc', ${pid});
      console.log(JSON.stringify({ version, why: control.why, where: where() }));
      ${end}`);
    living = groupsOf(pid);
    next = runScript(`${entering(unit)}
      ${opening}
      control.adopt('abc');
      const found = control.usageFile('abc');
      const used = readFileSync(found, 'utf8');
      await control.remove('abc');
      await control.close();
      console.log(JSON.stringify({ version: control.version, where: where(), found, used }));`);
    left = withAllBelow(group).map((directory) => relative(group, directory));
  } finally {
    disable();
  }

  expect(first).toEqual({ version: 2, why: '', where: cell });
  expect(living).toMatch(new RegExp(`^0::${place}/elide-.*/cell-abc/cell$`, 'm'));
  expect(next).toMatchObject({
    version: 2,
    where: cell,
    found: expect.stringMatching(`${place}/elide-.*/cell-abc/cpu.stat$`),
    used: expect.stringContaining('usage_usec'),
  });
  expect(left.sort()).toEqual(['', 'cells', 'cells/of-daemons', 'elide.service']);
});

test("version 2: what systemd has started leaves its unit's group as it is, and says what may be done", () => {
  const version2 = tryVersion2();
  if (version2 === undefined) return;
  const { controller, group, disable } = version2;
  const script = `${entering(group)}
    const { version, why } = ControlGroups.open(['${controller}']);
    console.log(JSON.stringify({ version, why, where: where() }));`;

  let found: unknown[];
  try {
    found = [runScript(script), runScript(script)];
  } finally {
    disable();
  }

  const alike = {
    version: 0,
    why: expect.stringContaining('set controlGroups'),
    where: `/${basename(group)}`,
  };
  expect(found).toEqual([alike, alike]);
});

test('what lies in a place is in every hierarchy below the same group, which stays', async () => {
  const place = `/elide-test-${process.pid}`;
  const control = ControlGroups.open(undefined, place);
  const own = directoriesOf(control);

  await control.close();

  const inPlace = own.filter((directory) => basename(dirname(directory)) === basename(place));
  expect(inPlace).toEqual(own);
  expect(own.map((directory) => [existsSync(directory), existsSync(dirname(directory))])).toEqual(
    own.map(() => [false, true]),
  );
  removePlace(place);
});
