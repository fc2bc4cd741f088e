import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { expect, test } from 'vitest';
import { temporaryDirectory } from '../../support/daemon.ts';
import { DaemonProcess } from '../../support/daemon-process.ts';
import { logsOf, PluginHost, taskIn } from '../host.ts';
import { daemon, host, placesIn, root, usePlugin } from './fixture.ts';

usePlugin();

test('with logs = "nomad" output goes into the agent’s pipes, also while there is no daemon', async () => {
  const directory = temporaryDirectory();
  const [socket, places] = placesIn(directory);
  const go = join(directory, 'go');
  const first = await DaemonProcess.start(...places);
  await using other = await PluginHost.start({ daemon_socket: socket, logs: 'nomad' });
  const { capabilities } = await other.call(other.driver, other.driver.capabilities, {});
  expect(capabilities?.disableLogCollection).toBe(false);
  const code = `console.log("ready"); console.error("err"); setInterval(() => { if (!require("node:fs").existsSync("${go}")) return; console.log("last"); process.exit(6); }, 20)`;
  const task = taskIn(directory, { language: 'javascript', code });
  execFileSync('mkfifo', [task.stdoutPath, task.stderrPath]);
  const readers = [task.stdoutPath, task.stderrPath].map((path) => spawn('cat', [path]).stdout);
  const read = readers.map((reader) => text(reader));
  const begun = Promise.all(readers.map((reader) => once(reader, 'readable')));
  await other.start(task);
  await begun;

  await first.stop('SIGKILL');
  writeFileSync(go, '');

  expect(await Promise.all(read)).toEqual(['ready\nlast\n', 'err\n']);
  await using _second = await DaemonProcess.start(...places);
  expect(await other.wait(task.id)).toMatchObject({ result: { exitCode: 6 }, err: '' });
});

test.each(['', '/dev/null'])('a task whose log path is "%s" has no files', async (path) => {
  const task = taskIn(root, { language: 'javascript', code: 'console.log(1)' }, { stdoutPath: path, stderrPath: path });

  expect(await host.run(task)).toMatchObject({ result: { exitCode: 0 } });

  expect(logsOf(task)).toBe('');
  // Nor does the daemon keep it.
  const [session] = await daemon.daemon.listSessions();
  for await (const _ of daemon.daemon.streamOutput(session?.sessionId as string, task.id)) expect.unreachable();
});

test('with logs = "nomad" a pipe that the daemon may not write to is named, and nothing starts', async () => {
  await using own = await DaemonProcess.startWithoutRights();
  await using other = await PluginHost.start({ daemon_socket: own.socket, logs: 'nomad' });
  const task = taskIn(own.directory, { language: 'javascript', code: 'console.log("lost")' });
  execFileSync('mkfifo', ['-m', '400', task.stdoutPath, task.stderrPath]);

  await expect(other.start(task)).rejects.toThrow(`"${task.stdoutPath}": EACCES`);
  await expect(other.inspect(task.id)).rejects.toThrow('task not found');
});
