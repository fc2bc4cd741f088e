export type { ExecutionResult, ExitReason, Rung, Usage } from '../machines/execution.ts';
export { EXIT_REASONS } from '../machines/execution.ts';
export type {
  DeleteOptions,
  Endpoints,
  ExecutionStatus,
  InputOptions,
  MetricsOptions,
  SessionSnapshot,
  SignalOptions,
  StopOptions,
  StreamOptions,
} from './api.ts';
export type { CallOptions, FollowOptions } from './client/client.ts';
export { connectDaemon, DaemonClient } from './client/client.ts';
export { ClientError, UnreachableError } from './client/client-error.ts';
export type { DaemonAddress, TcpAddress, TlsFiles } from './client/connection.ts';
export type { ExecutionSummary } from './client/convert.ts';
export type { DaemonConfig } from './config.ts';
export { createDaemon } from './create-daemon.ts';
export type { Daemon } from './daemon.ts';
export {
  AlreadyExistsError,
  DataLossError,
  ElideError,
  FailedPreconditionError,
  InvalidArgumentError,
  NotFoundError,
  OutOfRangeError,
  ResourceExhaustedError,
  StartupError,
  UnauthenticatedError,
  UnavailableError,
} from './errors.ts';
export type { OutputChunk } from './output/output-files.ts';
export type { ExecutionMetrics } from './supervisor/execution-metrics.ts';
export type { ExecutionSnapshot, ExecutionTimes, LifecycleState, StatusEvent } from './supervisor/execution-record.ts';
export type { Language } from './supervisor/languages.ts';
export type {
  Enforcement,
  ExecutionDefaults,
  ExecutionLimits,
  Isolation,
  OutputPolicy,
  TimeoutAction,
} from './supervisor/limits.ts';
export type { OutputFiles, SessionConfiguration, Snippet } from './supervisor/requests.ts';
export { VERSION } from './version.ts';
