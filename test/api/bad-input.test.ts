import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  ExecutionConfiguration,
  type GetEnforcementResponse,
} from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import { all, type SnippetRequest, TestClient } from '../support/client.ts';
import { TestDaemon } from '../support/daemon.ts';

const INT64_MAX = 2n ** 63n - 1n;
const INT64_MIN = -(2n ** 63n);

let node: TestDaemon;
let client: TestClient;
let count = 0;
beforeAll(async () => {
  node = await TestDaemon.start({ maxCodeBytes: 1000 });
  client = new TestClient(`unix:${node.endpoints.socket}`);
  await client.createSession('s');
  await client.createSession('only-python', { enabledLanguages: ['python'] });
});
afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await node[Symbol.asyncDispose]();
});

/** Sends a request that is refused, and checks that no execution came of it. */
async function refused(request: Partial<SnippetRequest>, code: string, details: RegExp): Promise<void> {
  const known = await executions();
  count += 1;
  const whole = { sessionId: 's', executionId: `bad-${count}`, code: '0', ...request };
  await expect(client.execute(whole)).rejects.toMatchObject({ code, details: expect.stringMatching(details) });
  expect(await executions()).toEqual(known);
}

const executions = async () => (await node.daemon.listExecutions()).map(({ executionId }) => executionId);
const sessions = async () => (await node.daemon.listSessions()).map(({ sessionId }) => sessionId);

test.each([
  ['getSession', { sessionId: 'nope' }, /session "nope" not found/],
  ['deleteSession', { sessionId: 'nope' }, /session "nope" not found/],
  ['executeSnippet', { sessionId: 'nope', executionId: 'x', code: '0', language: 'js', env: {}, args: [] }, /"nope"/],
  ['getExecutionStatus', { sessionId: 's', executionId: 'nope' }, /execution "nope" not found in session "s"/],
  ['getExecutionStatus', { sessionId: 'nope', executionId: 'x' }, /session "nope" not found/],
  ['signalExecution', { sessionId: 's', executionId: 'nope', signal: 'TERM' }, /execution "nope"/],
  ['waitExecution', { sessionId: 's', executionId: 'nope' }, /execution "nope"/],
  [
    'writeExecutionInput',
    { sessionId: 's', executionId: 'nope', data: Buffer.from('x'), end: false },
    /execution "nope"/,
  ],
] as const)('%s of what is unknown is NOT_FOUND and names it', async (method, request, details) => {
  await expect(client.call(method, request)).rejects.toMatchObject({
    code: 'NOT_FOUND',
    details: expect.stringMatching(details),
  });
});

test.each([
  ['empty', '', /is empty/],
  ['of 10 KB', 'x'.repeat(10_000), /has 10000 bytes; at most 1024/],
  ['of 1025 bytes in few characters', 'é'.repeat(513), /has 1026 bytes/],
  ['with a newline', 'a\nb', /control character/],
  ['with NUL', 'a\0b', /control character/],
  ['with an escape sequence', 'a\u001b[31mb', /control character/],
  ['with a C1 control', 'a\u0085b', /control character/],
])('an id %s is refused', async (_, id, details) => {
  const known = await sessions();

  await refused({ executionId: id }, 'INVALID_ARGUMENT', new RegExp(`execution_id.*${details.source}`));
  await expect(client.createSession(id)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: expect.stringMatching(new RegExp(`session_id.*${details.source}`)),
  });

  expect(await sessions()).toEqual(known);
});

test('an id of the most bytes allowed is taken', async () => {
  await client.createSession('é'.repeat(512));

  expect(await sessions()).toContain('é'.repeat(512));
});

test('an unknown language is refused with those there are', async () => {
  await refused({ language: 'cobol' }, 'INVALID_ARGUMENT', /unknown language "cobol".*javascript, typescript, python/);
  await refused({ language: '' }, 'INVALID_ARGUMENT', /unknown language ""/);
});

test('what is wrong may be long: whoever says it is told', async () => {
  const request = { language: 'é'.repeat(200_000) };
  await refused(request, 'INVALID_ARGUMENT', /unknown language "é+\.\.\. \(of 200\d\d\d characters\)$/);
  await refused({ language: '__proto__' }, 'INVALID_ARGUMENT', /unknown language "__proto__"/);
  await expect(client.createSession('new', { enabledLanguages: ['js', 'cobol'] })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: expect.stringMatching(/"cobol".*javascript, typescript, python/),
  });
});

test('a language that the session has not enabled is refused with those it has', async () => {
  await refused(
    { sessionId: 'only-python', language: 'javascript' },
    'FAILED_PRECONDITION',
    /"javascript" is not enabled in session "only-python".*python/,
  );
});

test('a language whose interpreter is missing is refused with the reason', async () => {
  await using without = await TestDaemon.start({ python: '/nonexistent/python3' });
  const session = await without.session();

  await expect(session.run({ language: 'python', code: 'pass' })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/"python" is not available.*\/nonexistent\/python3.*not found/),
  });
  expect((await session.run('0')).result.reason).toBe('completed');
});

test('code is neither empty nor larger than the limit', async () => {
  await refused({ code: '' }, 'INVALID_ARGUMENT', /code is empty/);
  await refused({ code: 'x'.repeat(1001) }, 'INVALID_ARGUMENT', /code has 1001 bytes; at most 1000/);
  await refused({ code: 'é'.repeat(501) }, 'INVALID_ARGUMENT', /code has 1002 bytes/);

  await client.execute({ sessionId: 's', executionId: 'largest', code: `//${'x'.repeat(998)}` });
  expect((await client.ended('s', 'largest')).exitCode).toBe(0);
});

test('code of 64 MiB is taken by default, one byte more is refused', async () => {
  await using plain = await TestDaemon.start();
  await using large = new TestClient(`unix:${plain.endpoints.socket}`);
  await large.createSession('s');
  const code = `console.log('ran');//${' '.repeat(64 * 1024 * 1024)}`;
  const request = { sessionId: 's', executionId: 'x', code: code.slice(0, 64 * 1024 * 1024) };

  await expect(large.execute({ ...request, code: code.slice(0, 64 * 1024 * 1024 + 1) })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: expect.stringContaining('67108865 bytes'),
  });
  await large.execute(request);
  expect((await large.ended('s', 'x')).stdout).toBe('ran\n');
});

test('a message beyond any limit is refused without harm', async () => {
  await refused({ code: 'x'.repeat(20 * 1024 * 1024) }, 'RESOURCE_EXHAUSTED', /./);

  expect(await client.call('health', {})).toMatchObject({ healthy: true });
});

test.each([
  ['with =', { 'A=B': 'x' }, /env: "A=B"/],
  ['with NUL', { 'A\0B': 'x' }, /env: "A\\u0000B"/],
  ['empty', { '': 'x' }, /env: ""/],
])('a name in env that is %s is refused', async (_, env, details) => {
  await refused({ env }, 'INVALID_ARGUMENT', details);
});

test('a NUL in a value of env or in an argument is refused', async () => {
  await refused({ env: { A: 'x\0y' } }, 'INVALID_ARGUMENT', /env A has a NUL/);
  await refused({ args: ['fine', 'x\0y'] }, 'INVALID_ARGUMENT', /args\[1\] has a NUL/);
});

test.each<[string, Partial<ExecutionConfiguration>, RegExp]>([
  ['a negative timeout', { timeoutMs: -1n }, /config\.timeout is -1/],
  ['no time at all', { timeoutMs: 0n }, /config\.timeout is 0/],
  ['a negative timeout in seconds', { timeoutSeconds: -5 }, /config\.timeout is -5000/],
  ['the largest int32 of seconds', { timeoutSeconds: 2 ** 31 - 1 }, /config\.timeout is 2147483647000/],
  ['more than 24 days', { timeoutMs: 2_073_600_001n }, /config\.timeout is 2073600001/],
  ['the largest int64', { timeoutMs: INT64_MAX }, /config\.timeout is 9223372036854775807/],
  ['the smallest int64', { timeoutMs: INT64_MIN }, /config\.timeout is -9223372036854775808/],
  ['a negative grace period', { graceMs: -1n }, /config\.grace\S* is -1/],
  ['the largest int64 as grace period', { graceMs: INT64_MAX }, /config\.grace\S* is 9223372036854775807/],
])('a configuration with %s is refused', async (_, config, details) => {
  await refused({ config }, 'INVALID_ARGUMENT', details);
});

test('the longest durations are taken and do not fire at once', async () => {
  await client.execute({
    sessionId: 's',
    executionId: 'long',
    code: "process.stdin.on('end', () => {}).resume()",
    config: { timeoutMs: 2_073_600_000n, graceMs: 2_073_600_000n, stdin: true },
  });
  await client.call('writeExecutionInput', { sessionId: 's', executionId: 'long', data: Buffer.alloc(0), end: true });

  expect((await client.ended('s', 'long')).timedOut).toBe(false);
});

test.each([
  ['missing', () => '/nonexistent/directory', /working_directory "\/nonexistent\/directory": ENOENT/],
  ['relative', () => 'some/where', /working_directory "some\/where" is not an absolute path/],
  ['empty', () => '', /working_directory "" is not an absolute path/],
  ['with NUL', () => '/tmp/\0', /working_directory "\/tmp\/\\u0000"/],
  ['a file', () => fileIn(node.directory()), /working_directory ".*" is not a directory/],
])('a working directory that is %s is refused', async (_, path, details) => {
  await refused({ config: { workingDirectory: path() } }, 'INVALID_ARGUMENT', details);
});

test.each([
  ['missing', () => join(node.directory(), 'nothing'), /output_files\.stdout ".*nothing": ENOENT/],
  ['a file', () => fileIn(node.directory()), /output_files\.stdout ".*" is no pipe; for files say max_files/],
  ['a directory', () => node.directory(), /output_files\.stdout ".*" is no pipe/],
  ['with NUL', () => join(node.directory(), 'a\0b'), /output_files\.stdout has a NUL character/],
])('a pipe for output that is %s is refused', async (_, path, details) => {
  const outputFiles = { stdout: path(), stderr: '/dev/null', maxFiles: 0, maxFileBytes: 0n };
  await refused({ config: { outputFiles } }, 'INVALID_ARGUMENT', details);
});

test.each(['', 'NOPE', 'SIG', 'SIGTERM;', '9', '__proto__'])('signal "%s" is refused by name', async (signal) => {
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const { sessionId, executionId } = running;

  const answer = client.call('signalExecution', { sessionId, executionId, signal });
  await expect(answer).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: expect.stringContaining(`"${signal}"`),
  });
  if (signal !== '') {
    await expect(
      client.call('cancelExecution', { sessionId, executionId, signal, timeoutSeconds: 0 }),
    ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', details: expect.stringContaining(`"${signal}"`) });
  }

  expect((await running.snapshot()).state).toBe('running');
  await running.cancel({ graceMs: 0 });
});

test.each([
  ['negative seconds', { timeoutSeconds: -1 }],
  ['a negative grace period', { timeoutSeconds: 0, graceMs: -1n }],
  ['the smallest int64', { timeoutSeconds: 0, graceMs: INT64_MIN }],
])('a cancellation with %s is refused and starts no ladder', async (_, fields) => {
  const session = await node.session();
  const running = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const { sessionId, executionId } = running;

  await expect(client.call('cancelExecution', { sessionId, executionId, signal: '', ...fields })).rejects.toMatchObject(
    { code: 'INVALID_ARGUMENT' },
  );

  expect((await running.snapshot()).state).toBe('running');
  await running.cancel({ graceMs: 0 });
});

test('a session configuration beyond its bounds is refused and creates nothing', async () => {
  for (const [config, details] of [
    [{ contextPoolSize: 1001 }, /context_pool_size is 1001; it must be 0 to 1000/],
    [{ contextPoolSize: 2 ** 32 - 1 }, /context_pool_size is 4294967295/],
    [{ memoryLimitMb: 1n }, /memory_limit_mb is 1/],
    [{ memoryLimitMb: 2n ** 64n - 1n }, /memory_limit_mb is 18446744073709551615/],
    [{ idleTtlMs: 0n }, /config.idle_ttl_ms is 0 ms; it must be 1 to 2073600000 ms \(24 days\)/],
    [{ idleTtlMs: -1n }, /config.idle_ttl_ms is -1 ms; it must be 1 to 2073600000 ms/],
    [{ totalTtlMs: INT64_MIN }, /config.total_ttl_ms is -9223372036854776000 ms; it must be 1 to 2073600000 ms/],
    [{ totalTtlMs: INT64_MAX }, /config.total_ttl_ms is 9223372036854776000 ms; it must be 1 to 2073600000 ms/],
    [{ retainedAgeMs: 0n }, /config.retained_age_ms is 0 ms; it must be 1 to 2073600000 ms/],
    [{ retainedExecutions: 0 }, /config.retained_executions is 0; it must be 1 to 10000000/],
    [{ outputBudgetBytes: -1n }, /config.output_budget_bytes is -1; it must be 1 to 1125899906842624/],
    [{ outputBudgetBytes: INT64_MAX }, /config.output_budget_bytes is 9223372036854776000; it must be 1 to/],
    [{ totalTtlMs: 2_073_600_001n }, /config.total_ttl_ms is 2073600001 ms; it must be 1 to 2073600000 ms/],
  ] as const) {
    await expect(client.createSession('bounds', config)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      details: expect.stringMatching(details),
    });
  }

  expect(await sessions()).not.toContain('bounds');
});

test.each([
  ['waitExecution', { timeoutMs: -1n }, /timeout_ms is -1/],
  ['waitExecution', { timeoutMs: INT64_MIN }, /timeout_ms is -9223372036854775808/],
  ['waitExecution', { timeoutMs: INT64_MAX }, /timeout_ms is 9223372036854775807/],
  ['waitExecution', { timeoutMs: 10n ** 12n }, /timeout_ms is 1000000000000/],
  ['listExecutions', { pageSize: 1001, pageToken: '' }, /page_size is 1001/],
  ['listExecutions', { pageSize: 0, pageToken: '-1' }, /page_token "-1"/],
  ['listExecutions', { pageSize: 0, pageToken: '1e9' }, /page_token "1e9"/],
] as const)('%s with %o is refused', async (method, fields, details) => {
  await client.execute({ sessionId: 's', executionId: 'known', code: '0' });

  await expect(client.call(method, { sessionId: 's', executionId: 'known', ...fields })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: expect.stringMatching(details),
  });
});

test('a position or sequence that no number holds is refused', async () => {
  await client.execute({ sessionId: 's', executionId: 'known', code: '0' });
  await client.ended('s', 'known');
  const request = { sessionId: 's', executionId: 'known', includeStdout: false, includeStderr: false, noFollow: false };
  const huge = 2n ** 64n - 1n;

  await expect(
    all(client.api.streamExecutionOutput({ ...request, stdoutPosition: huge, stderrPosition: 0n })),
  ).rejects.toMatchObject({ details: expect.stringMatching(/stdout_position is 18446744073709551615/) });
  await expect(
    all(client.api.watchExecution({ sessionId: 's', executionId: 'known', fromSequence: huge })),
  ).rejects.toMatchObject({ details: expect.stringMatching(/from_sequence is 18446744073709551615/) });
});

test('input for an execution without stdin, or one that has exited, is refused', async () => {
  const session = await node.session();
  const without = await session.ready("setInterval(() => {}, 1000); console.log('ready');");
  const finished = await session.submit({ code: '0', stdin: true });
  await finished.end();

  await expect(without.write('x')).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/without stdin/),
  });
  await expect(finished.write('x')).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/has exited/),
  });
  await without.cancel({ graceMs: 0 });
});

test.each(['javascript', 'python'])(
  'input of a %s program goes on neither in the future nor behind its end',
  async (language) => {
    const session = await node.session();
    const code = {
      javascript: "process.stdin.on('data', (data) => process.stdout.write(data)); setInterval(() => {}, 1000);",
      python: 'import sys, time\nprint(sys.stdin.read(), flush=True)\ntime.sleep(1000)',
    }[language] as string;
    const execution = await session.submit({ language, code, stdin: true });
    const write = (text: string, end: boolean, position?: number) =>
      session.daemon.writeInput(session.sessionId, execution.executionId, Buffer.from(text), end, { position });
    const first = write('one ', false);
    const gap = write('three', false, 8);
    const second = write('two', true, 4);

    await first;
    await expect(gap).rejects.toMatchObject({
      code: 'out_of_range',
      message: expect.stringMatching(/future: 4 bytes/),
    });
    await second;
    await expect(write('more', false)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(/input has ended/),
    });
    await write('two', true, 4);
    await execution.printed('one two');
    await execution.cancel({ graceMs: 0 });
  },
);

test('what only a session has is refused for an execution rather than ignored', async () => {
  await refused({ config: { enabledIntrinsics: ['io'] } }, 'INVALID_ARGUMENT', /enabled_intrinsics/);
  await refused({ config: { enableAi: true } }, 'INVALID_ARGUMENT', /enable_ai/);
});

test.each([
  [{ memoryLimitMb: 0n }, /config.memory_limit_mb is 0 MiB; it must be 8 to 1048576/],
  [{ memoryLimitMb: 2n ** 64n - 1n }, /memory_limit_mb is 18446744073709551615: out of range/],
  [{ memorySoftLimitMb: 64n, memoryLimitMb: 64n }, /memory_soft_limit_mb is 64 MiB; it must be below .* 64 MiB/],
  [{ cpuTimeLimitMs: 0n }, /cpu_time_limit_ms is 0 ms/],
  [{ cpuTimeLimitMs: INT64_MIN }, /cpu_time_limit_ms is -9223372036854775808: out of range/],
  [{ queueTimeoutMs: -1n }, /queue_timeout_ms is -1 ms/],
  [{ queueTimeoutMs: INT64_MAX }, /queue_timeout_ms is 9223372036854775807: out of range/],
  [{ outputLimitBytes: -5n }, /output_limit_bytes is -5 bytes/],
  [{ processLimit: 0 }, /process_limit is 0; it must be 1 to/],
  [{ openFileLimit: 3 }, /open_file_limit is 3; it must be 16 to/],
  [{ timeoutSignal: 'SIGNOPE', onTimeout: 2 }, /timeout_signal: unknown signal "SIGNOPE"/],
  [{ onTimeout: 2 }, /config.on_timeout is "signal" and config.timeout_signal is empty/],
  [{ timeoutSignal: 'SIGSTOP', onTimeout: 2 }, /^config.timeout_signal: SIGSTOP stops or continues a whole process/],
  [{ onTimeout: 99 as never }, /config.on_timeout is 99, which this daemon does not know/],
  [{ outputPolicy: -1 as never }, /config.output_policy is -1, which this daemon does not know/],
  [{ isolation: 3 as never }, /config.isolation is 3, which this daemon does not know/],
] as [Partial<ExecutionConfiguration>, RegExp][])('limits %o are refused', async (config, details) => {
  await refused({ config }, 'INVALID_ARGUMENT', details);
});

test('a limit above the ceiling of its session is refused with both figures, and the ceiling above that of the daemon', async () => {
  await using tight = await TestDaemon.start({ executionCeilings: { memoryLimitMb: 256 } });
  await using other = new TestClient(`unix:${tight.endpoints.socket}`);
  const ceiling = (mib: bigint) => ({ executionCeilings: ExecutionConfiguration.fromPartial({ memoryLimitMb: mib }) });

  await expect(other.createSession('above', ceiling(257n))).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: 'config.execution_ceilings.memory_limit_mb is 257 MiB; the ceiling of this daemon is 256 MiB',
  });
  await expect(other.createSession('above', { memoryLimitMb: 257n })).rejects.toMatchObject({
    details: 'config.memory_limit_mb is 257 MiB; the ceiling of this daemon is 256 MiB',
  });
  await other.createSession('s', ceiling(128n));
  await expect(
    other.execute({ sessionId: 's', executionId: 'e', code: '0', config: { memoryLimitMb: 129n } }),
  ).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    details: 'config.memory_limit_mb is 129 MiB; the ceiling of session "s" is 128 MiB',
  });
  expect(await tight.daemon.listExecutions()).toEqual([]);
});

test.each([
  [{ onTimeout: 1 }, /execution_ceilings.onTimeout is no limit/],
  [{ stdin: true }, /execution_ceilings.stdin belongs to an execution/],
  [{ outputLimitBytes: 0n }, /execution_ceilings.output_limit_bytes is 0 bytes/],
  [{ outputPolicy: 99 as never }, /execution_ceilings.output_policy is 99/],
] as [Partial<ExecutionConfiguration>, RegExp][])('ceilings %o are refused', async (config, details) => {
  await expect(
    client.createSession('c', { executionCeilings: ExecutionConfiguration.fromPartial(config) }),
  ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', details: expect.stringMatching(details) });
  expect(await sessions()).not.toContain('c');
});

test.each([
  [{ stdin: true }, {}, /execution_defaults.stdin belongs to an execution/],
  [{ isolation: 99 as never }, {}, /execution_defaults.isolation is 99/],
  [{ timeoutMs: 6n }, { timeoutMs: 5n }, /execution_defaults.timeout is 6 ms; the ceiling of the session is 5 ms/],
] as [Partial<ExecutionConfiguration>, Partial<ExecutionConfiguration>, RegExp][])(
  'defaults %o below ceilings %o are refused',
  async (defaults, ceilings, details) => {
    const executionDefaults = ExecutionConfiguration.fromPartial(defaults);
    const executionCeilings = ExecutionConfiguration.fromPartial(ceilings);

    await expect(client.createSession('d', { executionDefaults, executionCeilings })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      details: expect.stringMatching(details),
    });
    expect(await sessions()).not.toContain('d');
  },
);

test.each([
  [512n, {}, { memoryLimitMb: 256n }, 'memory_limit_mb is 512 MiB; the ceiling of the session is 256 MiB'],
  [200n, { memorySoftLimitMb: 200n }, {}, 'memory_soft_limit_mb is 200 MiB; it must be below memory_limit_mb, 200 MiB'],
  [
    0n,
    { memorySoftLimitMb: 300n },
    { memoryLimitMb: 200n },
    'memory_soft_limit_mb is 300 MiB; it must be below memory_limit_mb, 200 MiB',
  ],
] as [bigint, Partial<ExecutionConfiguration>, Partial<ExecutionConfiguration>, string][])(
  'a session with a memory limit of %d MiB, defaults %o and ceilings %o is refused, with both figures',
  async (memoryLimitMb, defaults, ceilings, details) => {
    const executionDefaults = ExecutionConfiguration.fromPartial(defaults);
    const executionCeilings = ExecutionConfiguration.fromPartial(ceilings);

    await expect(
      client.createSession('m', { memoryLimitMb, executionDefaults, executionCeilings }),
    ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', details: expect.stringContaining(details) });
    expect(await sessions()).not.toContain('m');
  },
);

test('a limit that this node cannot hold is accepted with a warning, or refused when it must be held', async () => {
  const { limits } = await client.call<object, GetEnforcementResponse>('getEnforcement', {});
  const lacking = limits.find(({ limit, engine }) => limit === 'open_file_limit' && engine === 'thread');
  expect(lacking).toMatchObject({ enforced: false, mechanism: 'none' });

  const config = { openFileLimit: 100 };
  await refused(
    { config: { ...config, requireEnforcement: true } },
    'FAILED_PRECONDITION',
    /open_file_limit is not enforced/,
  );
  await client.execute({ sessionId: 's', executionId: 'warned', code: '0', config });

  const { result } = await client.ended('s', 'warned');
  expect(result?.warnings).toEqual([expect.stringMatching(/config.open_file_limit is not enforced on this node: /)]);
});

function fileIn(directory: string): string {
  const path = join(directory, 'file');
  writeFileSync(path, '');
  return path;
}
