/**
 * Cells of the Int32Array a thread shares with its cell: what one side must know while the other is busy or gone.
 * A thread in a busy loop answers no message, and a thread that ended sends none.
 */
export const SHARED = {
  /** 1 once guest code is about to run. */
  begun: 0,
  /** Bit `N % 32` is set while the guest listens for signal N; all below 32. */
  listened: 1,
  /** The signal by whose default action the guest ended itself (`process.kill(process.pid, ...)`, `process.abort()`). */
  endedBy: 2,
  /** 1 once the thread itself wrote the uncaught error that ends it. */
  reported: 3,
  /** Counts messages to the thread, to wake a thread that waits for input synchronously. */
  wake: 4,
  /** 1 when an `uncaughtException` listener threw: exit code 7, which the thread itself cannot set. */
  handlerThrew: 5,
  /** First of {@link CHILD_SLOTS} process ids of running child processes; 0 is a free slot. */
  children: 6,
} as const;

/** How many child processes of one execution are remembered, to end them with it. */
export const CHILD_SLOTS = 1024;

/** Bytes of the shared memory. */
export const SHARED_BYTES = (SHARED.children + CHILD_SLOTS) * Int32Array.BYTES_PER_ELEMENT;
