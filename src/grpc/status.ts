import { status } from '@grpc/grpc-js';
import { nanoid } from 'nanoid';
import { ElideError, ResourceExhaustedError } from '../errors.ts';
import { GONE } from '../wire/calls.ts';

/** A gRPC status, as a handler answers it. */
export interface GrpcStatus {
  code: status;
  details: string;
  /** When it is worth trying again, in ms: what gRPC's own retries obey (gRFC A6, server pushback). */
  retryAfterMs?: number;
  /** Set for what is our fault: the caller sees this, the log has the cause. */
  incidentId?: string;
}

/** The gRPC status of an error. The only place that knows gRPC's codes. */
export function statusOf(error: unknown): GrpcStatus {
  if (error instanceof ElideError) {
    const code = CODES[error.code];
    const hint = error instanceof ResourceExhaustedError ? { retryAfterMs: error.retryAfterMs } : {};
    if (code !== undefined) return { code, details: error.message, ...hint };
  }
  if (error === GONE) return { code: status.CANCELLED, details: GONE.message };
  const { code, message } = error as NodeJS.ErrnoException;
  if (code !== undefined && SHORTAGES.has(code)) {
    return { code: status.RESOURCE_EXHAUSTED, details: message, retryAfterMs: RETRY_SHORTAGE_MS };
  }
  const incidentId = nanoid(10);
  return { code: status.INTERNAL, details: `internal error (incident ${incidentId} in the daemon's log)`, incidentId };
}

/** The system's words for what passes when others let go: descriptors, of the process and of all; memory; room on disk. */
const SHORTAGES = new Set(['EMFILE', 'ENFILE', 'ENOMEM', 'ENOSPC', 'EDQUOT']);
/** When that is worth another try, in ms. */
const RETRY_SHORTAGE_MS = 1_000;

/** By an error's stable code. */
const CODES: Record<string, status> = {
  not_found: status.NOT_FOUND,
  already_exists: status.ALREADY_EXISTS,
  invalid_argument: status.INVALID_ARGUMENT,
  failed_precondition: status.FAILED_PRECONDITION,
  out_of_range: status.OUT_OF_RANGE,
  data_loss: status.DATA_LOSS,
  resource_exhausted: status.RESOURCE_EXHAUSTED,
  unauthenticated: status.UNAUTHENTICATED,
  unavailable: status.UNAVAILABLE,
  startup: status.FAILED_PRECONDITION,
};
