import { randomInt, randomUUID } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DaemonProcess } from '../support/daemon-process.ts';
import { Agent, type Allocation, until } from './agent.ts';
import { findNomad } from './build-nomad.ts';

// Batches and services on a real Nomad while daemon, plugin and agent end and come back, in any order, and counts of it.
// npm run soak:nomad -- [minutes] [direct|nomad]

const [minutes = '5', logs = 'direct'] = process.argv.slice(2);
const endMs = Date.now() + Number(minutes) * 60_000;
const nomad = findNomad();
if (nomad === undefined) throw new Error('there is no Nomad: npm run build:nomad');

const BATCH = 12;
/** What each task of a batch prints, and its exit code: its place in the batch. */
const BATCHES = {
  javascript:
    'const i = process.env.NOMAD_ALLOC_INDEX; console.log("begun"); setTimeout(() => { console.log(i); process.exit(Number(i)) }, 500 * i)',
  python:
    'import os, sys, time\ni = int(os.environ["NOMAD_ALLOC_INDEX"])\nprint("begun", flush=True)\ntime.sleep(i / 2)\nprint(i)\nsys.exit(i)',
};
/** Each counts until it is told to stop. */
const SERVICES = {
  javascript:
    'let n = 0; process.on("SIGTERM", () => { console.log("end"); process.exit(9) }); setInterval(() => console.log(n++), 20)',
  python:
    'import signal, sys, time\ndef end(*_):\n  print("end", flush=True)\n  sys.exit(9)\nsignal.signal(signal.SIGTERM, end)\nn = 0\nwhile True:\n  print(n, flush=True)\n  n += 1\n  time.sleep(0.02)',
};
const KINDS = [
  ['javascript', 'process'],
  ['javascript', 'thread'],
  ['python', 'process'],
] as const;

const counts = { rounds: 0, tasks: 0, services: 0, disturbances: new Map<string, number>(), wrong: 0 };
const directory = mkdtempSync(join(tmpdir(), 'elide-soak-'));
const startDaemon = () =>
  DaemonProcess.start('--socket', join(directory, 'd.sock'), '--state-dir', join(directory, 's'));
let daemon = await startDaemon();
const config = `    daemon_socket = "${join(directory, 'd.sock')}"\n    logs = "${logs}"`;

function wrong(what: string): void {
  counts.wrong += 1;
  console.log(`  wrong: ${what}`);
}

const summary = () => {
  const times = [...counts.disturbances].map(([name, count]) => `${count} x ${name}`);
  return `${counts.rounds} rounds, ${counts.tasks} tasks of batches, ${counts.services} services, ${counts.wrong} wrong; ${times.join(', ')}`;
};

{
  await using agent = await Agent.start(nomad, join(directory, 'n'), config);
  const pause = (mostMs: number) => new Promise((resolve) => setTimeout(resolve, randomInt(mostMs)));
  const disturbances: Record<string, () => Promise<void>> = {
    'daemon killed': async () => {
      await daemon.stop('SIGKILL');
      await pause(3_000);
      daemon = await startDaemon();
    },
    'plugin killed': async () => {
      const { pluginPid } = agent;
      if (pluginPid !== undefined) process.kill(pluginPid, 'SIGKILL');
    },
    'agent stopped': async () => {
      await agent.end();
      await pause(3_000);
      await agent.restart();
    },
    'agent killed': async () => {
      await agent.end('SIGKILL');
      await pause(3_000);
      await agent.restart();
    },
  };
  const once = async (name: string) => {
    counts.disturbances.set(name, (counts.disturbances.get(name) ?? 0) + 1);
    await disturbances[name]?.();
  };
  const ended = ({ ClientStatus }: Allocation) => ClientStatus === 'complete' || ClientStatus === 'failed';

  const checkBatch = async (job: string) => {
    let all: Allocation[] = [];
    await until(`${job} has ended`, async () => {
      all = await agent.allocations(job);
      return all.length >= BATCH && all.every(ended);
    });
    counts.tasks += all.length;
    if (all.length !== BATCH) wrong(`${job}: ${all.length} allocations`);
    const codes: number[] = [];
    for (const { ID, TaskStates } of all) {
      const events = TaskStates?.t?.Events ?? [];
      const code = events.findLast(({ Type }) => Type === 'Terminated')?.ExitCode ?? -1;
      codes.push(code);
      const printed = await agent.logs(ID);
      if (printed !== `begun\n${code}\n`) wrong(`${job} ${ID}: ${JSON.stringify({ code, printed, events })}`);
    }
    if (new Set(codes).size !== BATCH) wrong(`${job}: exit codes ${codes.join(' ')}`);
  };
  const checkService = async (job: string, id: string) => {
    await agent.stop(job);
    const { allocation, end } = await agent.ended(job);
    counts.services += 1;
    const restarts = allocation.TaskStates?.t?.Restarts;
    if (allocation.ID !== id || restarts !== 0 || end?.ExitCode !== 9) {
      wrong(`${job}: ${JSON.stringify({ id, restarts, allocation })}`);
    }
    const lines = (await agent.logs(id)).split('\n');
    if (lines.slice(0, -2).some((line, n) => line !== String(n)) || lines.at(-2) !== 'end') {
      wrong(`${job}: its log is not whole: ${lines.length} lines, ${lines.slice(-4).join(' ')}`);
    }
  };

  while (Date.now() < endMs) {
    const services: [string, string][] = [];
    const batches: string[] = [];
    for (const [language, isolation] of KINDS) {
      const name = `${language}-${isolation}-${randomUUID().slice(0, 8)}`;
      const task = (code: string) => ({ Config: { language, isolation, code }, Resources: { CPU: 5, MemoryMB: 32 } });
      const service = await agent.run(task(SERVICES[language]), { Type: 'service' }, `service-${name}`);
      services.push([service, (await agent.running(service)).ID]);
      batches.push(await agent.run(task(BATCHES[language]), { Count: BATCH }, `batch-${name}`));
    }
    // An agent that dies before it has noted that a task began starts it anew.
    for (const job of batches) {
      await until(`${job} has begun`, async () => {
        const all = await agent.allocations(job);
        return all.length === BATCH && all.every(({ ClientStatus }) => ClientStatus !== 'pending');
      });
    }
    const names = Object.keys(disturbances);
    for (let left = randomInt(1, 4); left > 0; left -= 1) {
      await pause(1_500);
      await once(names[randomInt(names.length)] as string);
    }
    for (const job of batches) await checkBatch(job).catch((error) => wrong((error as Error).message));
    for (const [job, id] of services) await checkService(job, id).catch((error) => wrong((error as Error).message));
    counts.rounds += 1;
    console.log(summary());
  }

  const memory = (pid: number) => /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1];
  const open = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;
  for (const [name, pid] of [
    ['daemon', daemon.child.pid],
    ['plugin', agent.pluginPid],
  ] as const) {
    if (pid !== undefined) console.log(`${name}: ${open(pid)} descriptors, ${memory(pid)} KiB`);
  }
}
await daemon.stop();
rmSync(directory, { recursive: true, force: true });
console.log(summary());
process.exitCode = counts.wrong === 0 ? 0 : 1;
