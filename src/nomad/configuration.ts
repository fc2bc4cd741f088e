import * as v from 'valibot';
import { attr, block, configuration, strings } from '../plugin/hclspec.ts';
import { durationMs, sizeBytes } from '../quantities.ts';

const text = attr('string', v.string());
const flag = attr('bool', v.boolean());
const list = attr('list(string)', v.array(v.string()));
const word = <const W extends string[]>(...words: W) => attr('string', v.picklist(words));
/** The agent sends decimals as text. */
const count = attr(
  'number',
  v.pipe(v.union([v.number(), v.string()]), v.transform(Number), v.integer(), v.minValue(0)),
);
/** In ms; seconds where the user says no unit. */
const duration = attr(
  'string',
  v.pipe(
    v.string(),
    v.transform((value) => durationMs(/^[\d.]+$/.test(value) ? `${value}s` : value)),
    v.number('it must be a duration, for example 30s, 1500ms or 1m30s'),
  ),
);
/** In bytes; MiB where the user says no unit. */
const size = attr(
  'string',
  v.pipe(v.string(), v.transform(sizeBytes), v.number('it must be a size, for example 512 (MiB), 100kB or 1GiB')),
);

/** The `config` of the agent's `plugin "elide"` block. */
export const PLUGIN = configuration({
  enabled: flag,
  daemon_socket: text,
  daemon_address: text,
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
  log_max_files: count,
  log_max_file_size: size,
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
    memory_limit: size,
    enable_ai: flag,
    timeout: duration,
    on_timeout: text,
    output_limit: size,
    intrinsics: list,
  }),
});
export type TaskOptions = ReturnType<typeof TASK.decode>;
