import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { TestDaemon, type TestSession } from '../support/daemon.ts';
import { ENGINES, languageOf } from '../support/engines.ts';
import { inTime } from '../support/in-time.ts';

// How long what is asked for may take, and how much of the processor. The ladder itself is tested in test/ladder.

let node: TestDaemon;
let session: TestSession;
beforeAll(async () => {
  node = await TestDaemon.start({ graceMs: 300 });
  session = await node.session();
});
afterAll(() => node[Symbol.asyncDispose]());

type Language = 'javascript' | 'python';

/** Prints the signals of a stop instead of ending. */
const DEAF: Record<Language, string> = {
  javascript: `for (const name of ['SIGTERM', 'SIGUSR1']) process.on(name, () => console.log(name));
    setInterval(() => {}, 1000); console.log('ready');`,
  // Not by print(), which may be under way when a signal comes.
  python: `import os, signal, time
for name in ('SIGTERM', 'SIGUSR1'):
    signal.signal(getattr(signal, name), lambda number, _: os.write(1, signal.Signals(number).name.encode() + b'\\n'))
print('ready', flush=True)
while True: time.sleep(1)`,
};
const BUSY: Record<Language, string> = {
  javascript: 'for (;;);',
  python: 'while True: pass',
};

test.each(ENGINES)('at the run limit a %s guest gets the ladder, a named signal, or force', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const run = (text: string, onTimeout: 'cancel' | 'signal' | 'kill', timeoutSignal?: string) =>
    inTime(
      400,
      (ms) => session.run({ ...asked, code: DEAF[language], timeoutMs: ms, graceMs: ms, onTimeout, timeoutSignal }),
      ({ stdout }) => stdout.includes(text),
    );

  const [cancel, signal, kill] = await Promise.all([
    run('SIGTERM', 'cancel'),
    run('SIGUSR1', 'signal', 'SIGUSR1'),
    run('ready', 'kill'),
  ]);

  expect(cancel.stdout).toContain('SIGTERM');
  expect(signal.stdout).toContain('SIGUSR1');
  expect(signal.stdout).not.toContain('SIGTERM');
  expect(kill.stdout).not.toContain('SIG');
  for (const { result } of [cancel, signal, kill])
    expect(result).toMatchObject({ reason: 'timed_out', rung: 'forced' });
  expect(kill.steps).not.toContain('signaled.graceful');
});

test('a session that says what happens at the run limit has no signal that the daemon says with another', async () => {
  await using signalling = await TestDaemon.start({ executionDefaults: { onTimeout: 'signal', timeoutSignal: 'INT' } });
  const silent = await signalling.session();
  const cancelling = await signalling.session({ executionDefaults: { onTimeout: 'cancel' } });
  const snippet = { code: 'setInterval(() => {}, 1000)', timeoutMs: 200 };

  const [byDaemon, bySession] = await Promise.all([silent.run(snippet), cancelling.run(snippet)]);

  expect(byDaemon.result).toMatchObject({ reason: 'timed_out', signal: 'SIGINT' });
  expect(bySession.result).toMatchObject({ reason: 'timed_out', signal: 'SIGTERM' });
});

test('a clock that is set an hour ahead, or back, moves no limit', async () => {
  const now = Date.now.bind(Date);
  for (const jumpMs of [3_600_000, -3_600_000]) {
    const long = await session.ready({ code: `${DEAF.javascript}`, timeoutMs: 60_000 });
    const short = await session.submit({ code: 'setInterval(() => {}, 1000)', timeoutMs: 500 });
    await short.reached('running');
    const jumped = vi.spyOn(Date, 'now').mockImplementation(() => now() + jumpMs);

    const { result } = await short.end();

    expect(result.reason).toBe('timed_out');
    expect((await long.snapshot()).state).toBe('running');
    jumped.mockRestore();
    await long.cancel({ signal: 'SIGKILL' });
    expect((await long.end()).result.reason).toBe('cancelled');
  }
});

test.each(ENGINES)(
  'a %s guest that used its CPU time gets the ladder, and the message says how much',
  async (engine) => {
    const asked = languageOf(engine);
    const { language } = asked;
    const { result, steps } = await session.run({ ...asked, code: BUSY[language], cpuTimeLimitMs: 300 });

    expect(result).toMatchObject({ reason: 'timed_out', message: expect.stringMatching(/ms of CPU time.*300 ms/) });
    expect(steps).toContain('signaled.graceful');
    const { userSeconds = 0, systemSeconds = 0 } = result.usage ?? {};
    expect(userSeconds + systemSeconds).toBeGreaterThan(0.29);
  },
);

test.each(ENGINES)('a %s guest that sleeps uses no CPU time', async (engine) => {
  const asked = languageOf(engine);
  const { language } = asked;
  const code = { javascript: 'setTimeout(() => {}, 600)', python: 'import time\ntime.sleep(0.6)' }[language];

  const { result } = await session.run({ ...asked, code, cpuTimeLimitMs: 500 });

  expect(result).toMatchObject({ reason: 'completed' });
});

test.each([
  ['javascript', `require('child_process').spawn('sh', ['-c', 'while :; do :; done']); setInterval(() => {}, 1000)`],
  ['python', `import subprocess\nsubprocess.run(['sh', '-c', 'while :; do :; done'])`],
  [
    'python',
    `import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
    os._exit(0)
time.sleep(60)`,
  ],
])('CPU time of processes below a %s guest is its own', async (language, code) => {
  const { result } = await session.run({ language, code, cpuTimeLimitMs: 300 });

  expect(result).toMatchObject({ reason: 'timed_out', message: expect.stringContaining('CPU time') });
});

test('one that waits for a place longer than it may ends before any of its code has run', async () => {
  await using busy = await TestDaemon.start({ maxRunning: 1 });
  const one = await busy.session();
  const holder = await one.ready(DEAF.javascript);

  const waiting = await one.submit({ code: 'console.log("ran")', queueTimeoutMs: 200 });
  const patient = await one.submit({ code: 'console.log("ran")', queueTimeoutMs: 60_000 });
  const { result, snapshot, stdout } = await waiting.end();

  expect(result).toMatchObject({ reason: 'queue_timed_out', rung: undefined, exitCode: -1, usage: undefined });
  expect(snapshot.times.startedAtMs).toBeUndefined();
  expect(stdout).toBe('');
  await holder.cancel({ signal: 'SIGKILL' });
  expect(await patient.end()).toMatchObject({ stdout: 'ran\n', result: { reason: 'completed' } });
});

test('limits of a session are those of its executions, and its ceilings cannot be switched off', async () => {
  const strict = await node.session({
    executionDefaults: { timeoutMs: 200 },
    executionCeilings: { timeoutMs: 50_000, cpuTimeLimitMs: 300 },
  });

  const [byDefault, byCeiling] = await Promise.all([
    strict.run('setInterval(() => {}, 1000)'),
    strict.run({ code: BUSY.javascript, timeoutMs: 50_000 }),
  ]);

  expect(byDefault.result).toMatchObject({ reason: 'timed_out', message: undefined });
  expect(byCeiling.result).toMatchObject({ reason: 'timed_out', message: expect.stringContaining('CPU time') });
  await expect(strict.submit({ code: '0', timeoutMs: 50_001 })).rejects.toThrow(
    /config.timeout is 50001 ms; the ceiling of session ".*" is 50000 ms/,
  );
});
