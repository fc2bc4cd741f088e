import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, expect, onTestFinished, test } from 'vitest';
import { temporaryDirectory } from './support/daemon.ts';

const project = fileURLToPath(new URL('..', import.meta.url));
const directory = temporaryDirectory();
/** What `npm install` makes of the package; its dependencies are the project's. */
const installed = join(directory, 'package');
let bin: Record<string, string>;

beforeAll(() => {
  // Without `prepare`: all is built.
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', directory];
  const [{ filename }] = JSON.parse(execFileSync('npm', pack, { cwd: project, encoding: 'utf8' }));
  execFileSync('tar', ['-xzf', join(directory, filename), '-C', directory]);
  symlinkSync(join(project, 'node_modules'), join(directory, 'node_modules'));
  bin = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')).bin;
}, 180_000);

test('the package has all that its programs need, for every kind of guest', { timeout: 180_000 }, async () => {
  const program = (name: string) => join(installed, bin[name] as string);
  const socket = join(directory, 'd.sock');
  const places = ['--socket', socket, '--state-dir', join(directory, 'state')];
  const daemon = spawn(process.execPath, [program('elide-daemon'), ...places, '--log-level', 'error'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(async () => {
    if (daemon.kill()) await once(daemon, 'exit');
  });
  await once(daemon.stdout, 'data');
  const run = (...flags: string[]) => {
    const args = [program('elidectl'), '--socket', socket, 'run', ...flags];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    return [status, stdout, stderr];
  };

  expect(run('--language', 'javascript', '--eval', 'console.log(1)')).toEqual([0, '1\n', '']);
  expect(run('--language', 'js', '--isolation', 'process', '--eval', 'console.log(2)')).toEqual([0, '2\n', '']);
  expect(run('--language', 'typescript', '--eval', 'console.log(3 as number)')).toEqual([0, '3\n', '']);
  expect(run('--language', 'ts', '--isolation', 'process', '--eval', 'console.log(4 as number)')).toEqual([
    0,
    '4\n',
    '',
  ]);
  expect(run('--language', 'python', '--eval', 'print(5)')).toEqual([0, '5\n', '']);
});
