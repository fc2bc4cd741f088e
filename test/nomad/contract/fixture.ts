import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll } from 'vitest';
import type { FingerprintResponse, TaskConfig } from '../../../src/gen/nomad/driver.ts';
import { eventually, TestDaemon, temporaryDirectory } from '../../support/daemon.ts';
import { collect, logsOf, PluginHost, taskIn } from '../host.ts';

export const LANGUAGES = ['python', 'javascript', 'typescript'];
export let daemon: TestDaemon;
export let host: PluginHost;
export let root: string;

/** For the tests of a file: one daemon, one plugin that knows it, and a directory for their tasks. */
export function usePlugin(): void {
  beforeAll(async () => {
    root = temporaryDirectory();
    daemon = await TestDaemon.start();
    host = await PluginHost.start({
      daemon_socket: daemon.endpoints.socket,
      session_config: { enabled_languages: LANGUAGES },
    });
  });
  afterAll(async () => {
    await host[Symbol.asyncDispose]();
    await daemon[Symbol.asyncDispose]();
  });
}

export const javascript = (code: string, more: object = {}) => taskIn(root, { language: 'javascript', code, ...more });
export const python = (code: string, more: object = {}) => taskIn(root, { language: 'python', code, ...more });
export const SLEEP = 'console.log("ready"); setInterval(() => {}, 1000)';
export const ready = (task: TaskConfig) => eventually('the task is ready', () => logsOf(task).includes('ready'));

export async function fingerprints(of: PluginHost, enough: (all: FingerprintResponse[]) => boolean) {
  return collect(of.driver.fingerprint({}), enough);
}

/** The executions that are there for commands beside a task. */
export const commandsBeside = async ({ daemon: at }: TestDaemon, { id }: TaskConfig) =>
  (await at.listExecutions()).filter(({ executionId }) => executionId.startsWith(`${id}/`));

/** In what code runs that is evaluated beside a task. */
export async function isolationBeside(of: PluginHost, { id }: TaskConfig): Promise<'process' | 'thread'> {
  const code = 'console.log(require("node:fs").readlinkSync("/proc/thread-self"))';
  const { stdout } = await of.exec(id, ['elide-eval', code]);
  const [, pid, threadId] = /^(\d+)\/task\/(\d+)\n$/.exec(stdout.toString()) ?? [];
  if (pid === undefined) throw new Error(`no thread: ${stdout}`);
  return pid === threadId ? 'process' : 'thread';
}

/** A socket, and the flags of daemons that follow each other on it and on their state; what they leave is soon gone. */
export function placesIn(directory: string): [string, string[]] {
  const [socket, config] = [join(directory, 'd.sock'), join(directory, 'config.json')];
  writeFileSync(config, JSON.stringify({ onStop: 'detach', orphanGraceMs: 60_000 }));
  return [socket, ['--socket', socket, '--state-dir', join(directory, 's'), '--config', config]];
}

/** What a plugin tells of a task from now on. */
export function messagesOf(plugin: PluginHost, task: TaskConfig): string[] {
  const messages: string[] = [];
  const call = plugin.driver.taskEvents({});
  call.on('error', () => {});
  call.on('data', ({ taskId, message }) => taskId === task.id && messages.push(message));
  return messages;
}
