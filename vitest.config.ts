import { defineConfig } from 'vitest/config';
import { CELL_FLAGS } from './src/cell-flags.ts';

export default defineConfig({
  test: {
    // On a real Nomad it takes minutes: only `.ci/run` and `npm run test:nomad` do that as well.
    include: ['test/**/*.test.ts', ...(process.env.TEST_NOMAD ? ['test/nomad/*.e2e.ts'] : [])],
    // What runs beside guest code is the built program, so the tests build it first.
    globalSetup: ['test/support/build.ts', ...(process.env.TEST_NOMAD ? ['test/nomad/setup.ts'] : [])],
    setupFiles: ['test/support/after-file.ts'],
    reporters: ['default', './test/support/retried.ts'],
    pool: 'forks',
    // Engines are tested in these processes.
    execArgv: CELL_FLAGS,
    // No measure of anything: what waits for ever is to end, on a machine that takes four times as long for everything too.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 30_000 } },
    // Every file starts daemons, cells and guests of its own: more files at once only make all of them late.
    maxWorkers: 2,
    // Real threads, processes and signals on cores that hostile guests load at the same time: one that fails is run once more.
    retry: 1,
  },
});
