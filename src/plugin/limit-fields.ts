import * as v from 'valibot';
import { LIMITS } from '../supervisor/limits.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { parseSignal } from '../supervisor/signals.ts';
import { attr, sizeOf } from './hclspec.ts';

/*
 * Limits in the configuration of a task: what daemons refuse is refused here, under the name that the user wrote.
 */

const MIB = 2 ** 20;

/** In bytes; 0 is as good as nothing said. */
export const memoryLimit = sizeOf(LIMITS.memoryLimitMb.least * MIB, LIMITS.memoryLimitMb.most * MIB);

function isAction(name: string): boolean {
  if (name === '' || name === 'cancel' || name === 'kill') return true;
  try {
    return parseSignal(name, '') !== undefined;
  } catch {
    return false;
  }
}

function actionOf(name: string): Pick<Snippet, 'onTimeout' | 'timeoutSignal'> {
  if (name === '') return {};
  if (name === 'cancel' || name === 'kill') return { onTimeout: name };
  return { onTimeout: 'signal', timeoutSignal: name };
}

/** What happens at the run limit: `cancel`, `kill`, or the name of a signal. Empty is as good as nothing said. */
export const timeoutAction = attr(
  'string',
  v.pipe(
    v.string(),
    v.check(isAction, 'it must be cancel, kill or the name of a signal, for example SIGTERM'),
    v.transform(actionOf),
  ),
);
