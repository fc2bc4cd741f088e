import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { DaemonUnderTest, pssMb } from './daemon-under-test.ts';
import { show, spreadOf, table } from './statistics.ts';

const ROUNDS = 7;
const MANY = 30;
const STATS = 200_000;

/** The measurements that `docs/design.md` rests its choices on. */
export async function choices(): Promise<string> {
  return [
    '## Choices',
    '',
    'What a process pays for what it loads, over a bare Node process (private memory; time until loaded):',
    '',
    await loads(),
    '',
    `A JavaScript context as a thread and as a process, ${MANY} idle of each, MiB of proportional set size each:`,
    '',
    await threadsAndProcesses(),
    '',
    `\`fs.statSync\` of a relative path, ${STATS} in a row, us each:`,
    '',
    await workingDirectory(),
  ].join('\n');
}

async function loads(): Promise<string> {
  const modules = {
    nothing: [],
    'the frames between daemon and cell': ['./frames.js'],
    'a gRPC server (grpc-js)': ['@grpc/grpc-js'],
    'TypeScript by oxc-transform': ['oxc-transform'],
    'TypeScript by Node itself (strips only)': ['strip'],
  };
  const figures = new Map<string, { mb: number[]; ms: number[] }>();
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [name, specifiers] of Object.entries(modules)) {
      const { mb, ms } = await load(specifiers);
      const known = figures.get(name) ?? { mb: [], ms: [] };
      known.mb.push(mb);
      known.ms.push(ms);
      figures.set(name, known);
    }
  }
  const bare = spreadOf(figures.get('nothing')?.mb as number[]).median;
  const rows = [...figures].slice(1).map(([name, { mb, ms }]) => {
    return [name, `+${(spreadOf(mb).median - bare).toFixed(1)} MiB`, `${show(spreadOf(ms), 0)} ms`];
  });
  return table(['loaded', 'memory', 'time'], rows);
}

async function load(specifiers: string[]): Promise<{ mb: number; ms: number }> {
  const script = `
    const started = performance.now();
    for (const specifier of ${JSON.stringify(specifiers)}) {
      if (specifier === 'strip') (await import('node:module')).stripTypeScriptTypes('let a: number = 1');
      else await import(specifier.startsWith('.') ? new URL(specifier, ${JSON.stringify(import.meta.url)}).href : specifier);
    }
    const ms = performance.now() - started;
    const rollup = (await import('node:fs')).readFileSync('/proc/self/smaps_rollup', 'utf8');
    console.log(JSON.stringify({ ms, mb: Number(/Private_Dirty:\\s+(\\d+)/.exec(rollup)[1]) / 1024 }));
  `;
  const cwd = fileURLToPath(new URL('../..', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { cwd });
  return JSON.parse(stdout);
}

async function threadsAndProcesses(): Promise<string> {
  const idle = 'setInterval(() => {}, 1e6)';
  const many = `
    const { Worker } = require('node:worker_threads');
    let online = 0;
    for (let i = 0; i < ${MANY}; i++) new Worker(${JSON.stringify(idle)}, { eval: true }).on('online', () => {
      if (++online === ${MANY}) setTimeout(() => console.log('up'), 1000);
    });
  `;
  const thread: number[] = [];
  const process: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const one = await resting([idle], 1);
    thread.push(((await resting([many], 1)) - one) / MANY);
    process.push((await resting(Array(MANY).fill(idle), MANY)) / MANY);
  }
  return table(
    ['as a', 'MiB each, median (min-max)'],
    [
      ['thread', show(spreadOf(thread), 1)],
      ['process', show(spreadOf(process), 1)],
    ],
  );
}

/** What some Node processes hold together, a second after they are up. */
async function resting(scripts: string[], count: number): Promise<number> {
  const children = scripts.map((script) => {
    const announce = script.includes('Worker') ? '' : 'setTimeout(() => console.log("up"), 1000);';
    return spawn(process.execPath, ['-e', announce + script], { stdio: ['ignore', 'pipe', 'inherit'] });
  });
  await Promise.all(children.map((child) => once(child.stdout, 'data')));
  const mb = await pssMb(children.slice(0, count).map(({ pid }) => pid as number));
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(children.map((child) => once(child, 'exit')));
  return mb;
}

async function workingDirectory(): Promise<string> {
  const code = `
    const fs = require('node:fs');
    fs.writeFileSync('here', '');
    for (let i = 0; i < 20_000; i++) fs.statSync('here');
    const started = performance.now();
    for (let i = 0; i < ${STATS}; i++) fs.statSync('here');
    console.log((performance.now() - started) * 1000 / ${STATS});
  `;
  await using daemon = await DaemonUnderTest.start();
  await daemon.createSession('s');
  const figures = { thread: [] as number[], process: [] as number[] };
  for (let round = 0; round < ROUNDS; round += 1) {
    const executionId = await daemon.execute('s', 'javascript', code);
    let text = '';
    for await (const { data } of daemon.output('s', executionId)) text += data;
    figures.thread.push(Number(text));
    const { stdout } = await promisify(execFile)(process.execPath, ['-e', code], { cwd: '/tmp' });
    figures.process.push(Number(stdout));
  }
  return table(
    ['in a', 'us, median (min-max)'],
    [
      ['thread, resolved against its own directory', show(spreadOf(figures.thread), 2)],
      ['process', show(spreadOf(figures.process), 2)],
    ],
  );
}
