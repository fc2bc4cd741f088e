import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, processes, type TaskSpec, until } from '../../test/nomad/agent.ts';
import { findNomad } from '../../test/nomad/build-nomad.ts';
import { DaemonProcess } from '../../test/support/daemon-process.ts';

// On a real Nomad, side by side with raw_exec: how long a task takes that only prints, and what one that sleeps holds.
// node bench/nomad/main.ts [rounds] [sleepers]

const [rounds = 20, sleepers = 20] = process.argv.slice(2).map(Number);
const HELLO = { javascript: 'console.log("hello")', python: 'print("hello")' };
const SLEEP = { javascript: 'setInterval(() => {}, 1e6)', python: 'import time; time.sleep(1e6)' };
type Language = keyof typeof HELLO;
const LANGUAGES: Language[] = ['javascript', 'python'];

const Resources = { CPU: 10, MemoryMB: 128 };
const raw = (language: Language, code: string): TaskSpec => ({
  Driver: 'raw_exec',
  Config:
    language === 'python'
      ? { command: 'python3', args: ['-c', code] }
      : { command: process.execPath, args: ['-e', code] },
  Resources,
});
const elide = (language: Language, code: string, isolation: string): TaskSpec => ({
  Config: { language, code, isolation },
  Resources,
});

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;

/** From the task's arrival to its end, in ms. */
async function hello(agent: Agent, task: TaskSpec): Promise<number> {
  const { allocation, events } = await agent.ended(await agent.run(task));
  if (allocation.ClientStatus !== 'complete') throw new Error(JSON.stringify(events));
  const at = (type: string) => events.find(({ Type }) => Type === type)?.Time ?? Number.NaN;
  return (at('Terminated') - at('Received')) / 1e6;
}

/** Proportional share of what everything below these processes holds, in bytes. */
function heldBelow(roots: number[]): number {
  const parents = new Map(processes().map((pid) => [pid, parentOf(pid)]));
  const isBelow = (pid: number): boolean => {
    const parent = parents.get(pid);
    return parent !== undefined && (roots.includes(parent) || isBelow(parent));
  };
  return [...parents.keys()].filter(isBelow).reduce((sum, pid) => sum + pss(pid), 0);
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
  const grown = () => heldBelow([agent.pid, daemon]) + pss(daemon);
  const start = grown();
  const job = await agent.run(task, { Type: 'service', Count: sleepers });
  await until('all run', async () => {
    const all = await agent.allocations(job);
    return all.length === sleepers && all.every(({ ClientStatus }) => ClientStatus === 'running');
  });
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  const bytes = (grown() - start) / sleepers;
  await agent.stop(job);
  await until('all are gone', async () =>
    (await agent.allocations(job)).every(({ ClientStatus }) => ClientStatus === 'complete'),
  );
  return bytes;
}

const nomad = findNomad();
if (nomad === undefined) throw new Error('nothing to measure');
for (const logs of ['direct', 'nomad']) {
  const directory = mkdtempSync(join(tmpdir(), 'elide-bench-'));
  await using daemon = await DaemonProcess.start();
  {
    const config = `    daemon_socket = "${daemon.socket}"\n    logs = "${logs}"`;
    await using agent = await Agent.start(nomad, directory, config);
    for (const language of LANGUAGES) {
      const kinds: Record<string, (code: string) => TaskSpec> = {
        raw_exec: (code) => raw(language, code),
        process: (code) => elide(language, code, 'process'),
        thread: (code) => elide(language, code, 'thread'),
      };
      if (language === 'python') delete kinds.thread;
      const times: Record<string, number[]> = {};
      for (const [kind, task] of Object.entries(kinds)) {
        await hello(agent, task(HELLO[language]));
        times[kind] = [];
      }
      for (let round = 0; round < rounds; round += 1) {
        for (const [kind, task] of Object.entries(kinds)) times[kind]?.push(await hello(agent, task(HELLO[language])));
      }
      const base = median(times.raw_exec as number[]);
      for (const [kind, all] of Object.entries(times)) {
        const ms = median(all);
        console.log(
          `logs ${logs}, ${language} hello, ${kind}: ${ms.toFixed(1)} ms (${(base / ms).toFixed(1)}x), ${all[0]?.toFixed(1)} to ${all.at(-1)?.toFixed(1)}`,
        );
      }
      const bytes: Record<string, number> = {};
      for (const [kind, task] of Object.entries(kinds))
        bytes[kind] = await asleep(agent, daemon.child.pid as number, task(SLEEP[language]));
      for (const [kind, value] of Object.entries(bytes)) {
        const ratio = (bytes.raw_exec as number) / value;
        console.log(
          `logs ${logs}, ${language} asleep, ${kind}: ${(value / 2 ** 20).toFixed(1)} MiB a task (${ratio.toFixed(1)}x less)`,
        );
      }
    }
  }
  rmSync(directory, { recursive: true, force: true });
}
