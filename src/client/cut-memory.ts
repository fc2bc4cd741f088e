import { InvalidArgumentError } from '../errors.ts';
import type { Snippet } from '../supervisor/requests.ts';
import type { DaemonClient } from './client.ts';

/**
 * Hands in a snippet, with as much memory as its session allows where it wants more; resolves with what was accepted. The
 * session is asked only after a refusal: most want less. Once `signal` has aborted, no call that hands it in begins.
 */
export async function executeCut(client: DaemonClient, snippet: Snippet, signal: AbortSignal): Promise<Snippet> {
  const execute = async (as: Snippet) => {
    signal.throwIfAborted();
    await client.executeSnippet(as);
    return as;
  };
  try {
    return await execute(snippet);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    const { config } = await client.getSession(snippet.sessionId);
    const { memoryLimitMb = Infinity } = config.executionCeilings;
    if ((snippet.memoryLimitMb ?? 0) <= memoryLimitMb) throw error;
    return execute({ ...snippet, memoryLimitMb });
  }
}
