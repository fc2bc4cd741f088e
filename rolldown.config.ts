import { defineConfig } from 'rolldown';

/**
 * Few files instead of hundreds: a daemon holds less and starts sooner, a thread boots sooner. Only what must lie
 * in files of its own stays outside: Piscina's worker, and native code; and what gRPC would load for services that none of ours has.
 */
const shared = {
  platform: 'node' as const,
  external: ['piscina', 'oxc-transform', '@grpc/proto-loader'],
};

export default defineConfig([
  {
    ...shared,
    input: {
      'src/index': 'src/index.ts',
      'src/main': 'src/main.ts',
      'src/cli/main': 'src/cli/main.ts',
      'src/journal/thread': 'src/journal/thread.ts',
      'src/cell/main': 'src/cell/main.ts',
      'src/cell/javascript-engine': 'src/cell/javascript-engine.ts',
      'examples/demo': 'examples/demo.ts',
      'docs/draw-machines': 'docs/draw-machines.ts',
      'bench/main': 'bench/main.ts',
      'bench/frames': 'bench/frames.ts',
      'bench/bare-server': 'bench/bare-server.ts',
    },
    output: { dir: 'dist', format: 'esm', chunkFileNames: 'chunks/[name].js', sourcemap: true },
  },
  {
    ...shared,
    // CommonJS: Piscina requires it, and a thread that loads no ES module of ours boots sooner.
    input: {
      javascript: 'workers/javascript.ts',
      process: 'workers/process.ts',
      'nested-preload': 'workers/javascript/nested-preload.ts',
      warm: 'workers/javascript/warm.cts',
    },
    output: { dir: 'dist/workers', format: 'cjs', entryFileNames: '[name].cjs', chunkFileNames: '[name].cjs' },
  },
  {
    ...shared,
    // All in one file: the program of the executable that `npm run build:plugin` makes.
    input: { plugin: 'src/nomad/main.ts' },
    output: { dir: 'dist/nomad', format: 'cjs', entryFileNames: '[name].cjs', minify: true },
  },
]);
