/** V8's words, on standard error, before it aborts a process whose heap is exhausted. */
export const HEAP_EXHAUSTED = /heap out of memory|Reached heap limit|invalid table size|Committing semi space failed/;

/** The same with what Node then has to say, and nothing else behind it: `process.abort()` shows a stack of JavaScript too. */
const LAST_WORDS = new RegExp(
  `^FATAL ERROR: .*(?:${HEAP_EXHAUSTED.source}).*\n-+ Native stack trace -+\n(?![^]*^-----)`,
  'm',
);

/** Whether a process whose standard error ends so has aborted because its heap was exhausted. */
export function endsWithHeapExhausted(stderr: string): boolean {
  return LAST_WORDS.test(stderr);
}
