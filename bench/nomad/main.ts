import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Agent, processes, type TaskSpec, until } from '../../test/nomad/agent.ts';
import { findNomad } from '../../test/nomad/build-nomad.ts';
import { AGENT_ENV } from '../../test/nomad/host.ts';
import { DaemonProcess } from '../../test/support/daemon-process.ts';
import { PYTHON } from '../daemon-under-test.ts';
import { show, spreadOf, table } from '../statistics.ts';
import { stolenMs } from '../stolen.ts';

// On a real Nomad, side by side with raw_exec: how long a task takes that only prints, how soon its end is seen, what one
// that sleeps holds, and what two hundred of those cost the driver and its daemon. And with a driver that runs nothing: what
// is left is the agent's own.
// npm run bench:nomad -- [rounds] [sleepers] [many, or 0 for none of those]

const [rounds = 20, sleepers = 20, many = 200] = process.argv.slice(2).map(Number);
/** The last thing each does is to say when that is, in Unix ms. */
const HELLO = { javascript: 'console.log(Date.now())', python: 'import time; print(time.time() * 1000)' };
/** The agent has nothing left to do for the start of one that ends after a second. */
const LATE = {
  javascript: 'setTimeout(() => console.log(Date.now()), 1_000)',
  python: 'import time; time.sleep(1); print(time.time() * 1000)',
};
const SLEEP = { javascript: 'setInterval(() => {}, 1e6)', python: 'import time; time.sleep(1e6)' };
type Language = keyof typeof HELLO;
const LANGUAGES: Language[] = ['javascript', 'python'];
/** Nobody asks the agent how a task does while it runs: answers take the processors that it runs on. */
const QUIET_MS = 1_000;
/** A cell looks often at guests that have just started, and V8 compiles what runs once a second for minutes. */
const SETTLE_MS = 120_000;
/** Then so many looks of so long each: a machine that others use too has bad moments. */
const LOOKS = 5;
const LOOK_MS = 10_000;
/** How long many may take to start, and to end: `raw_exec` starts two processes for each. */
const MANY_LIMIT_MS = 300_000;

const Resources = { CPU: 10, MemoryMB: 64 };
const raw = (language: Language, code: string): TaskSpec => ({
  Driver: 'raw_exec',
  Config:
    language === 'python' ? { command: PYTHON, args: ['-c', code] } : { command: process.execPath, args: ['-e', code] },
  Resources,
});
const elide = (language: Language, code: string, isolation: string): TaskSpec => ({
  Config: { language, code, isolation },
  Resources,
});

const FLOOR: TaskSpec = { Driver: 'floor', Config: { says: 'nothing' }, Resources };

/** Puts the driver that runs nothing where an agent looks for drivers. */
function installFloor(directory: string): void {
  mkdirSync(join(directory, 'plugins'), { recursive: true });
  const command = `exec ${process.execPath} ${fileURLToPath(new URL('floor.ts', import.meta.url))}`;
  writeFileSync(join(directory, 'plugins', 'floor'), `#!/bin/sh\n${command}\n`, { mode: 0o755 });
}

/** From the start of the driver's executable to its handshake, in ms. */
async function handshakes(path: string): Promise<number[]> {
  const ms: number[] = [];
  while (ms.length < rounds) {
    const startedMs = performance.now();
    const child = spawn(path, { env: { ...process.env, ...AGENT_ENV }, stdio: ['ignore', 'pipe', 'ignore'] });
    await once(child.stdout, 'data');
    ms.push(performance.now() - startedMs);
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }
  return ms;
}

/** What a process holds that is in no file, in MiB. */
function anonymousMib(pid: number): number {
  return Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

/** From the task's arrival to its end, and from what it printed last to when its end was seen, in ms; it runs for `runsMs`. */
async function timed(agent: Agent, task: TaskSpec, runsMs = 0): Promise<{ whole: number; seen: number }> {
  const job = await agent.run(task);
  await settle(runsMs + QUIET_MS);
  const { allocation, events } = await agent.ended(job);
  if (allocation.ClientStatus !== 'complete') throw new Error(JSON.stringify(events));
  const at = (type: string) => (events.find(({ Type }) => Type === type)?.Time ?? Number.NaN) / 1e6;
  const printed = task.Driver === FLOOR.Driver ? Number.NaN : Number(await agent.logs(allocation.ID));
  return { whole: at('Terminated') - at('Received'), seen: at('Terminated') - printed };
}

/** Everything below these processes. */
function below(roots: number[]): number[] {
  const parents = new Map(processes().map((pid) => [pid, parentOf(pid)]));
  const isBelow = (pid: number): boolean => {
    const parent = parents.get(pid);
    return parent !== undefined && (roots.includes(parent) || isBelow(parent));
  };
  return [...parents.keys()].filter(isBelow);
}

function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) || undefined;
  } catch {
    return undefined;
  }
}

function pss(pid: number): number {
  try {
    return Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** What one more sleeping task holds: in the daemon, and in all below it and below the agent, in bytes. */
async function asleep(agent: Agent, daemon: number, task: TaskSpec): Promise<number> {
  const grown = () => [daemon, ...below([agent.pid, daemon])].reduce((sum, pid) => sum + pss(pid), 0);
  const start = grown();
  const job = await agent.run(task, { Type: 'service', Count: sleepers });
  await until('all run', async () => {
    const all = await agent.allocations(job);
    return all.length === sleepers && all.every(({ ClientStatus }) => ClientStatus === 'running');
  });
  await settle(2_000);
  const bytes = (grown() - start) / sleepers;
  await agent.stop(job);
  await until('all are gone', async () =>
    (await agent.allocations(job)).every(({ ClientStatus }) => ClientStatus === 'complete'),
  );
  return bytes;
}

interface Shares {
  driver: number;
  daemon: number;
  both: number;
  /** The agent, the daemon and everything below them. */
  all: number;
  /** What the host gave to others meanwhile, of all processors. */
  stolen: number;
  /** What the driver holds that is in no file, in MiB. */
  held: number;
}

/** CPU time while so many tasks sleep, in percent of a core, at each look. */
async function sleepingTasks(agent: Agent, daemon: number, task: TaskSpec): Promise<Shares[]> {
  const job = await agent.run(task, { Type: 'service', Count: many });
  const allRun = async () => {
    const all = await agent.allocations(job);
    return all.length === many && all.every(({ ClientStatus }) => ClientStatus === 'running');
  };
  await until('all run', allRun, MANY_LIMIT_MS);
  await settle(SETTLE_MS);
  const seen: Shares[] = [];
  while (seen.length < LOOKS) seen.push(await look(agent, daemon));
  await agent.stop(job);
  const allAreGone = async () =>
    (await agent.allocations(job)).every(({ ClientStatus }) => ClientStatus === 'complete');
  await until('all are gone', allAreGone, MANY_LIMIT_MS);
  return seen;
}

async function look(agent: Agent, daemon: number): Promise<Shares> {
  const before = new Map([agent.pid, daemon, ...below([agent.pid, daemon])].map((pid) => [pid, cpuMs(pid)]));
  const stolenBefore = stolenMs();
  await settle(LOOK_MS);
  const used = new Map([...before].map(([pid, ms]) => [pid, (Math.max(0, cpuMs(pid) - ms) * 100) / LOOK_MS]));
  const stolen = ((stolenMs() - stolenBefore) * 100) / LOOK_MS / cpus().length;
  const all = [...used.values()].reduce((sum, share) => sum + share, 0);
  const [driver, own] = [used.get(agent.pluginPid as number) as number, used.get(daemon) as number];
  return { driver, daemon: own, both: driver + own, all, stolen, held: anonymousMib(agent.pluginPid as number) };
}

const settle = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** 0 for a process that has ended. */
function cpuMs(pid: number): number {
  const ns = (thread: string) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0]);
  try {
    return readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => sum + ns(thread) / 1e6, 0);
  } catch {
    return 0;
  }
}

const nomad = findNomad();
if (nomad === undefined) throw new Error('nothing to measure');
for (const logs of ['direct', 'nomad']) {
  const directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
  await using daemon = await DaemonProcess.start();
  const daemonPid = daemon.child.pid as number;
  const [hellos, held, shares]: string[][][] = [[], [], []];
  const driver: string[] = [];
  {
    const config = `    daemon_socket = "${daemon.socket}"\n    logs = "${logs}"`;
    installFloor(directory);
    await using agent = await Agent.start(
      nomad,
      directory,
      config,
      `plugin "floor" {\n  config {\n    logs = "${logs}"\n  }\n}`,
    );
    const anonymous = () => anonymousMib(agent.pluginPid as number).toFixed(1);
    if (logs === 'direct') {
      driver.push(show(spreadOf(await handshakes(join(directory, 'plugins', 'elide')))), anonymous());
    }
    const floors: number[] = [];
    for (let round = -2; round < rounds; round += 1) {
      const { whole } = await timed(agent, FLOOR);
      if (round >= 0) floors.push(whole);
    }
    hellos?.push(['nothing at all', show(spreadOf(floors)), '', '', '']);
    for (const language of LANGUAGES) {
      const kinds: Record<string, (code: string) => TaskSpec> = {
        raw_exec: (code) => raw(language, code),
        process: (code) => elide(language, code, 'process'),
        thread: (code) => elide(language, code, 'thread'),
      };
      if (language === 'python') delete kinds.thread;
      const none = () => ({ whole: [] as number[], seen: [] as number[], late: [] as number[] });
      const times = new Map(Object.keys(kinds).map((kind) => [kind, none()]));
      // The first of each finds nothing booted ahead.
      for (let round = -2; round < rounds; round += 1) {
        for (const [kind, task] of Object.entries(kinds)) {
          const { whole, seen } = await timed(agent, task(HELLO[language]));
          const late = await timed(agent, task(LATE[language]), 1_000);
          if (round < 0) continue;
          times.get(kind)?.whole.push(whole);
          times.get(kind)?.seen.push(seen);
          times.get(kind)?.late.push(late.seen);
        }
      }
      const base = spreadOf(times.get('raw_exec')?.whole ?? []).median;
      for (const [kind, { whole, seen, late }] of times) {
        const ratio = (base / spreadOf(whole).median).toFixed(1);
        hellos?.push([
          `${language}, ${kind}`,
          show(spreadOf(whole)),
          `${ratio}x`,
          show(spreadOf(seen)),
          show(spreadOf(late)),
        ]);
      }
      let raws = 0;
      for (const [kind, task] of Object.entries(kinds)) {
        const mib = (await asleep(agent, daemonPid, task(SLEEP[language]))) / 2 ** 20;
        if (kind === 'raw_exec') raws = mib;
        held?.push([`${language}, ${kind}`, mib.toFixed(1), `${(raws / mib).toFixed(1)}x`]);
      }
      if (logs !== 'direct' || many === 0) continue;
      for (const [kind, task] of Object.entries(kinds)) {
        const seen = await sleepingTasks(agent, daemonPid, task(SLEEP[language]));
        const figures = (['driver', 'daemon', 'both', 'all', 'stolen', 'held'] as const).map((name) =>
          show(spreadOf(seen.map((each) => each[name]))),
        );
        shares?.push([`${language}, ${kind}`, ...figures]);
      }
    }
    driver.push(anonymous());
  }
  console.log(`## logs = "${logs}"\n`);
  if (logs === 'direct') {
    const [handshake, before, after] = driver;
    console.log(
      `The driver says its handshake ${handshake} ms after its start (aim: below 300), and holds ${before} MiB of`,
    );
    console.log(`anonymous memory before the first task (aim: below 45), and ${after} right after the last.\n`);
  }
  console.log(
    `A task that prints and ends, from received to terminated, ${rounds} rounds in turn; and how long after its last`,
  );
  console.log('word its end was seen, of that task and of one that does so after a second; ms, median (min-max).\n');
  const columns = ['task', 'received to terminated', 'raw_exec over it', 'end seen after', 'after a second'];
  console.log(`${table(columns, hellos ?? [])}\n`);
  console.log(`Memory of a task that sleeps, ${sleepers} at once: proportional set size of all that grows, MiB.\n`);
  console.log(`${table(['task', 'MiB', 'raw_exec over it'], held ?? [])}\n`);
  if (shares?.length) {
    console.log(
      `CPU time while ${many} tasks sleep and the agent asks for their figures each second, percent of a core, median`,
    );
    console.log(
      `(min-max) of ${LOOKS} looks of ${LOOK_MS / 1_000} s; all: with agent, cells and guests; and what of the processors`,
    );
    console.log(
      'the host gave to others meanwhile. The last column: anonymous memory of the driver then, MiB (aim: below 45).\n',
    );
    const head = ['task', 'driver', 'daemon', 'both (aim: below 2)', 'all', 'to others', 'driver holds'];
    console.log(`${table(head, shares)}\n`);
  }
  rmSync(directory, { recursive: true, force: true });
}
