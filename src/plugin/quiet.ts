/** How long no call may have ended before what calls have left is collected, in ms. */
const QUIET_MS = 30_000;
/** Calls whose leavings are worth a collection, which takes some 50 ms. */
const WORTH = 50;

let ended = 0;
let timer: NodeJS.Timeout | undefined;

/**
 * Notes that a call has ended. After many of them V8 keeps half as much again as is in use, and of itself it collects only
 * once it needs the memory: a driver whose tasks sleep would hold for days what their starts have left.
 */
export function noteCall(): void {
  ended += 1;
  if (ended < WORTH) return;
  timer ??= setTimeout(collect, QUIET_MS).unref();
  timer.refresh();
}

function collect(): void {
  ended = 0;
  timer = undefined;
  // There where the executable was made with `--expose-gc`. Only this flavor gives the pages back as well.
  void globalThis.gc?.({ type: 'major', flavor: 'last-resort', execution: 'sync' });
}
