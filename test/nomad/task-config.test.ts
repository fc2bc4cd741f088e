import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readTaskFile } from '../../src/plugin/task-config.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { taskIn } from './host.ts';

/** Exchanges a directory with a link without end. */
const EXCHANGE = `import os, sys
directory, link, aside = sys.argv[1:]
print('begun', flush=True)
while True:
    os.rename(directory, aside)
    os.rename(link, directory)
    os.rename(directory, link)
    os.rename(aside, directory)
`;

test('a file outside is never read in the place of a task’s own, also where a directory becomes a link meanwhile', async () => {
  const root = temporaryDirectory();
  const task = taskIn(root, {});
  const [outside, directory] = [join(root, 'outside'), join(task.allocDir, 'task/local')];
  const [link, aside] = [join(task.allocDir, 'task/link'), join(task.allocDir, 'task/aside')];
  mkdirSync(outside);
  writeFileSync(join(outside, 'main.js'), 'secret');
  writeFileSync(join(directory, 'main.js'), 'own');
  symlinkSync(outside, link);
  const exchange = spawn('python3', ['-c', EXCHANGE, directory, link, aside], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(exchange, 'exit');
  const seen = new Set<string>();
  try {
    await once(exchange.stdout, 'data');

    for (let count = 0; count < 10_000; count += 1) {
      const read = readTaskFile(task, 'local/main.js').then(({ text }) => text);
      seen.add(await read.catch((error: Error) => (error.message.startsWith('leads out of') ? 'refused' : 'none')));
    }

    expect(exchange.exitCode).toBe(null);
  } finally {
    exchange.kill('SIGKILL');
    await exited;
  }
  expect(seen).toContain('own');
  expect(seen).toContain('refused');
  expect(seen).not.toContain('secret');
});
