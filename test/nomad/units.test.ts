import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, test } from 'vitest';
import { CONTROLLERS, ControlGroups } from '../../src/supervisor/control-groups.ts';
import { VERSION } from '../../src/version.ts';
import { removePlace } from '../support/control-groups.ts';
import { temporaryDirectory } from '../support/daemon.ts';

const EXAMPLES = join(import.meta.dirname, '../../examples/nomad');
const MAIN = join(import.meta.dirname, '../../dist/src/main.js');
const UNITS = ['elide-daemon.service', 'elide-daemon-nomad.service'];

/** What a unit says, with where systemd keeps state (`%S`) and what is gone with a boot (`%t`). */
function unitOf(name: string, state: string, runtime: string) {
  const text = readFileSync(join(EXAMPLES, name), 'utf8');
  const value = (key: string) => new RegExp(`^${key}=(.*)$`, 'm').exec(text)?.[1] ?? '';
  const command = value('ExecStart').replaceAll('%S', state).replaceAll('%t', runtime).split(' ');
  const directories = [join(state, value('StateDirectory')), join(runtime, value('RuntimeDirectory'))];
  const place = command[command.indexOf('--control-groups') + 1] as string;
  return { command, directories, place };
}

test.each(UNITS)('%s starts a daemon in the directories that systemd makes for it', async (name) => {
  const root = temporaryDirectory();
  const { command, directories, place } = unitOf(name, join(root, 'lib'), join(root, 'run'));
  const [program, ...flags] = command;
  for (const directory of directories) mkdirSync(directory, { recursive: true, mode: 0o755 });

  const daemon = spawn(process.execPath, [MAIN, ...flags, '--log-level', 'error'], {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(daemon, 'exit');
  try {
    const [said] = await Promise.race([once(createInterface(daemon.stdout), 'line'), exited]);
    expect(said).toBe(`elide-daemon ${VERSION} ready on unix:${root}/run/elide/daemon.sock`);
    expect(existsSync(`${root}/lib/elide/daemon/journal.db`)).toBe(true);
    daemon.kill('SIGTERM');
    expect(await exited).toEqual([0, null]);
  } finally {
    daemon.kill('SIGKILL');
    await exited;
    // One that lets its cells go leaves its groups to the next one, too.
    await ControlGroups.open(CONTROLLERS, place).close();
    removePlace(place);
  }

  expect(program).toBe('/usr/bin/elide-daemon');
});

test.each(UNITS)('the example of an agent speaks to the daemon of %s', (name) => {
  const { command } = unitOf(name, '/var/lib', '/run');
  const socket = command[command.indexOf('--socket') + 1];

  expect(readFileSync(join(EXAMPLES, 'agent.hcl'), 'utf8')).toContain(`daemon_socket = "${socket}"`);
});
