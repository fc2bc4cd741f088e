import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs';
import { connect } from 'node:net';
import { devNull } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { FromCell, Hello, Start, ToCell } from '../../src/gen/elide/cell/v1/cell.ts';
import { CELL_MAIN, ZYGOTE } from '../../src/package-root.ts';
import { readEndRecord } from '../../src/wire/end-record.ts';
import { FramedSocket, PROTOCOL_VERSION } from '../../src/wire/framing.ts';
import { eventually, isAlive, temporaryDirectory } from '../support/daemon.ts';

/** A cell without a daemon: its program alone. Gone after the test, however that ends. */
class BareCell {
  readonly root = temporaryDirectory();
  readonly pid: number;
  readonly exited: Promise<unknown>;
  readonly #ready: Promise<unknown>;

  constructor() {
    const [socket, token] = [join(this.root, 'cell.sock'), join(this.root, 'token')];
    writeFileSync(token, 'the token');
    // A group of its own, which it ends as a whole.
    const child = spawn(process.execPath, [CELL_MAIN, socket, token], {
      env: {},
      detached: true,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    this.pid = child.pid as number;
    this.exited = once(child, 'exit');
    this.#ready = once(child.stdout, 'data');
    onTestFinished(async () => {
      if (isAlive(this.pid)) process.kill(-this.pid, 'SIGKILL');
      await this.exited;
    });
  }

  /** Connects as a daemon does. Resolves when the cell has answered. */
  async connect({ orphanGraceMs = 1_000_000, protocolVersion = PROTOCOL_VERSION } = {}): Promise<CellConnection> {
    await this.#ready;
    const connection = new CellConnection(this.root);
    const value = Hello.fromPartial({
      protocolVersion,
      token: 'the token',
      engine: 'python',
      interpreter: 'python3',
      orphanGraceMs,
      zygotePath: ZYGOTE,
    });
    connection.send({ $case: 'hello', value });
    await connection.hears(protocolVersion === PROTOCOL_VERSION ? 'ready' : 'welcome');
    return connection;
  }

  /** What it has open. */
  descriptors(): string[] {
    const directory = `/proc/${this.pid}/fd`;
    return readdirSync(directory).map((fd) => {
      try {
        return readlinkSync(join(directory, fd));
      } catch {
        return ''; // closed meanwhile
      }
    });
  }

  /** Closes the connection of its daemon. Resolves when the cell knows. */
  async leaveAlone(daemon: CellConnection): Promise<void> {
    const sockets = () => this.descriptors().filter((target) => target.startsWith('socket:')).length;
    const connected = sockets();
    daemon.close();
    await eventually('the cell knows that it is alone', () => sockets() < connected);
  }
}

type Heard = NonNullable<FromCell['body']>;

/** What a daemon says to a cell, and hears from it. */
class CellConnection {
  readonly heard: Heard[] = [];
  readonly closed: Promise<unknown>;
  readonly #root: string;
  readonly #framed: FramedSocket<FromCell, ToCell>;

  constructor(root: string) {
    this.#root = root;
    this.#framed = new FramedSocket(connect(join(root, 'cell.sock')), FromCell, ToCell);
    this.#framed.on('message', ({ body }) => body && this.heard.push(body));
    this.closed = once(this.#framed, 'close');
  }

  send(body: NonNullable<ToCell['body']>): void {
    this.#framed.send({ body });
  }

  /** Starts a Python program. */
  start(executionKey: string, code: string, options: Partial<Start> = {}): void {
    const path = (name: string) => join(this.#root, `${executionKey}-${name}`);
    const value = Start.fromPartial({
      executionKey,
      language: 'python',
      code,
      cwd: path('work'),
      createCwd: true,
      mainPath: path('main.py'),
      writeMain: true,
      tmpDir: path('tmp'),
      outputDir: path('out'),
      ...options,
    });
    this.send({ $case: 'start', value });
  }

  stdout(executionKey: string): string {
    const path = join(this.#root, `${executionKey}-out`, 'stdout');
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  }

  /** Resolves with the first message of this kind, about this execution if it is about one. */
  async hears<Case extends Heard['$case']>(
    $case: Case,
    executionKey?: string,
  ): Promise<Extract<Heard, { $case: Case }>> {
    for (;;) {
      const found = this.heard.find((body) => body.$case === $case && about(body) === executionKey);
      if (found !== undefined) return found as Extract<Heard, { $case: Case }>;
      await once(this.#framed, 'message');
    }
  }

  close(): void {
    this.#framed.destroy();
  }
}

function about({ value }: Heard): string | undefined {
  return 'executionKey' in value ? value.executionKey : undefined;
}

const SLEEP = 'import time\ntime.sleep(600)';

test('a cell ends with its guests when no daemon has come back within the grace period', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect({ orphanGraceMs: 300 });
  daemon.start('e', SLEEP);
  const { pid } = (await daemon.hears('started', 'e')).value;

  const leftAtMs = performance.now();
  daemon.close();
  await cell.exited;

  expect(performance.now() - leftAtMs).toBeGreaterThan(290);
  expect(isAlive(pid)).toBe(false);
  expect(existsSync(join(cell.root, 'cell.sock'))).toBe(false);
});

test('a cell that a daemon comes back to in time lives on', async () => {
  const cell = new BareCell();
  const first = await cell.connect({ orphanGraceMs: 5_000 });

  first.close();
  await first.closed;
  const second = await cell.connect({ orphanGraceMs: 5_000 });
  second.start('e', 'import time\ntime.sleep(6)\nprint("lived on")');
  await second.hears('exited', 'e');

  expect(second.stdout('e')).toBe('lived on\n');
});

test('an end that no daemon was there to hear is told to the next ones, until one acknowledges it', async () => {
  const cell = new BareCell();
  const first = await cell.connect();
  first.start('e', SLEEP);
  const { pid } = (await first.hears('started', 'e')).value;

  await cell.leaveAlone(first);
  process.kill(pid, 'SIGKILL');
  await eventually(
    'the cell knows of the end',
    () => !cell.descriptors().some((target) => target.endsWith('e-out/stdout')),
  );
  const second = await cell.connect();
  const { value } = await second.hears('exited', 'e');
  const again = await cell.connect();
  expect((await again.hears('exited', 'e')).value).toEqual(value);
  again.send({ $case: 'acknowledge', value: { executionKey: 'e' } });
  const third = await cell.connect();

  expect(value).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect(third.heard.map(({ $case }) => $case)).toEqual(['welcome', 'ready']);
});

test('whoever knows the token takes the cell, and who had it is let go', async () => {
  const cell = new BareCell();
  const first = await cell.connect({ orphanGraceMs: 1 });
  const second = await cell.connect({ orphanGraceMs: 1 });

  await first.closed;
  second.start('e', 'import time\ntime.sleep(0.2)');

  expect((await second.hears('exited', 'e')).value).toMatchObject({ exitCode: 0, cause: '' });
});

test('what a guest uses is told when it has changed, and to a daemon that comes new', async () => {
  const cell = new BareCell();
  const first = await cell.connect();
  first.start(
    'e',
    `import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nheld = bytearray(b'x') * (50 << 20)
print('holds', flush=True)\nsys.stdin.readline()`,
    { stdin: true },
  );
  await eventually('it waits', () => first.stdout('e') === 'ready\n');
  let request = 0;
  const measured = async (daemon: typeof first) => {
    request += 1;
    daemon.send({ $case: 'measure', value: { request } });
    await eventually('the figures', () => daemon.heard.some(isAnswer));
    const answer = daemon.heard.find(isAnswer) as Extract<Heard, { $case: 'measured' }>;
    return answer.value.usages;
  };
  const isAnswer = (body: Heard) => body.$case === 'measured' && body.value.request === request;

  const [before] = await measured(first);
  await eventually('it sleeps', async () => (await measured(first)).length === 0);
  first.send({ $case: 'input', value: { executionKey: 'e', data: Buffer.from('\n'), end: false } });
  await eventually('it holds', () => first.stdout('e') === 'ready\nholds\n');
  const [after] = await measured(first);
  const second = await cell.connect();
  const [again] = await measured(second);

  expect(Number(after?.memoryBytes) - Number(before?.memoryBytes)).toBeGreaterThan(45 << 20);
  expect(again?.executionKey).toBe('e');
  // It may still have been on its way to sleep.
  expect(Math.abs(Number(again?.memoryBytes) - Number(after?.memoryBytes))).toBeLessThan(1 << 20);
});

test('a start that is said twice is one', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();

  daemon.start('e', 'import time\nprint("once")\ntime.sleep(0.1)');
  daemon.start('e', 'print("twice")');
  await daemon.hears('exited', 'e');
  daemon.start('next', 'import time\ntime.sleep(0.2)');
  await daemon.hears('exited', 'next');

  expect(daemon.stdout('e')).toBe('once\n');
  expect(daemon.heard.filter((body) => about(body) === 'e').map(({ $case }) => $case)).toEqual(['started', 'exited']);
});

test('a guest is told to be gone while nobody reads its output, so that nothing waits for its end', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();
  const stdout = join(cell.root, 'pipe');
  execFileSync('mkfifo', [stdout]);
  const reader = openSync(stdout, constants.O_RDONLY | constants.O_NONBLOCK);

  daemon.start('e', 'print("x" * 2**20)', { outputFiles: { stdout, stderr: devNull, maxFiles: 0, maxFileBytes: 0n } });
  await daemon.hears('gone', 'e');

  expect(daemon.heard.some(({ $case }) => $case === 'exited')).toBe(false);
  closeSync(reader);
});

test('input for what is gone is answered', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();

  daemon.send({ $case: 'input', value: { executionKey: 'gone', data: Buffer.from('x'), end: false } });

  expect((await daemon.hears('inputTaken', 'gone')).value).toEqual({ executionKey: 'gone', ended: false });
});

test('a directory that cannot be made is told as a failed start', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();

  daemon.start('e', 'print(1)', { outputDir: join(cell.root, 'token', 'out') });

  const { value } = await daemon.hears('exited', 'e');
  expect(value).toMatchObject({ cause: 'start_failed' });
  expect(value.message).toContain('ENOTDIR');
});

test('a SIGTERM ends a cell that has no daemon, with its guests, and they say so', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();
  daemon.start('e', SLEEP);
  const { pid } = (await daemon.hears('started', 'e')).value;

  await cell.leaveAlone(daemon);
  process.kill(cell.pid, 'SIGTERM');
  await cell.exited;

  expect(isAlive(pid)).toBe(false);
  expect(readEndRecord(join(cell.root, 'cell.ends'))).toMatchObject([
    { executionKey: 'e', signal: 'SIGKILL', message: 'the cell was sent SIGTERM while there was no daemon' },
  ]);
});

test('a daemon that speaks another version hears so, and is not obeyed', async () => {
  const cell = new BareCell();
  const daemon = await cell.connect();
  const other = await cell.connect({ protocolVersion: PROTOCOL_VERSION + 1 });

  other.send({ $case: 'shutdown', value: {} });
  await other.closed;

  expect(other.heard).toMatchObject([
    { $case: 'welcome', value: { protocolVersion: PROTOCOL_VERSION, pid: cell.pid } },
  ]);
  daemon.start('e', 'print("still here")');
  await daemon.hears('exited', 'e');
  expect(daemon.stdout('e')).toBe('still here\n');
});
