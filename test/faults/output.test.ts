import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually } from '../support/daemon.ts';
import { FaultNode } from './node.ts';

/** The directory of the one execution whose stdout is this. */
function directoryOf(node: FaultNode, stdout: string): string {
  const output = join(node.stateDir, 'daemon', 'output');
  const directories = readdirSync(output).flatMap((key) =>
    readdirSync(join(output, key)).map((name) => join(key, name)),
  );
  const found = directories.map((name) => join(output, name)).filter((name) => stdoutIn(name) === stdout);
  if (found.length !== 1) throw new Error(`${found.length} executions have written ${stdout}`);
  return found[0] as string;
}

const stdoutIn = (directory: string) => readFileSync(join(directory, 'stdout'), 'utf8');

test('output that somebody has removed is told as lost, with what it was, and its result stays', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  const written: Record<string, string> = { file: 'one', directory: 'three', silent: '', deep: 'seven' };
  for (const [executionId, text] of Object.entries(written)) {
    const code = `process.stdout.write('${text}'); process.stderr.write('${text && 'warned'}'); process.exit(4)`;
    await node.client.executeSnippet({ sessionId: 's', executionId, language: 'javascript', code });
    await node.client.wait('s', executionId);
  }
  const read = (executionId: string, streams: ('stdout' | 'stderr')[], from = 0) =>
    Array.fromAsync(node.client.streamOutput('s', executionId, { streams, stdoutPosition: from }));
  const lost = (executionId: string, bytes: number, stream = 'stdout') => ({
    code: 'data_loss',
    message: `${stream} of execution "${executionId}" is lost: it had ${bytes} bytes, and its file is not there any more`,
  });

  const directories = ['three', ''].map((text) => directoryOf(node, text));
  for (const path of [join(directoryOf(node, 'one'), 'stdout'), ...directories]) rmSync(path, { recursive: true });

  for (const daemon of ['this daemon', 'the next one']) {
    await expect(read('file', ['stdout']), daemon).rejects.toMatchObject(lost('file', 3));
    await expect(read('file', ['stdout', 'stderr'], 2), daemon).rejects.toMatchObject(lost('file', 3));
    await expect(read('file', ['stdout'], 4), daemon).rejects.toMatchObject({ code: 'out_of_range' });
    expect(await read('file', ['stdout'], 3), daemon).toEqual([]);
    expect(Buffer.concat((await read('file', ['stderr'])).map(({ data }) => data)).toString(), daemon).toBe('warned');
    await expect(read('directory', ['stdout']), daemon).rejects.toMatchObject(lost('directory', 5));
    await expect(read('directory', ['stderr']), daemon).rejects.toMatchObject(lost('directory', 6, 'stderr'));
    expect(await read('silent', ['stdout', 'stderr']), daemon).toEqual([]);
    expect(await node.stdout('deep'), daemon).toBe('seven');
    for (const [executionId, text] of Object.entries(written)) {
      const status = await node.client.getExecutionStatus('s', executionId);
      expect(status, daemon).toMatchObject({
        result: { reason: 'failed', exitCode: 4 },
        stdoutBytes: text.length,
        stderrBytes: text === '' ? 0 : 'warned'.length,
        outputEvicted: false,
      });
    }
    await node.restart();
  }
  // What was lost and then evicted was evicted: that is said of it from then on.
  await node.restart({ outputBudgetBytes: 1 });
  await eventually('it is evicted', async () => (await node.client.getExecutionStatus('s', 'file')).outputEvicted);
  await expect(read('file', ['stdout'])).rejects.toMatchObject({
    code: 'out_of_range',
    message: expect.stringContaining('it now begins at 3, its end'),
  });
});

test('of output that nobody saw the end of, nothing is told where it is not there', async () => {
  await using node = await FaultNode.start();
  await node.client.createSession('s');
  await node.ready({ executionId: 'e', code: "setInterval(() => {}, 1000); console.log('ready');" });
  await node.end();
  for (const pid of node.cellPids()) process.kill(pid, 'SIGKILL');
  await eventually('no cell is left', () => node.cellPids().length === 0);
  await node.start();
  expect((await node.client.wait('s', 'e')).result).toMatchObject({ reason: 'daemon_lost', usage: undefined });
  expect(await node.stdout('e')).toBe('ready\n');

  rmSync(directoryOf(node, 'ready\n'), { recursive: true });

  expect(await node.stdout('e')).toBe('');
});
