export type { CallOptions, DaemonAddress } from './client.ts';
export { connectDaemon, DaemonClient } from './client.ts';
export { ClientError, UnreachableError } from './client-error.ts';
export type { ExecutionSummary } from './convert.ts';
