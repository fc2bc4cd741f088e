import { type Command, Option } from 'commander';
import {
  ClientError,
  connectDaemon,
  type DaemonAddress,
  type DaemonClient,
  type ExecutionSummary,
} from '../client/index.ts';
import { InvalidArgumentError, NotFoundError, UnavailableError } from '../errors.ts';

/** Where a session is not named. */
export const DEFAULT_SESSION = 'default';

/** What calls have that are answered at once: a daemon that takes longer than this is not well. */
export const ANSWER = { deadlineMs: 10_000 };

const DEFAULT_SOCKET = '/tmp/elide-daemon.sock';

/** The flags that say which daemon, and what is shown and trusted there. */
interface TargetFlags {
  socket?: string;
  tcp?: string;
  tlsCa?: string;
  tlsCert?: string;
  tlsKey?: string;
  tokenFile?: string;
}

/** A daemon to speak to. */
export interface Target {
  client: DaemonClient;
  /** Paths mean the same there and here. */
  sameMachine: boolean;
}

/** Speaks to the daemon that the flags name; closes the connection after. */
export async function withDaemon<T>(command: Command, use: (target: Target) => Promise<T>): Promise<T> {
  const address = addressOf(command.optsWithGlobals<TargetFlags>());
  using client = connectDaemon(address);
  try {
    return await use({ client, sameMachine: 'socket' in address });
  } catch (error) {
    if (!(error instanceof ClientError && error.code === 'deadline_exceeded')) throw error;
    throw new UnavailableError(`the daemon on ${client.address} does not answer`, { cause: error });
  }
}

/** Any of the files for TLS means TLS. */
function addressOf({ socket, tcp, tlsCa, tlsCert, tlsKey, tokenFile }: TargetFlags): DaemonAddress {
  if (socket === '') throw new InvalidArgumentError('--socket names no path');
  if (tcp === undefined) return { socket: socket ?? (process.env.ELIDE_DAEMON_SOCKET || DEFAULT_SOCKET) };
  const tls = tlsCa || tlsCert || tlsKey ? { caFile: tlsCa, certFile: tlsCert, keyFile: tlsKey } : undefined;
  return { tcp, tls, tokenFile };
}

/** The flag of every command that takes an execution. */
export function sessionOption(): Option {
  return new Option(
    '-s, --session <session>',
    `session of the execution (default: "${DEFAULT_SESSION}", or the one that has it)`,
  );
}

/** The execution of that id: in the session named, else in the default one, else in the only one that has it. */
export async function findExecution(
  client: DaemonClient,
  executionId: string,
  sessionId: string | undefined,
): Promise<ExecutionSummary> {
  try {
    return await client.wait(sessionId ?? DEFAULT_SESSION, executionId, { ...ANSWER, timeoutMs: 0 });
  } catch (error) {
    if (sessionId !== undefined || !(error instanceof NotFoundError)) throw error;
  }
  const found: ExecutionSummary[] = [];
  for await (const execution of client.listExecutions(undefined, ANSWER))
    if (execution.executionId === executionId) found.push(execution);
  const [first, second] = found;
  if (first === undefined) throw new NotFoundError(`execution "${executionId}" not found (elidectl ps --all)`);
  if (second === undefined) return first;
  const sessions = found.map((execution) => `"${execution.sessionId}"`).join(', ');
  throw new InvalidArgumentError(`execution "${executionId}" is in the sessions ${sessions}: say which with --session`);
}
