/** Base of every error a caller can do something about. Match on `code`, never on the message. */
export abstract class ElideError extends Error {
  /** Stable; one for each class. */
  abstract readonly code: string;
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** There is no such session, execution or thing by that name. */
export class NotFoundError extends ElideError {
  readonly code = 'not_found';
}

/** The id is in use for another request. */
export class AlreadyExistsError extends ElideError {
  readonly code = 'already_exists';
}

/** The request is wrong whatever the state; the message names the field and what it may be. */
export class InvalidArgumentError extends ElideError {
  readonly code = 'invalid_argument';
}

/** The request is right, but not in this state. */
export class FailedPreconditionError extends ElideError {
  readonly code = 'failed_precondition';
}

/** A position or sequence number that is in the future, or whose output was evicted; the message says which. */
export class OutOfRangeError extends ElideError {
  readonly code = 'out_of_range';
}

/** Output that was written is not there any more, and nobody removed it on purpose; the message says how much it was. */
export class DataLossError extends ElideError {
  readonly code = 'data_loss';
}

/** A queue or quota is full. */
export class ResourceExhaustedError extends ElideError {
  readonly code = 'resource_exhausted';
  /** When it is worth trying again, in ms. */
  readonly retryAfterMs: number;
  constructor(message: string, options: ErrorOptions & { retryAfterMs: number }) {
    super(message, options);
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** The call does not carry the daemon's token, or its files of credentials cannot be used; whatever it asks for. */
export class UnauthenticatedError extends ElideError {
  readonly code = 'unauthenticated';
}

/** The daemon is stopping, or not there, or the session is closing; the same call may succeed later. */
export class UnavailableError extends ElideError {
  readonly code = 'unavailable';
}

/** The daemon cannot start as it is configured; the message says what to change. */
export class StartupError extends ElideError {
  readonly code = 'startup';
}
