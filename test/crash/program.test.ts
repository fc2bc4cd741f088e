import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, existsSync, openSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { DeleteSessionRequest, LadderRung, LifecycleState } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import { TestClient } from '../support/client.ts';
import { descendants, eventually, isAlive, temporaryDirectory } from '../support/daemon.ts';
import { cellsBelow, listensOnTcp } from '../support/processes.ts';

const MAIN = fileURLToPath(new URL('../../dist/src/main.js', import.meta.url));
const IDLE = "process.on('SIGTERM', () => console.log('asked')); setInterval(() => {}, 1000); console.log('ready');";
const DEFAULT_ACTION = "setInterval(() => {}, 1000); console.log('ready');";
const PYTHON_IDLE =
  'import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint("ready", flush=True)\ntime.sleep(600)';

/** The daemon as a program of its own. */
class Program implements AsyncDisposable {
  readonly root: string;
  readonly child: ChildProcess;
  readonly socket: string;
  readonly client: TestClient;
  /** What it printed; grows. */
  out = '';
  err = '';
  readonly exited: Promise<[number | null, NodeJS.Signals | null]>;

  /** `log`: a descriptor for standard error, and standard output with it. */
  constructor(root: string, flags: string[] = [], log?: number) {
    this.root = root;
    this.socket = join(root, 'd.sock');
    const standard = ['--socket', this.socket, '--state-dir', join(root, 's'), '--log-level', 'error'];
    const stdio = ['ignore', log ?? 'pipe', log ?? 'pipe'] as const;
    this.child = spawn(process.execPath, [MAIN, ...standard, ...flags], { stdio: [...stdio] });
    this.child.stdout?.on('data', (data) => {
      this.out += data;
    });
    this.child.stderr?.on('data', (data) => {
      this.err += data;
    });
    this.exited = once(this.child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
    this.client = new TestClient(`unix:${this.socket}`);
  }

  /** For one that cannot say so. */
  async answers(): Promise<this> {
    await eventually('the daemon answers', () =>
      this.client.call('health', {}).then(
        () => true,
        () => false,
      ),
    );
    return this;
  }

  async ready(): Promise<this> {
    await eventually('the daemon is ready', () => this.out.includes('\n') || this.child.exitCode !== null);
    if (this.child.exitCode !== null) throw new Error(`the daemon ended: ${this.err}`);
    return this;
  }

  /** Starts a snippet and waits until it printed `ready`. */
  async start(executionId: string, code: string, language = 'javascript'): Promise<void> {
    await this.client.createSession('s');
    await this.client.execute({ sessionId: 's', executionId, code, language });
    await eventually(`${executionId} is ready`, async () =>
      (await this.client.status('s', executionId)).stdout.includes('ready'),
    );
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client.api.close();
    this.child.kill('SIGKILL');
    await this.exited;
    // They would wait for the next daemon, and there is none.
    for (const pid of cellsBelow(this.root)) process.kill(pid, 'SIGKILL');
  }
}

test('the program says where it listens, once it does, and ends with code 0 on SIGTERM with everything gone', async () => {
  await using program = await new Program(temporaryDirectory()).ready();
  expect(program.out).toMatch(new RegExp(`^elide-daemon \\S+ ready on unix:${program.socket}\n$`));
  await program.start('js', DEFAULT_ACTION);
  await program.start('py', 'import time\nprint("ready", flush=True)\ntime.sleep(600)', 'python');
  const below = descendants(program.child.pid);
  expect(below.length).toBeGreaterThanOrEqual(2);

  program.kill('SIGTERM');

  expect(await program.exited).toEqual([0, null]);
  expect(below.filter(isAlive)).toEqual([]);
  expect(existsSync(program.socket)).toBe(false);
  expect(readdirSync(join(program.root, 's', 'work'))).toEqual([]);
  expect(program.err).toBe('');
});

test('with --on-stop detach its guests run on, and the next one has them', async () => {
  const root = temporaryDirectory();
  await using program = await new Program(root, ['--on-stop', 'detach']).ready();
  await program.start('py', PYTHON_IDLE, 'python');
  await program.start('js', IDLE);

  program.kill('SIGTERM');

  expect(await program.exited).toEqual([0, null]);
  await using next = await new Program(root).ready();
  for (const id of ['py', 'js']) expect((await next.client.status('s', id)).state).toBe(LifecycleState.RUNNING);
});

test('a hangup stops it as SIGTERM does', async () => {
  await using program = await new Program(temporaryDirectory()).ready();
  await program.start('js', DEFAULT_ACTION);
  const below = descendants(program.child.pid);

  program.kill('SIGHUP');

  expect(await program.exited).toEqual([0, null]);
  expect(below.filter(isAlive)).toEqual([]);
});

test('SIGUSR1 opens a debugger neither to the daemon nor to its cells', async () => {
  await using program = await new Program(temporaryDirectory()).ready();
  await program.start('js', IDLE);
  await program.start('py', PYTHON_IDLE, 'python');
  const processes = [program.child.pid as number, ...cellsBelow(program.root)];
  expect(processes.length).toBeGreaterThanOrEqual(3);

  for (const pid of processes) process.kill(pid, 'SIGUSR1');

  // Each answers by its event loop, which is where a debugger would be opened from.
  for (let round = 0; round < 20; round += 1) {
    for (const executionId of ['js', 'py'])
      await program.client.call('getExecutionMetrics', { sessionId: 's', executionId });
  }
  expect(processes.filter(isAlive)).toEqual(processes);
  expect(processes.flatMap(listensOnTcp)).toEqual([]);
});

test('a log that nobody reads holds nothing up', async () => {
  const root = temporaryDirectory();
  execFileSync('mkfifo', [join(root, 'log')]);
  // Both ends, so that it has a reader: one that does not read.
  const log = openSync(join(root, 'log'), constants.O_RDWR);
  using _ = { [Symbol.dispose]: () => closeSync(log) };
  await using program = await new Program(root, ['--log-level', 'info'], log).answers();

  // Two lines of 300 bytes each, into a pipe that takes 64 KiB.
  for (let count = 0; count < 200; count += 1) {
    const sessionId = `${count}-${'s'.repeat(100)}`;
    await program.client.createSession(sessionId);
    await program.client.call('deleteSession', DeleteSessionRequest.fromPartial({ sessionId }));
  }

  program.kill('SIGTERM');
  expect(await program.exited).toEqual([0, null]);
});

test('a log whose reader is gone, and one on a full disk, hold nothing up', async () => {
  const root = temporaryDirectory();
  execFileSync('mkfifo', [join(root, 'log')]);
  const reader = openSync(join(root, 'log'), constants.O_RDWR);
  const pipe = openSync(join(root, 'log'), 'w');
  closeSync(reader);
  const full = openSync('/dev/full', 'w');
  using _ = { [Symbol.dispose]: () => [pipe, full].forEach(closeSync) };

  for (const log of [pipe, full]) {
    await using program = await new Program(temporaryDirectory(), ['--log-level', 'info'], log).answers();
    await program.start('js', DEFAULT_ACTION);
    program.kill('SIGTERM');
    expect(await program.exited).toEqual([0, null]);
  }
});

test('signals that come together are one, and leave the grace periods', async () => {
  const root = temporaryDirectory();
  await using program = await new Program(root).ready();
  await program.start('js', `process.on('SIGTERM', () => setTimeout(() => process.exit(3), 500)); ${DEFAULT_ACTION}`);

  program.kill('SIGTERM');
  program.kill('SIGINT');

  expect(await program.exited).toEqual([0, null]);
  await using next = await new Program(root).ready();
  const { result } = await next.client.status('s', 'js');
  expect(result).toMatchObject({ exitCode: 3, rung: LadderRung.GRACEFUL });
});

test('a later signal while it stops skips the grace periods', async () => {
  const root = temporaryDirectory();
  writeFileSync(join(root, 'config.json'), '{ "graceMs": 2000000 }');
  await using program = await new Program(root, ['--config', join(root, 'config.json')]).ready();
  // Later than that nothing is of the same act.
  await program.start(
    'js',
    `process.on('SIGTERM', () => setTimeout(() => console.log('asked'), 300)); ${DEFAULT_ACTION}`,
  );
  const below = descendants(program.child.pid);

  program.kill('SIGTERM');
  await eventually('the guest was asked', async () =>
    (await program.client.status('s', 'js')).stdout.includes('asked'),
  );
  program.kill('SIGINT');

  expect(await program.exited).toEqual([0, null]);
  expect(below.filter(isAlive)).toEqual([]);
});

test('cells of a daemon that is killed end by themselves when no other comes', async () => {
  const root = temporaryDirectory();
  writeFileSync(join(root, 'config.json'), '{ "orphanGraceMs": 200 }');
  await using program = await new Program(root, ['--config', join(root, 'config.json')]).ready();
  await program.start('js', "for (;;) if (!globalThis.said) { console.log('ready'); globalThis.said = true; }");
  await program.start('py', PYTHON_IDLE, 'python');
  const below = descendants(program.child.pid);

  program.kill('SIGKILL');

  await eventually('every cell and guest is gone', () => below.filter(isAlive).length === 0);
});

test.each([
  [['--tcp', '0.0.0.0:1'], /not a loopback address/],
  [['--state-dir', '/dev/null/s'], /state directory \/dev\/null\/s/],
  [['--config', '/nonexistent.json'], /\/nonexistent\.json/],
])('the program refuses to start with %j, in one line, with code 1', async (flags, message) => {
  await using program = new Program(temporaryDirectory(), flags);

  expect(await program.exited).toEqual([1, null]);
  expect(program.out).toBe('');
  expect(program.err).toMatch(/^elide-daemon: [^\n]*\n$/);
  expect(program.err).toMatch(message);
});

test('a daemon that is started in a directory that is gone works', async () => {
  const root = temporaryDirectory();
  const flags = ['--socket', join(root, 'd.sock'), '--state-dir', join(root, 's'), '--log-level', 'error'];
  const inside = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"';
  const child = spawn('sh', ['-c', inside, join(root, 'gone'), process.execPath, MAIN, ...flags], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  await Promise.race([once(child.stdout, 'data'), exited]);
  await using client = new TestClient(`unix:${join(root, 'd.sock')}`);
  await client.createSession('s');

  for (const [language, code] of Object.entries({ javascript: 'console.log(1)', python: 'print(1)' })) {
    await client.execute({ sessionId: 's', executionId: language, language, code });
    expect((await client.ended('s', language)).stdout).toBe('1\n');
  }

  child.kill();
  expect(await exited).toEqual([0, null]);
});

test('a daemon whose socket was removed listens again, and who was connected goes on', async () => {
  await using program = await new Program(temporaryDirectory()).ready();
  await program.start('e', IDLE);

  rmSync(program.socket);
  const mode = () => statSync(program.socket, { throwIfNoEntry: false })?.mode ?? 0;
  await eventually('the socket is there again, and its owner alone may use it', () => (mode() & 0o777) === 0o600);

  await using later = new TestClient(`unix:${program.socket}`);
  for (const client of [later, program.client]) expect((await client.status('s', 'e')).stdout).toBe('ready\n');
});
