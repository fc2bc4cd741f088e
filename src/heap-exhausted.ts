/** V8's words, on standard error, before it aborts a process whose heap is exhausted. */
export const HEAP_EXHAUSTED = /heap out of memory|Reached heap limit|invalid table size|Committing semi space failed/;
