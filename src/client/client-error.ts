import { type ServiceError, status } from '@grpc/grpc-js';
import {
  AlreadyExistsError,
  DataLossError,
  ElideError,
  FailedPreconditionError,
  InvalidArgumentError,
  NotFoundError,
  OutOfRangeError,
  ResourceExhaustedError,
  UnauthenticatedError,
  UnavailableError,
} from '../errors.ts';

/** A call failed in a way none of the daemon's own errors stands for. */
export class ClientError extends ElideError {
  /** The gRPC status by name, for example `deadline_exceeded`, `internal`, `unimplemented`. */
  readonly code: string;
  /** The gRPC status by number. */
  readonly grpcCode: number;

  constructor(message: string, grpcCode: number, options?: ErrorOptions) {
    super(message, options);
    this.grpcCode = grpcCode;
    this.code = (status[grpcCode] ?? `grpc_${grpcCode}`).toLowerCase();
  }
}

/** Nobody answers at the address: no daemon runs there, or the connection to it broke. */
export class UnreachableError extends UnavailableError {
  /** The call never left this process: it may be made again whatever it does. */
  readonly isUnsent: boolean;

  constructor(message: string, options: ErrorOptions & { isUnsent: boolean }) {
    super(message, options);
    this.isUnsent = options.isUnsent;
  }
}

/** By gRPC status: the class the daemon threw. */
const CLASSES: Partial<Record<number, new (message: string, options?: ErrorOptions) => ElideError>> = {
  [status.NOT_FOUND]: NotFoundError,
  [status.ALREADY_EXISTS]: AlreadyExistsError,
  [status.INVALID_ARGUMENT]: InvalidArgumentError,
  [status.FAILED_PRECONDITION]: FailedPreconditionError,
  [status.OUT_OF_RANGE]: OutOfRangeError,
  [status.UNAUTHENTICATED]: UnauthenticatedError,
  [status.DATA_LOSS]: DataLossError,
};

/** When to try again where nobody says. */
const RETRY_AFTER_MS = 1_000;

/** What gRPC itself says, in contrast to a daemon that is stopping. */
const NO_CONNECTION =
  /^No connection established|^Channel closed|^Connection dropped|^Name resolution failed|^read E|^write E/;
/** And of a call that it still has. */
const UNSENT = /^No connection established|^Channel closed/;

/** What the daemon's gRPC says of a request that it does not take in: it never will. */
const TOO_LARGE = /^Received message larger/;

/** A call that was broken off: no daemon has answered it, whatever status gRPC makes of that. */
function isBrokenOff({ code, details }: ServiceError): boolean {
  return code === status.CANCELLED || (code === status.INTERNAL && details.startsWith('Received RST_STREAM'));
}

/**
 * The error to throw for a call that has failed, and that the caller has not cancelled: the daemon's own class and message
 * where the daemon has answered.
 */
export function errorOf(error: unknown, address: string): unknown {
  if (!isServiceError(error)) return error;
  const { code, details } = error;
  const options = { cause: error };
  if (code === status.UNAVAILABLE) {
    if (!NO_CONNECTION.test(details)) return new UnavailableError(details, options);
    const isUnsent = UNSENT.test(details);
    return new UnreachableError(`no daemon answers on ${address} (${reasonOf(details)})`, { cause: error, isUnsent });
  }
  if (isBrokenOff(error)) {
    return new UnreachableError(`the daemon on ${address} broke off (${details})`, { cause: error, isUnsent: false });
  }
  if (code === status.RESOURCE_EXHAUSTED) {
    if (TOO_LARGE.test(details)) return new InvalidArgumentError(details, options);
    const retryAfterMs = Number(error.metadata?.get('grpc-retry-pushback-ms')[0] ?? RETRY_AFTER_MS);
    return new ResourceExhaustedError(details, { cause: error, retryAfterMs });
  }
  const known = CLASSES[code];
  return known === undefined ? new ClientError(details, code, options) : new known(details, options);
}

function reasonOf(details: string): string {
  if (details.startsWith('Channel closed')) return 'the connection was given up';
  return /Last error: (?:Error: )?(.*?)(?:\. Resolution note: .*)?$/s.exec(details)?.[1] ?? details;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && typeof (error as Partial<ServiceError>).code === 'number' && 'details' in error;
}
