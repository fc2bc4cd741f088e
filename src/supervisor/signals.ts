import { constants } from 'node:os';
import { InvalidArgumentError } from '../errors.ts';

/** The signals of this system by name, without the two that name no deliverable signal. */
const NAMES = Object.keys(constants.signals);

/** Signals that a thread cannot have: they stop and continue a whole process, its neighbours included. */
const PROCESS_ONLY = new Set(['SIGSTOP', 'SIGCONT', 'SIGTSTP', 'SIGTTIN', 'SIGTTOU']);

/** A signal's proper name from what people write (`term`, `TERM`, `SIGTERM`). Throws when there is none. */
export function parseSignal(name: string, field: string): NodeJS.Signals {
  const upper = name.toUpperCase();
  const full = upper.startsWith('SIG') ? upper : `SIG${upper}`;
  if (!NAMES.includes(full)) {
    throw new InvalidArgumentError(`${field}: unknown signal "${name}" (for example SIGTERM, SIGINT, SIGHUP, SIGKILL)`);
  }
  return full as NodeJS.Signals;
}

/** Throws when a guest that is a thread cannot be sent this signal. */
export function requireThreadSignal(signal: NodeJS.Signals, language: string, field: string): void {
  if (PROCESS_ONLY.has(signal)) {
    throw new InvalidArgumentError(
      `${field}: ${signal} stops or continues a whole process; a ${language} execution is a thread`,
    );
  }
}
