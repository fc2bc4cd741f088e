export { abandon, relinquish } from './abandon.ts';
export type { CallOptions } from './client.ts';
export { connectDaemon, DaemonClient } from './client.ts';
export { ClientError, UnreachableError } from './client-error.ts';
export {
  Command,
  type CommandOptions,
  type CommandPlace,
  type CommandProgram,
  isCommandOfAnother,
} from './command.ts';
export type { DaemonAddress, TcpAddress } from './connection.ts';
export type { ExecutionSummary } from './convert.ts';
export { executeCut } from './cut-memory.ts';
export { languageOf } from './language.ts';
export { LeftExecutions } from './left-executions.ts';
export { Looks } from './looks.ts';
export { MetricsFeed } from './metrics-feed.ts';
export { presence } from './presence.ts';
export { isLost, reconnecting, retry } from './reconnect.ts';
export { DaemonSpawner } from './spawn.ts';
export { stopGuest } from './stop.ts';
export { takenWithin } from './taken-within.ts';
export { whileAnswering } from './while-answering.ts';
