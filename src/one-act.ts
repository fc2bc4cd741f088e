/**
 * Signals this soon after the first are of the same act, in ms: `timeout` of GNU signals its child, and then its group, the
 * child again; npm passes on the SIGINT that the terminal has given to all. Nobody presses a key twice so fast in impatience.
 */
export const ONE_ACT_MS = 200;
