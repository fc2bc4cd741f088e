import { Client, credentials } from '@grpc/grpc-js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { StreamOptions } from '../../src/api.ts';
import { connectDaemon, type DaemonClient } from '../../src/client/client.ts';
import { snippetRequest } from '../../src/client/convert.ts';
import { InvalidArgumentError } from '../../src/errors.ts';
import { ExecuteSnippetRequest } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import type { SessionConfiguration, Snippet } from '../../src/supervisor/requests.ts';
import { eventually, outputDirectories, TestDaemon } from '../support/daemon.ts';

let node: TestDaemon;
let client: DaemonClient;
beforeAll(async () => {
  node = await TestDaemon.start();
  client = connectDaemon({ socket: node.endpoints.socket as string });
  await client.createSession('s');
});
afterAll(async () => {
  client.close();
  await node[Symbol.asyncDispose]();
});

const SNIPPET: Snippet = { sessionId: 's', executionId: 'e', language: 'javascript', code: '0' };
const HALF = 'a\ud800';

/** What plain JavaScript can hand in, and the name of what is wrong with it. */
const WRONG: [string, object][] = [
  ['config.stdin is text \\(string\\)', { stdin: 'text' }],
  ['config.stdin is an object', { stdin: {} }],
  ['config.stdin is a list', { stdin: [] }],
  ['config.stdin is NaN', { stdin: Number.NaN }],
  ['ahead is 1', { ahead: 1 }],
  ['config.signal_tree is yes', { signalTree: 'yes' }],
  ['execution_id is an object', { executionId: Buffer.from('e') }],
  ['execution_id is 7', { executionId: 7 }],
  ['code is an object', { code: Buffer.from('0') }],
  ['code is undefined', { code: undefined }],
  ['language is null', { language: null }],
  ['args is text', { args: 'text' }],
  ['args\\[1\\] is 2', { args: ['1', 2] }],
  ['args has more than 100000 entries', { args: Array(100_001).fill('') }],
  ['env has more than 100000 entries', { env: Object.fromEntries(Array.from(Array(100_001), (_, i) => [i, ''])) }],
  ['env: no variable of the name __proto__', { env: { ['__proto__']: 'x' } }],
  ['env is a list', { env: ['A=b'] }],
  ['env PORT is 8080', { env: { PORT: 8080 } }],
  ['env COUNT is 1', { env: { COUNT: 1n } }],
  ['config.working_directory is 1', { workingDirectory: 1 }],
  ['config.source_file_name is an object', { sourceFileName: {} }],
  ['config.output_files.stdout is undefined', { outputFiles: { maxFiles: 0, maxFileBytes: 0 } }],
  ['execution_id has half a character', { executionId: HALF }],
  ['code has half a character', { code: `'${HALF}'` }],
  ['args\\[0\\] has half a character', { args: [HALF] }],
  ['env A has half a character', { env: { A: HALF } }],
];

test.each(WRONG)('library and client refuse a snippet: %s', async (why, wrong) => {
  for (const side of [node.daemon, client]) {
    const refused = side.executeSnippet({ ...SNIPPET, ...wrong } as Snippet);
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(new RegExp(why));
  }
});

test.each<[string, unknown, unknown]>([
  ['session_id is an object', Buffer.from('x'), {}],
  ['session_id has half a character', HALF, {}],
  ['config is null', 'x', null],
  ['config.enabled_languages is js', 'x', { enabledLanguages: 'js' }],
  ['config.enabled_intrinsics\\[0\\] is 1', 'x', { enabledIntrinsics: [1] }],
  ['config.enabled_intrinsics has 1001 names', 'x', { enabledIntrinsics: Array(1001).fill('a') }],
  ['config.enabled_intrinsics\\[0\\] has 1025 bytes', 'x', { enabledIntrinsics: ['a'.repeat(1025)] }],
  ['config.enable_ai is yes', 'x', { enableAi: 'yes' }],
  ['config.execution_defaults is 1', 'x', { executionDefaults: 1 }],
  ['config.execution_defaults.signal_tree is 1', 'x', { executionDefaults: { signalTree: 1 } }],
])('library and client refuse a session: %s', async (why, id, config) => {
  for (const side of [node.daemon, client]) {
    const refused = side.createSession(id as string, config as SessionConfiguration);
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(new RegExp(why));
  }
});

/** What one with half a character would be on the wire. */
const WHOLE = HALF.toWellFormed();

test.each<[string, (session: string, execution: string) => Promise<unknown>]>([
  ['getExecutionStatus', (s, e) => client.getExecutionStatus(s, e)],
  ['cancelExecution', (s, e) => client.cancelExecution(s, e)],
  ['signalExecution', (s, e) => client.signalExecution(s, e, 'SIGTERM')],
  ['getExecutionMetrics', (s, e) => client.getExecutionMetrics(s, e)],
  ['watchExecutionMetrics', (s, e) => client.watchExecutionMetrics({ sessionId: s, executionId: e }).next()],
  ['wait', (s, e) => client.wait(s, e)],
  ['writeInput', (s, e) => client.writeInput(s, e, Buffer.from('x'))],
  ['watchExecution', (s, e) => client.watchExecution(s, e).next()],
  ['streamOutput', (s, e) => client.streamOutput(s, e).next()],
  ['releaseExecution', (s, e) => client.releaseExecution(s, e)],
  ['getSession', (s) => client.getSession(s)],
  ['listExecutions', (s) => client.listExecutions(s).next()],
  ['deleteSession', (s) => client.deleteSession(s)],
])('the client makes no other id of one that is none: %s', async (_method, call) => {
  await client.createSession(WHOLE);
  await client.executeSnippet({ ...SNIPPET, sessionId: WHOLE, executionId: WHOLE });
  const refused = [['session_id has half a character', HALF, WHOLE]];
  if (call.length === 2) refused.push(['execution_id has half a character', WHOLE, HALF]);

  for (const [why, session, execution] of refused as [string, string, string][]) {
    const called = call(session, execution);
    await expect(called).rejects.toThrow(InvalidArgumentError);
    await expect(called).rejects.toThrow(why);
  }
});

test('the client refuses an interval that no message can hold', async () => {
  for (const intervalMs of [150.5, -1, 1e10, Number.NaN]) {
    const refused = client.watchExecutionMetrics({ intervalMs }).next();
    await expect(refused).rejects.toThrow(InvalidArgumentError);
    await expect(refused).rejects.toThrow(`interval_ms is ${intervalMs}`);
  }
});

test('of no stream the client brings nothing', async () => {
  const executionId = 'speaks';
  await client.executeSnippet({
    ...SNIPPET,
    executionId,
    code: "console.log('text'); setInterval(() => {}, 1_000_000)",
  });
  for await (const _ of client.streamOutput('s', executionId)) break;

  expect(await Array.fromAsync(client.streamOutput('s', executionId, { streams: [] }))).toEqual([]);

  await client.cancelExecution('s', executionId, { signal: 'SIGKILL' });
});

test('what was refused holds up nobody', async () => {
  for (const [, wrong] of WRONG) await node.daemon.executeSnippet({ ...SNIPPET, ...wrong } as Snippet).catch(() => {});

  await node.daemon.executeSnippet({ ...SNIPPET, executionId: 'next' });

  expect((await client.wait('s', 'next')).result?.reason).toBe('completed');
});

const FIGURES = [-1, 0.5, Number.NaN, 2 ** 53] as const;
const OF_SNIPPETS: (keyof Snippet)[] = [
  'timeoutMs',
  'graceMs',
  'queueTimeoutMs',
  'cpuTimeLimitMs',
  'memoryLimitMb',
  'memorySoftLimitMb',
  'outputLimitBytes',
  'processLimit',
  'openFileLimit',
];
const OF_SESSIONS: (keyof SessionConfiguration)[] = [
  'contextPoolSize',
  'memoryLimitMb',
  'maxRunning',
  'maxQueued',
  'weight',
  'idleTtlMs',
  'totalTtlMs',
  'retainedAgeMs',
  'retainedExecutions',
  'outputBudgetBytes',
];

test.each(FIGURES)('library and client refuse %d alike, and name the field', async (figure) => {
  for (const side of [node.daemon, client]) {
    for (const field of OF_SNIPPETS) {
      const refused = side.executeSnippet({ ...SNIPPET, executionId: 'figure', [field]: figure });
      await expect(refused).rejects.toThrow(InvalidArgumentError);
      await expect(refused).rejects.toThrow(`config.${nameOf(field)} is ${figure}`);
    }
    for (const field of OF_SESSIONS) {
      // NaN is no figure at all, as is 0: the default.
      if (Number.isNaN(figure) && ['contextPoolSize', 'memoryLimitMb', 'maxQueued'].includes(field)) continue;
      const refused = side.createSession('figure', { [field]: figure });
      await expect(refused).rejects.toThrow(InvalidArgumentError);
      await expect(refused).rejects.toThrow(`config.${nameOf(field)} is ${figure}`);
    }
  }
});

/** As messages have it. */
function nameOf(field: string): string {
  if (field === 'timeoutMs') return 'timeout';
  if (field === 'graceMs') return 'grace';
  return field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

test.each([
  ['before', 0],
  ['after', 1],
])('a position that there cannot be is refused %s the output lies in the journal', async (_, sealed) => {
  const executionId = `output-${sealed}`;
  await node.daemon.executeSnippet({ ...SNIPPET, executionId, code: "console.log('text')" });
  await client.wait('s', executionId);
  if (sealed) await eventually('all is sealed', () => outputDirectories(node).length === 0);

  for (const side of [node.daemon, client]) {
    for (const stdoutPosition of [-1, -1000, 1.5, Number.NaN]) {
      const options: StreamOptions = { stdoutPosition, follow: false };
      const refused = Array.fromAsync(side.streamOutput('s', executionId, options));
      await expect(refused).rejects.toThrow(InvalidArgumentError);
      await expect(refused).rejects.toThrow(`stdout_position is ${stdoutPosition}`);
    }
    for (const fromSequence of [-1, 1.5, Number.NaN]) {
      const refused = Array.fromAsync(side.watchExecution('s', executionId, { fromSequence }));
      await expect(refused).rejects.toThrow(InvalidArgumentError);
      await expect(refused).rejects.toThrow(`from_sequence is ${fromSequence}`);
    }
  }
});

test('bytes that are no UTF-8 are refused, and become no other text', async () => {
  using raw = Object.assign(new Client(`unix:${node.endpoints.socket}`, credentials.createInsecure()), {
    [Symbol.dispose]: () => raw.close(),
  });
  const message = Buffer.from(
    ExecuteSnippetRequest.encode(snippetRequest({ ...SNIPPET, executionId: 'bytes-??' })).finish(),
  );
  message.write('\xff\xfe', message.indexOf('??'), 'latin1');
  const { promise, reject, resolve } = Promise.withResolvers<void>();
  const path = '/elide.daemon.v1alpha1.ExecutionApi/ExecuteSnippet';
  raw.makeUnaryRequest(
    path,
    (bytes: Buffer) => bytes,
    (bytes) => bytes,
    message,
    (error) => (error ? reject(error) : resolve()),
  );

  await expect(promise).rejects.toMatchObject({ code: 3 });

  const known = (await node.daemon.listExecutions()).map(({ executionId }) => executionId);
  expect(known.filter((id) => id.startsWith('bytes'))).toEqual([]);
});
