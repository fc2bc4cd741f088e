import type { UntypedServiceImplementation } from '@grpc/grpc-js';
import {
  type DriverServer,
  DriverService,
  FingerprintResponse_HealthState as Health,
  TaskState,
} from '../../src/gen/nomad/driver.ts';
import { basePlugin, capabilitiesOf, NOMAD } from '../../src/plugin/base-plugin.ts';
import { fingerprints } from '../../src/plugin/fingerprint.ts';
import { configuration, text, word } from '../../src/plugin/hclspec.ts';
import { stream, unary } from '../../src/plugin/rpc.ts';
import { servePlugin } from '../../src/plugin/serve.ts';
import { startedWith } from '../../src/plugin/task-handle.ts';

// A driver that runs nothing: a task has ended as soon as it is started. What a task takes all the same is the agent's own.

const PLUGIN = configuration({ logs: word('direct', 'nomad') });
/** The agent takes no configuration without a word. */
const TASK = configuration({ says: text });
let collectsLogs = false;

async function* healthy() {
  yield { health: Health.HEALTHY, healthDescription: 'Healthy' };
  await new Promise(() => {});
}

async function* silent() {
  await new Promise(() => {});
}

const driver = {
  taskConfigSchema: unary(async () => ({ spec: TASK.spec })),
  capabilities: unary(async () => capabilitiesOf({ collectsLogs })),
  fingerprint: stream(() => fingerprints('floor', healthy())),
  taskEvents: stream(silent),
  taskStats: stream(silent),
  startTask: unary(async ({ task }) => {
    if (task === undefined) throw new Error('task cannot be nil');
    return startedWith(task, { version: 1 });
  }),
  waitTask: unary(async () => ({ result: { exitCode: 0, signal: 0, oomKilled: false }, err: '' })),
  stopTask: unary(async () => ({})),
  destroyTask: unary(async () => ({})),
  inspectTask: unary(async () => ({
    task: {
      id: '',
      name: '',
      state: TaskState.EXITED,
      startedAt: undefined,
      completedAt: undefined,
      result: undefined,
    },
    driver: undefined,
    networkOverride: undefined,
  })),
} satisfies Partial<DriverServer> as UntypedServiceImplementation;

servePlugin({ ...NOMAD, hint: 'floor: this is a Nomad task driver' }, (server) => {
  const base = basePlugin({
    name: 'floor',
    version: '0.0.0',
    configuration: PLUGIN,
    configure: ({ logs }) => {
      collectsLogs = logs === 'nomad';
    },
  });
  server.addService(base.service, { ...base.server });
  server.addService(DriverService, driver);
});
