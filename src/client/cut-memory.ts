import { InvalidArgumentError } from '../errors.ts';
import type { Snippet } from '../supervisor/requests.ts';
import type { DaemonClient } from './client.ts';

/**
 * Hands in a snippet, with as much memory as its session allows where it wants more; resolves with what was accepted. The
 * session is asked only after a refusal: most want less.
 */
export async function executeCut(client: DaemonClient, snippet: Snippet): Promise<Snippet> {
  try {
    await client.executeSnippet(snippet);
    return snippet;
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    const { config } = await client.getSession(snippet.sessionId);
    const { memoryLimitMb = Infinity } = config.executionCeilings;
    if ((snippet.memoryLimitMb ?? 0) <= memoryLimitMb) throw error;
    const cut = { ...snippet, memoryLimitMb };
    await client.executeSnippet(cut);
    return cut;
  }
}
