const V8_MAJOR = Number.parseInt(process.versions.v8, 10);

/**
 * The heap of a thread that has ended goes back to the system at once. V8 would keep it for the threads to come, for 8 s
 * or (14.6) with no end until one of them collects: a cell would hold what its guests held long after they ended.
 * Versions before 14 do not know the flag.
 */
export const RETURN_HEAPS = '--no-memory-pool-share-memory-on-teardown';

/** Of every process that runs guests: `node:ffi` would give each of them native code. Older versions do not know the flag. */
export const NO_FFI = process.allowedNodeEnvironmentFlags.has('--experimental-ffi') ? ['--no-experimental-ffi'] : [];

/**
 * Flags of every cell. Without `--no-turboshaft-loop-unrolling` V8 drops the stack check of some unrolled loops, and
 * `for(;;)new Array(1000).fill(1.5)` in a thread cannot be terminated. A report on a fatal error names the thread whose
 * heap made V8 abort the process.
 */
export const CELL_FLAGS = [
  '--no-turboshaft-loop-unrolling',
  ...(V8_MAJOR >= 14 ? [RETURN_HEAPS] : []),
  // Without these, a report would name the environment, and look up names of the network.
  '--report-on-fatalerror',
  '--report-exclude-env',
  '--report-exclude-network',
  '--report-compact',
  ...NO_FFI,
];
