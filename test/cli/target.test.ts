import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import { Authority, type KeyPairFiles } from '../support/certificates.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { DaemonProcess } from '../support/daemon-process.ts';
import { CTL, Elidectl } from './elidectl.ts';

let daemon: DaemonProcess;
let ctl: Elidectl;
let authority: Authority;
let own: KeyPairFiles;
let tokenFile: string;

beforeAll(async () => {
  const directory = temporaryDirectory();
  authority = await Authority.create(directory, 'authority');
  own = await authority.issue('client', []);
  tokenFile = join(directory, 'token');
  writeFileSync(tokenFile, 'correct-horse\n', { mode: 0o600 });
  const server = await authority.issue('server', ['127.0.0.1']);
  // One of the three in the file, two as flags: together they are a whole.
  const config = join(directory, 'config.json');
  writeFileSync(config, JSON.stringify({ tls: { keyFile: server.keyFile } }));
  const flags = ['--config', config, '--tls-cert', server.certFile, '--tls-client-ca', authority.certFile];
  daemon = await DaemonProcess.start(...flags, '--token-file', tokenFile);
  ctl = new Elidectl(daemon.socket);
});
const shown = () => ({ '--tls-cert': own.certFile, '--tls-key': own.keyFile });
afterAll(async () => {
  await daemon?.stop();
});

test('flags say what is shown and trusted on TCP', async () => {
  const tls = ['--tls-ca', authority.certFile, '--tls-cert', own.certFile, '--tls-key', own.keyFile];

  const { code, stdout, stderr } = await ctl.run(['--tcp', daemon.tcp, ...tls, '--token-file', tokenFile, 'health']);

  expect([code, stderr.toString()]).toEqual([0, '']);
  expect(stdout.toString()).toContain(`on tcp:${daemon.tcp}`);
});

test('the environment says so too, and changes nothing for a socket', async () => {
  const env = {
    ELIDE_DAEMON_TLS_CA: authority.certFile,
    ELIDE_DAEMON_TLS_CERT: own.certFile,
    ELIDE_DAEMON_TLS_KEY: own.keyFile,
    ELIDE_DAEMON_TOKEN_FILE: tokenFile,
  };

  expect((await ctl.run(['--tcp', daemon.tcp, 'health'], { env })).code).toBe(0);
  expect((await ctl.run(['health'], { env: { ...env, ELIDE_DAEMON_TOKEN_FILE: '/nowhere' } })).code).toBe(0);
});

test('files that can be read only once are read once', async () => {
  const places = Object.entries({ '--tls-ca': authority.certFile, '--token-file': tokenFile, ...shown() });
  const flags = places.map(([flag, path]) => `${flag} <(cat '${path}')`).join(' ');
  const line = `exec '${process.execPath}' '${CTL}' --tcp '${daemon.tcp}' ${flags} health`;

  const { stdout, stderr } = await promisify(execFile)('bash', ['-c', line]);

  expect([stdout, stderr]).toEqual([expect.stringContaining(`on tcp:${daemon.tcp}`), '']);
});

test('a call without the token is refused with the flag that is missing', async () => {
  const tls = ['--tls-ca', authority.certFile, '--tls-cert', own.certFile, '--tls-key', own.keyFile];

  const { code, stderr } = await ctl.run(['--tcp', daemon.tcp, ...tls, 'health']);

  expect(code).toBe(125);
  expect(stderr.toString()).toMatch(/^elidectl: .*this call has none: name its file with --token-file\n$/);
});

test('a file that cannot be used is named', async () => {
  const { code, stderr } = await ctl.run(['--tcp', daemon.tcp, '--tls-ca', '/nowhere', 'health']);

  expect(code).toBe(125);
  expect(stderr.toString()).toContain('tls.caFile /nowhere: ENOENT');
});

test('a daemon that takes calls and answers none is named by whatever asks it', async () => {
  await using frozen = await DaemonProcess.start();
  const asking = new Elidectl(frozen.socket);
  const commands = [
    'health',
    'doctor',
    'ps',
    'languages',
    'stats --once',
    'inspect e',
    'stats --once e',
    'run -d -l python -e 0',
  ];
  const ofSessions = ['session ls', 'session inspect s', 'session create s', 'session rm s'];
  frozen.child.kill('SIGSTOP');
  const running = [...commands, ...ofSessions].map((line) => asking.start(line.split(' ')));
  onTestFinished(() => {
    for (const { child } of running) child.kill('SIGKILL');
  });

  const ended = await Promise.all(running.map((each) => each.ended)).finally(() => frozen.child.kill('SIGCONT'));

  const message = `elidectl: the daemon on unix:${frozen.socket} does not answer\n`;
  expect(ended.map(({ code, stderr }) => [code, String(stderr)])).toEqual(ended.map(() => [125, message]));
});
