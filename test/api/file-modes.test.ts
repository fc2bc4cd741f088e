import { mkdirSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { connectDaemon, type DaemonClient } from '../../src/client/index.ts';
import { TestDaemon, temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';

/** Of whoever runs these tests. A daemon has that which this process has when it starts. */
const own = process.umask(0o022);

afterEach(() => {
  process.umask(own);
});

const JAVASCRIPT = `const fs = require('node:fs');
fs.writeFileSync('file', '');
fs.mkdirSync('directory');
require('node:child_process').execSync('touch child');
fs.promises.writeFile('later', '').then(() => console.log(process.umask()));`;

const PYTHON = `import os, subprocess
open('file', 'w').close()
os.mkdir('directory')
subprocess.run(['touch', 'child'])
open('later', 'w').close()
print(os.umask(0))`;

/** Guests that wait, in a directory of their own. */
const WAITING = {
  thread: { language: 'javascript', code: "console.log('ready'); setInterval(() => {}, 1000)" },
  process: { language: 'javascript', code: "console.log('ready'); setInterval(() => {}, 1000)", isolation: 'process' },
  python: { language: 'python', code: 'import time\nprint("ready", flush=True)\ntime.sleep(600)' },
} as const;

const GUESTS = {
  thread: { language: 'javascript', code: JAVASCRIPT },
  process: { language: 'javascript', code: JAVASCRIPT, isolation: 'process' },
  python: { language: 'python', code: PYTHON },
} as const;

type Kind = keyof typeof GUESTS;

/** A daemon that was started with this mask, as a program or in this process. */
async function startDaemon(way: string, mask: number) {
  process.umask(mask);
  if (way === 'elide-daemon') {
    const daemon = await DaemonProcess.start();
    const { socket, directory } = daemon;
    return { daemon, socket, state: join(directory, 'state') };
  }
  const daemon = await TestDaemon.start();
  return { daemon, socket: join(daemon.root, 'd.sock'), state: join(daemon.root, 's') };
}

/** Resolves with what was written once that holds `text`, or the guest has ended. */
async function printed(client: DaemonClient, executionId: string, text: string): Promise<string> {
  let written = '';
  for await (const { data } of client.streamOutput('s', executionId)) {
    written += data.toString();
    if (written.includes(text)) break;
  }
  return written;
}

const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8);

describe.each(['elide-daemon', 'createDaemon'])('%s', (way) => {
  test('guests of every kind make files with the mask that the daemon was started with', async () => {
    const { daemon, socket } = await startDaemon(way, 0o027);
    await using _ = daemon;
    using client = connectDaemon({ socket });
    await client.createSession('s');

    const made = await Promise.all(
      Object.entries(GUESTS).map(async ([kind, guest]) => {
        const workingDirectory = join(temporaryDirectory(), kind);
        mkdirSync(workingDirectory);
        await client.executeSnippet({ sessionId: 's', executionId: kind, workingDirectory, ...guest });
        const stdout = await printed(client, kind, '\n');
        await client.wait('s', kind);
        const names = ['file', 'later', 'child', 'directory'];
        return [kind, stdout, ...names.map((name) => modeOf(join(workingDirectory, name)))];
      }),
    );

    expect(made).toEqual(Object.keys(GUESTS).map((kind) => [kind, '23\n', '640', '640', '640', '750']));
  });

  test('what the daemon and its cells make is their own user’s alone, whatever the mask', async () => {
    const { daemon, socket, state } = await startDaemon(way, 0);
    await using _ = daemon;
    using client = connectDaemon({ socket });
    await client.createSession('s');
    for (const kind of Object.keys(WAITING) as Kind[]) {
      await client.executeSnippet({ sessionId: 's', executionId: kind, ...WAITING[kind] });
      await printed(client, kind, 'ready');
    }

    // A link among what cells run leads to what is installed.
    const found = readdirSync(state, { recursive: true, encoding: 'utf8' });
    const made = found.filter((name) => !name.includes('/node_modules/oxc-transform'));
    const open = [socket, state, ...made.map((name) => join(state, name))].filter(
      (path) => (statSync(path).mode & 0o077) !== 0,
    );

    // All kinds of things are there to be looked at.
    for (const ending of [/journal\.db$/, /\.sock$/, /\.token$/, /\.ends$/, /stdout$/, /main\.js$/, /main\.py$/]) {
      expect(made).toContainEqual(expect.stringMatching(ending));
    }
    // SQLite makes those, and nothing is in them.
    expect(open.filter((path) => !/\/lock\.db(-journal)?$/.test(path))).toEqual([]);
  });
});
