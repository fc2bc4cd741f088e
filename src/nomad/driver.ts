import { on } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { UntypedServiceImplementation } from '@grpc/grpc-js';
import { Command, isLost, reconnecting, retry } from '../client/index.ts';
import { InvalidArgumentError, NotFoundError, ResourceExhaustedError } from '../errors.ts';
import {
  CapabilitiesResponse,
  type DriverServer,
  DriverCapabilities_MountConfigs as Mounts,
  type TaskConfig,
  TaskState,
} from '../gen/nomad/driver.ts';
import { execCollected, execStreaming, programOf, type StartCommand } from '../plugin/exec.ts';
import { exitOf } from '../plugin/exit.ts';
import { millisecondsOf, stream, unary } from '../plugin/rpc.ts';
import { StartError } from '../plugin/start-error.ts';
import { statsOf } from '../plugin/stats.ts';
import { TASK } from './configuration.ts';
import type { NodeDaemon } from './node-daemon.ts';
import { prepare } from './snippet.ts';
import { type DriverState, Task, taskEvents } from './task.ts';

/** How long a start waits for a daemon that does not answer, and for a place to run in. */
const START_RETRY_MS = 10_000;
const START_WAIT_MS = 2_000;
/** How long a recovery waits for the daemon's word on the task. */
const RECOVER_LIMIT_MS = 3_000;
const SHORTEST_STATS_MS = 100;
const USUAL_STATS_MS = 1_000;
/** How long a task waits for a daemon that is away, where the configuration does not say. */
const RECONNECT_LIMIT_MS = 3_600_000;
const FORCE = { signal: 'SIGKILL', graceMs: 0 };
/** Go's zero time, for what has not happened. */
const NEVER = new Date(-62_135_596_800_000);

/** The driver's calls. All it knows of a task is what the agent keeps in its handle; all the work is the daemon's. */
export function driver(node: NodeDaemon): UntypedServiceImplementation {
  const tasks = new Map<string, Task>();
  const starting = new Set<string>();
  const reconnectMs = () => node.config.reconnect_limit ?? RECONNECT_LIMIT_MS;

  const find = (id: string): Task => {
    const task = tasks.get(id);
    if (task === undefined) throw new Error('task not found for given id');
    return task;
  };

  /** Follows a task, and gives it a while to begin. */
  const follow = async (config: TaskConfig, state: DriverState, tellFromMs: number, limitMs: number) => {
    const task = new Task(node.client, config, state, tellFromMs, reconnectMs());
    tasks.set(config.id, task);
    await Promise.race([task.settled.promise, sleep(limitMs, undefined, { ref: false })]);
    return task;
  };

  const startCommand: StartCommand = (id, words, terminal, stdin) =>
    new Command(node.client, { ...find(id).state.place, executionId: id }, programOf(words, terminal), stdin);

  const cancel = (sessionId: string, id: string, stop: { signal: string; graceMs: number }) =>
    retry(() => node.client.cancelExecution(sessionId, id, stop), { limitMs: reconnectMs() });

  /** The ladder; resolves when the guest is gone. */
  const stop = async (task: Task, signal: string, graceMs: number): Promise<void> => {
    const { sessionId } = task.state.place;
    try {
      await cancel(sessionId, task.id, graceMs === 0 ? FORCE : { signal, graceMs });
    } catch (error) {
      if (!(error instanceof InvalidArgumentError)) throw error;
      task.tell(`${error.message}; SIGTERM is sent instead`);
      await cancel(sessionId, task.id, { signal: 'SIGTERM', graceMs });
    }
    await task.exited.promise;
  };

  const start = async (config: TaskConfig): Promise<Task> => {
    const { snippet, unmet } = await prepare(config, node.config, node.sessionId).catch((error) => {
      throw new StartError(error, false);
    });
    const { sessionId, language, env, workingDirectory, memoryLimitMb } = snippet;
    try {
      await retry(() => node.execute(snippet), { limitMs: START_RETRY_MS });
    } catch (error) {
      // A start whose answer nobody heard must not run on: the agent's next has another id.
      if (isLost(error)) cancel(sessionId, config.id, FORCE).catch(() => {});
      throw new StartError(error, isLost(error) || error instanceof ResourceExhaustedError);
    }
    const place = { sessionId, language, env, workingDirectory, memoryLimitMb };
    const task = await follow(config, { version: 1, place }, 0, START_WAIT_MS);
    for (const message of unmet) task.tell(message);
    if (task.result?.reason !== 'start_failed') return task;
    tasks.delete(config.id);
    throw new StartError(new Error(task.result.message ?? 'the task could not be started'), true);
  };

  const calls: Partial<DriverServer> = {
    init: unary(async () => ({})),
    shutdown: unary(async () => ({})),
    taskConfigSchema: unary(async () => ({ spec: TASK.spec })),
    capabilities: unary(async () => {
      const offered = {
        sendSignals: true,
        exec: true,
        networkIsolationModes: [0 as const],
        mountConfigs: Mounts.NO_MOUNTS,
      };
      const disableLogCollection = node.config.logs !== 'nomad';
      return CapabilitiesResponse.fromPartial({ capabilities: { ...offered, disableLogCollection } });
    }),
    fingerprint: stream((_request, signal) => node.fingerprint(signal)),
    taskEvents: stream(async function* (_request, signal) {
      for await (const [event] of on(taskEvents, 'event', { signal })) yield event;
    }),

    startTask: unary(async ({ task: config }) => {
      if (config === undefined) throw new Error('task cannot be nil');
      if (node.config.enabled === false) throw new Error('the driver is disabled by its configuration');
      const { id } = config;
      if (tasks.has(id) || starting.has(id)) throw new Error(`task with ID "${id}" already started`);
      starting.add(id);
      const task = await start(config).finally(() => starting.delete(id));
      const driverState = Buffer.from(JSON.stringify(task.state));
      const handle = { version: 1, config, state: TaskState.RUNNING, driverState };
      return { result: 0, driverErrorMsg: '', handle, networkOverride: undefined };
    }),

    recoverTask: unary(async ({ handle }) => {
      if (handle?.config === undefined) throw new Error('handle cannot be nil');
      const { id } = handle.config;
      if (tasks.has(id)) return {};
      const state = JSON.parse(Buffer.from(handle.driverState).toString()) as DriverState;
      if (state.version !== 1) throw new Error('the handle was written by another version of the driver');
      // A daemon that is away says nothing about the task: it is followed as soon as one answers.
      const answered = node.client.health({ deadlineMs: RECOVER_LIMIT_MS });
      const limitMs = await answered.then(
        () => RECOVER_LIMIT_MS,
        () => 0,
      );
      if (tasks.has(id)) return {};
      const { failure } = await follow(handle.config, state, Date.now(), limitMs);
      if (!(failure instanceof NotFoundError)) return {};
      tasks.delete(id);
      throw failure;
    }),

    waitTask: unary(({ taskId }) => find(taskId).exited.promise),

    stopTask: unary(async ({ taskId, timeout, signal }) => {
      await stop(find(taskId), signal || 'SIGTERM', millisecondsOf(timeout));
      return {};
    }),

    destroyTask: unary(async ({ taskId, force }) => {
      const task = find(taskId);
      if (task.completedAt === undefined) {
        if (!force) throw new Error('cannot destroy running task');
        await stop(task, 'SIGKILL', 0);
      }
      task.forgotten.abort();
      tasks.delete(taskId);
      return {};
    }),

    inspectTask: unary(async ({ taskId }) => {
      const task = find(taskId);
      const { startedAt = NEVER, completedAt = NEVER } = task;
      const state = completedAt === NEVER ? TaskState.RUNNING : TaskState.EXITED;
      const { sessionId, language } = task.state.place;
      const found = await node.client.getExecutionStatus(sessionId, taskId).catch(() => undefined);
      const attributes = { session_id: sessionId, execution_id: taskId, language, pid: String(found?.pid ?? 0) };
      const result = task.result === undefined ? { exitCode: 0, signal: 0, oomKilled: false } : exitOf(task.result);
      const status = { id: taskId, name: task.config.name, state, startedAt, completedAt, result };
      return { task: status, driver: { attributes }, networkOverride: undefined };
    }),

    signalTask: unary(async ({ taskId, signal }) => {
      await node.client.signalExecution(find(taskId).state.place.sessionId, taskId, signal);
      return {};
    }),

    taskStats: stream(async function* ({ taskId: executionId, collectionInterval }, signal) {
      const task = find(executionId);
      const until = AbortSignal.any([signal, task.forgotten.signal]);
      const intervalMs = Math.max(SHORTEST_STATS_MS, millisecondsOf(collectionInterval) || USUAL_STATS_MS);
      const options = { sessionId: task.state.place.sessionId, executionId, intervalMs, signal: until };
      const rounds = reconnecting(() => node.client.watchExecutionMetrics(options), { signal: until });
      yield* statsOf(rounds, node.coreSpeedMhz);
    }),

    execTask: unary(async ({ taskId, command, timeout }) =>
      execCollected(startCommand(taskId, command, false, false), millisecondsOf(timeout)),
    ),
    execTaskStreaming: execStreaming(startCommand),
  };
  return calls as UntypedServiceImplementation;
}
