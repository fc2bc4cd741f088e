export type { CallOptions, DaemonAddress } from './client.ts';
export { connectDaemon, DaemonClient } from './client.ts';
export { ClientError, UnreachableError } from './client-error.ts';
export { Command, type CommandPlace, type CommandProgram } from './command.ts';
export type { ExecutionSummary } from './convert.ts';
export { languageOf } from './language.ts';
export { presence } from './presence.ts';
export { isLost, type Patience, reconnecting, retry } from './reconnect.ts';
export { DaemonSpawner } from './spawn.ts';
