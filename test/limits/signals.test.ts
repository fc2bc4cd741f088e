import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually, TestDaemon, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start();
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

const stateOf = (pid: number) => /^State:\t(.)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];

const COUNTING = 'import time\nprint("ready", flush=True)\nwhile True: time.sleep(0.01)';

test('SIGSTOP pauses a process, SIGCONT resumes it', async () => {
  const execution = await session.ready({ language: 'python', code: COUNTING });
  const { pid } = await execution.snapshot();

  await execution.signal('SIGSTOP');
  await eventually('paused', () => stateOf(pid) === 'T');
  expect((await execution.snapshot()).state).toBe('running');
  await execution.signal('SIGCONT');
  await eventually('resumed', () => stateOf(pid) !== 'T');

  await execution.cancel({ signal: 'SIGKILL' });
  expect((await execution.end()).result.reason).toBe('cancelled');
});

test('a paused process hears the signal of a stop, within its grace period', async () => {
  const code = `import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n${COUNTING}`;
  const execution = await session.ready({ language: 'python', code });
  const { pid } = await execution.snapshot();
  await execution.signal('SIGSTOP');
  await eventually('paused', () => stateOf(pid) === 'T');

  await execution.cancel({ graceMs: 10_000 });

  expect((await execution.end()).result).toMatchObject({ reason: 'cancelled', rung: 'graceful', exitCode: 3 });
});

test.each(['SIGSTOP', 'SIGCONT', 'SIGTSTP'])('%s to a thread is refused by name', async (name) => {
  const execution = await session.ready('console.log("ready"); setInterval(() => {}, 1000)');

  await expect(execution.signal(name)).rejects.toThrow(new RegExp(`${name} stops or continues a whole process`));
  await expect(execution.cancel({ signal: name })).rejects.toThrow(name);
  await expect(session.submit({ code: '0', onTimeout: 'signal', timeoutSignal: name, timeoutMs: 1 })).rejects.toThrow(
    name,
  );

  expect((await execution.snapshot()).state).toBe('running');
  await execution.cancel({ signal: 'SIGKILL' });
});

/** Starts a child that says what it is sent. */
const PARENT = {
  javascript: `for (const name of ['SIGHUP', 'SIGTERM']) process.on(name, () => console.log('parent heard'));
    require('child_process').spawn('sh', ['-c', 'trap "echo hung up" HUP; trap "echo child heard; exit 0" TERM; echo ready; while :; do sleep 0.01; done'], { stdio: 'inherit' });
    setInterval(() => {}, 1000);`,
  python: `import signal, subprocess, time
for number in (signal.SIGHUP, signal.SIGTERM): signal.signal(number, lambda *_: print('parent heard', flush=True))
subprocess.Popen(['sh', '-c', 'trap "echo hung up" HUP; trap "echo child heard; exit 0" TERM; echo ready; while :; do sleep 0.01; done'])
while True: time.sleep(0.01)`,
};

test.each(ENGINES)('a signal to a %s guest is its own, unless its children are meant too', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const execution = await session.submit({ ...asked, code: PARENT[language] });
  await execution.printed('ready');

  await execution.signal('SIGHUP');
  await execution.printed('parent heard');
  await node.daemon.signalExecution(session.sessionId, execution.executionId, 'SIGTERM', { signalTree: true });
  // A shell with both signals pending says so of SIGHUP first.
  expect(await execution.printed('child heard')).not.toContain('hung up');

  await execution.cancel({ signal: 'SIGKILL' });
  await execution.end();
});

test.each(ENGINES)(
  'an execution can say that signals are for its children too, those of a stop included',
  async (engine) => {
    const asked = languageOf(engine);
    const { language } = asked;
    const execution = await session.submit({ ...asked, code: PARENT[language], signalTree: true });
    await execution.printed('ready');

    await execution.cancel({ graceMs: 5_000 });
    await execution.printed('child heard');
    await execution.printed('parent heard');

    await execution.cancel({ signal: 'SIGKILL' });
    expect((await execution.end()).result.reason).toBe('cancelled');
  },
);
