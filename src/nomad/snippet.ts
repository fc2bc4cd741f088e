import { languageOf } from '../client/index.ts';
import { InvalidArgumentError } from '../errors.ts';
import type { TaskConfig } from '../gen/nomad/driver.ts';
import { lateVariables } from '../plugin/late-variables.ts';
import { ISOLATION, memoryMbOf, outputFilesOf, readTaskFile, taskDirectoryOf } from '../plugin/task-config.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { type PluginConfig, TASK, type TaskOptions } from './configuration.ts';

const MIB = 2 ** 20;

/** What a task is to run, and what is asked for that it will not have; for people. */
export interface Prepared {
  snippet: Snippet;
  unmet: string[];
}

/** Rejects with an `InvalidArgumentError` that names what is wrong. */
export async function prepare(task: TaskConfig, plugin: PluginConfig, sessionId: string): Promise<Prepared> {
  const options = TASK.decode(task.msgpackDriverConfig);
  const { memory_limit, timeout, on_timeout, output_limit } = options.elide_opts ?? {};
  const snippet: Snippet = {
    ...(await programOf(options, task)),
    sessionId,
    executionId: task.id,
    language: options.language || (languageOf(options.script ?? '') ?? 'python'),
    args: options.args ?? [],
    env: { ...task.env, ...options.env },
    workingDirectory: taskDirectoryOf(task),
    isolation: options.isolation ?? ISOLATION,
    memoryLimitMb: memory_limit ? Math.ceil(memory_limit / MIB) : memoryMbOf(task),
    timeoutMs: timeout || undefined,
    ...on_timeout,
    outputLimitBytes: output_limit || undefined,
    outputFiles: outputFilesOf(task, plugin.logs !== 'nomad', plugin.log_max_files, plugin.log_max_file_size),
  };
  return { snippet, unmet: [...unmetOf(options, plugin), ...lateVariables(snippet)] };
}

/** The first driver took these, from tasks and for the session, and made no use of them; the daemon has none yet. */
function unmetOf({ elide_opts: wanted }: TaskOptions, { session_config: session }: PluginConfig): string[] {
  const names = new Set([...(session?.enabled_intrinsics ?? []), ...(wanted?.intrinsics ?? [])]);
  if (wanted?.enable_ai || session?.enable_ai) names.add('enable_ai');
  const rest = 'the daemon has no intrinsics and no AI, the task runs with what its language brings';
  return names.size === 0 ? [] : [`asked for and not there: ${[...names].join(', ')}; ${rest}`];
}

async function programOf({ script, code }: TaskOptions, task: TaskConfig) {
  if (Boolean(script) === Boolean(code)) throw new InvalidArgumentError('exactly one of script and code must be set');
  if (!script) return { code: code as string };
  try {
    const { path, text } = await readTaskFile(task, script);
    return { code: text, sourceFileName: path };
  } catch (error) {
    throw new InvalidArgumentError(`script "${script}": ${(error as Error).message}`, { cause: error });
  }
}
