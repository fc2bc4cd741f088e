import type { CallOptions, DaemonClient } from '../client/index.ts';
import type { HealthResponse } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { summaryOf } from '../supervisor/limits.ts';
import type { Attributes } from './fingerprint.ts';

/** What a job may ask for in its constraints, of a daemon that is well and of a session there. */
export async function attributesOf(
  client: DaemonClient,
  sessionId: string,
  { version, maxRunning, maxQueued }: HealthResponse,
  options: CallOptions,
): Promise<Attributes> {
  const { config } = await client.getSession(sessionId, options);
  const languages = await client.languages(options);
  const enabled = languages.filter(({ name, available }) => available && config.enabledLanguages.includes(name));
  const limits = await client.enforcement(options);
  const running = Math.min(config.maxRunning || maxRunning, maxRunning);
  return {
    unique: { session_id: sessionId },
    '': 'true',
    available: 'true',
    version,
    isolation: 'process,thread',
    context_pool_size: config.contextPoolSize,
    language: Object.fromEntries(enabled.map((language) => [language.name, language.version])),
    limit: summaryOf(limits.filter(({ enforced }) => enforced)),
    capacity: { running: maxRunning, queued: maxQueued, session: { running, queued: config.maxQueued } },
  };
}
