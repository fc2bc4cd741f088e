import { block, configuration, count, duration, flag, list, size, strings, text, word } from '../plugin/hclspec.ts';
import { memoryLimit, timeoutAction } from '../plugin/limit-fields.ts';
import { ROTATION_FIELDS } from '../plugin/task-config.ts';

/** The `config` of the agent's `plugin "elide"` block. */
export const PLUGIN = configuration({
  enabled: flag,
  daemon_socket: text,
  daemon_address: text,
  daemon_tls: block({ ca_file: text, cert_file: text, key_file: text }),
  daemon_token_file: text,
  daemon: word('connect', 'spawn'),
  daemon_path: text,
  daemon_args: list,
  // The first driver knew it and made no use of it either.
  elide_binary: text,
  session_id: text,
  session_config: block({
    context_pool_size: count,
    enabled_languages: list,
    enabled_intrinsics: list,
    memory_limit_mb: count,
    enable_ai: flag,
  }),
  logs: word('direct', 'nomad'),
  ...ROTATION_FIELDS,
  reconnect_limit: duration,
});
export type PluginConfig = ReturnType<typeof PLUGIN.decode>;

/** The `config` of a task. */
export const TASK = configuration({
  script: text,
  code: text,
  language: text,
  args: list,
  env: strings,
  isolation: word('thread', 'process'),
  elide_opts: block({
    memory_limit: memoryLimit,
    enable_ai: flag,
    timeout: duration,
    on_timeout: timeoutAction,
    output_limit: size,
    intrinsics: list,
  }),
});
export type TaskOptions = ReturnType<typeof TASK.decode>;
