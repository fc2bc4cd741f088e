/**
 * How long force may take before a cell is killed, unless a test says: not the daemon's default, as cores that tests load
 * tell of an end later than that.
 */
export const FORCED_LIMIT_MS = 2_000;
