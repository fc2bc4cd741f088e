import { afterAll, beforeAll, expect, test } from 'vitest';
import { DaemonProcess } from '../support/daemon-process.ts';
import { eventually } from '../support/eventually.ts';
import { Elidectl } from './elidectl.ts';

let daemon: DaemonProcess;
let ctl: Elidectl;

beforeAll(async () => {
  daemon = await DaemonProcess.start();
  ctl = new Elidectl(daemon.socket);
});
afterAll(() => daemon?.stop());

const run = (code: string, ...flags: string[]) => ctl.run(['run', '-l', 'js', ...flags, '-e', code]);

test.each([
  ['--cpu 100ms --grace 0s', 'for (;;);', 124, /timed_out, (forced|cell).*CPU time used; the limit is 100 ms/],
  [
    '--timeout 100ms --on-timeout kill',
    'process.on("SIGTERM", () => {}); setInterval(() => {}, 9)',
    124,
    // On a loaded machine its cell may have to go.
    /timed_out, (forced|cell)/,
  ],
  [
    '--timeout 4s --on-timeout USR1',
    'process.on("SIGUSR1", () => process.exit(3)); setInterval(() => {}, 9)',
    124,
    /timed_out, graceful, exit code 3/,
  ],
  [
    '--timeout 4s --on-timeout cancel',
    'process.on("SIGTERM", () => process.exit(4)); setInterval(() => {}, 9)',
    124,
    /timed_out, graceful, exit code 4/,
  ],
  ['--output 1kB --output-policy kill', 'for (;;) console.log("x".repeat(99))', 137, /output_exceeded, forced/],
  ['--memory 64', 'const held = []; setInterval(() => held.push(Buffer.alloc(4 << 20, 1)), 5)', 137, /memory_exceeded/],
])('run %s', async (flags, code, exitCode, said) => {
  const ended = await run(code, ...flags.split(' '));

  expect(ended.code).toBe(exitCode);
  expect(ended.stderr.toString()).toMatch(said);
});

test('run --output keeps the head, and inspect says how much was dropped', async () => {
  const id = (
    await ctl.text(
      'run',
      '--detach',
      '-l',
      'js',
      '--output',
      '1kB',
      '-e',
      'for (let i = 0; i < 20; i++) console.log("x".repeat(99))',
    )
  ).trim();
  await ctl.text('wait', id);

  expect(await ctl.text('logs', id)).toBe(`${'x'.repeat(99)}\n`.repeat(10));
  expect(await ctl.text('inspect', id)).toMatch(/^dropped +1000 bytes of output$/m);
});

test.each([
  [['--processes', '0'], 'process_limit is 0'],
  [['--memory', 'much'], 'A size is for example'],
  [['--timeout', '1h', '--on-timeout', 'SIGNOPE'], 'unknown signal "SIGNOPE"'],
  [['--open-files', '100', '--require-enforcement'], 'open_file_limit is not enforced on this node'],
  [['--isolation', 'moon'], 'Allowed choices are thread, process'],
  [['--memory-soft', '64', '--memory', '32'], 'must be below memory_limit_mb, 32 MiB'],
])('run %j is refused with its reason', async (flags, said) => {
  const ended = await run('0', ...flags);

  expect(ended.code).toBe(125);
  expect(ended.stderr.toString()).toContain(said);
});

test('a session has defaults and ceilings, and shows them', async () => {
  await ctl.text(
    'session',
    'create',
    'strict',
    '--timeout',
    '100ms',
    '--max-timeout',
    '1s',
    '--weight',
    '7',
    '--max-queued',
    '3',
  );

  const byDefault = await run('setInterval(() => {}, 9)', '-s', 'strict');
  const above = await run('0', '-s', 'strict', '--timeout', '2s');

  expect(byDefault.code).toBe(124);
  expect(above.stderr.toString()).toContain('config.timeout is 2000 ms; the ceiling of session "strict" is 1000 ms');
  expect(await ctl.json('session', 'inspect', 'strict')).toMatchObject({
    config: { executionDefaults: { timeoutMs: 100 }, executionCeilings: { timeoutMs: 1000 }, weight: 7, maxQueued: 3 },
  });
  expect(await ctl.text('session', 'inspect', 'strict')).toMatch(/^ceiling timeoutMs +1000$/m);
});

test('a session has places, and a run waits for one no longer than it says', async () => {
  await ctl.text('session', 'create', 'narrow', '--max-running', '1');
  const holder = ctl.start([
    'run',
    '-l',
    'js',
    '-s',
    'narrow',
    '-e',
    'console.log("runs"); setInterval(() => {}, 1000)',
  ]);
  await holder.wrote('runs');

  const late = await run('0', '-s', 'narrow', '--queue-timeout', '100ms');

  expect(late.stderr.toString()).toContain('queue_timed_out');
  holder.child.kill('SIGTERM');
  await holder.ended;
});

test('stats shows what runs, live, and of one until its end', async () => {
  const id = (
    await ctl.text(
      'run',
      '--detach',
      '-l',
      'js',
      '-s',
      'stats',
      '-e',
      'console.log("12345"); setInterval(() => {}, 1000)',
    )
  ).trim();
  const following = ctl.start(['stats', id, '-s', 'stats', '--interval', '100ms', '--json']);
  await following.wrote(id);

  // A cell that is busy with its start may not answer at once.
  const row = new RegExp(`^stats +${id} +[\\d.]+ +\\S+ +[\\d.]+ MiB .* 6 B `, 'm');
  await eventually('it is shown', async () => row.test(await ctl.text('stats', '-s', 'stats', '--once')));
  await ctl.text('stop', id, '-s', 'stats');
  const { code, stdout } = await following.ended;

  const rounds = stdout
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(code).toBe(0);
  expect(rounds.at(-1)).toMatchObject({ executionId: id, complete: true, stdoutBytes: 6 });
  expect(rounds[0]).toMatchObject({ complete: false, memoryBytes: expect.any(Number), threads: expect.any(Number) });
});

test('doctor says for every limit and engine what holds it', async () => {
  const document = (await ctl.json('doctor')) as { limits: { limit: string; engine: string; mechanism: string }[] };

  expect(document).toMatchObject({ healthy: true, capacity: { running: expect.any(Number), queued: 100_000 } });
  expect(new Set(document.limits.map(({ engine }) => engine))).toEqual(new Set(['thread', 'process', 'python']));
  expect(document.limits).toHaveLength(24);
  const text = await ctl.text('doctor');
  expect(text).toMatch(/^runs \d+ executions at a time; 100000 more may wait$/m);
  for (const { limit, engine, mechanism } of document.limits) {
    expect(text).toMatch(new RegExp(`^${limit} +${engine} +${mechanism}`, 'm'));
  }
});

test.each([
  ['signal --tree', [], ['--tree']],
  ['run --signal-tree', ['--signal-tree'], []],
])('with %s a signal reaches child processes', async (_, whole, once) => {
  const code = `process.on('SIGHUP', () => console.log('parent heard'));
    process.getBuiltinModule('child_process').spawn('sh', ['-c', 'trap "echo child heard; exit" HUP; echo ready; while :; do sleep 0.01; done'], { stdio: 'inherit' });
    setInterval(() => {}, 1000)`;
  const id = (await ctl.text('run', '--detach', '-l', 'js', ...whole, '-s', 'tree', '-e', code)).trim();
  const logs = ctl.start(['logs', '-f', '-s', 'tree', id]);
  await logs.wrote('ready');

  await ctl.text('signal', ...once, '-s', 'tree', id, 'HUP');
  await logs.wrote('child heard');

  await ctl.text('stop', '--signal', 'KILL', '-s', 'tree', id);
  await logs.ended;
});
