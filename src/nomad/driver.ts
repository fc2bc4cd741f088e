import type { UntypedServiceImplementation } from '@grpc/grpc-js';
import {
  abandon,
  Command,
  isCommandOfAnother,
  isLost,
  LeftExecutions,
  Looks,
  relinquish,
  retry,
  stopGuest,
  takenWithin,
  whileAnswering,
} from '../client/index.ts';
import { ResourceExhaustedError, UnavailableError } from '../errors.ts';
import type { DriverServer, TaskConfig } from '../gen/nomad/driver.ts';
import { capabilitiesOf } from '../plugin/base-plugin.ts';
import { execCollected, execStreaming, type StartCommand } from '../plugin/exec.ts';
import { inspectionOf } from '../plugin/inspection.ts';
import { millisecondsOf, pushes, stream, unary } from '../plugin/rpc.ts';
import { StartError } from '../plugin/start-error.ts';
import { intervalMsOf, statsSince } from '../plugin/stats.ts';
import { isOtherStart, requireDaemonsUser } from '../plugin/task-config.ts';
import { tell, told } from '../plugin/task-events.ts';
import { keptIn, startedWith } from '../plugin/task-handle.ts';
import { within } from '../within.ts';
import { TASK } from './configuration.ts';
import type { NodeDaemon } from './node-daemon.ts';
import { prepare } from './snippet.ts';
import { type DriverState, Task } from './task.ts';

/** How long a start waits for a daemon that does not answer, and, as a signal does, for a place to run in. */
const START_RETRY_MS = 10_000;
/** The same for one that takes calls and does not answer them, as one that is stopped. */
const START_ANSWER_MS = 12_000;
const START_WAIT_MS = 2_000;
/** How long a recovery waits for the daemon's word on the task. */
const RECOVER_LIMIT_MS = 3_000;
/** How long a task waits for a daemon that is away, where the configuration does not say. */
const RECONNECT_LIMIT_MS = 3_600_000;

/** The driver's calls. All it knows of a task is what the agent keeps in its handle; all the work is the daemon's. */
export function driver(node: NodeDaemon): UntypedServiceImplementation {
  /** Undefined while one starts. */
  const tasks = new Map<string, Task | undefined>();
  const left = new LeftExecutions();
  const looks = new Looks();
  const reconnectMs = () => node.config.reconnect_limit ?? RECONNECT_LIMIT_MS;

  const find = (id: string): Task => {
    const task = tasks.get(id);
    if (task === undefined) throw new Error('task not found for given id');
    return task;
  };

  const follow = (config: TaskConfig, state: DriverState, tellFromMs: number): Task => {
    const task = new Task(node.client, config, state, tellFromMs, reconnectMs());
    tasks.set(config.id, task);
    return task;
  };

  const startCommand: StartCommand = (id, program, wanted) => {
    const { state, forgotten } = find(id);
    const signal = AbortSignal.any([wanted.signal, forgotten.signal]);
    const options = { ...wanted, signal, limitMs: reconnectMs() };
    return new Command(node.client, { ...state.place, executionId: id }, program, options);
  };

  /** The ladder; resolves when the guest is gone. It goes on alone where the daemon does not answer: the agent may be ending. */
  const stop = async ({ config, state, exited }: Task, signal: string, graceMs: number): Promise<object> => {
    const guest = { sessionId: state.place.sessionId, executionId: config.id };
    const begun = stopGuest(node.client, guest, { signal, graceMs }, { limitMs: reconnectMs() });
    const stopped = begun.then((refusal) => refusal && tell(config, refusal)).then(() => exited.promise);
    await whileAnswering(node.client, stopped);
    return {};
  };

  /** Ends it by force where it runs, and forgets it, as the daemon does: the agent asks for it again, and is to start it anew. */
  const destroy = async (task: Task): Promise<void> => {
    if (task.completedAt === undefined) await stop(task, 'SIGKILL', 0);
    task.forgotten.abort();
    tasks.delete(task.config.id);
    const gone = relinquish(node.client, task.state.place.sessionId, task.config.id);
    if (task.completedAt !== undefined) await whileAnswering(node.client, gone);
  };

  /** An agent that died before it wrote a start down makes another, under another id: one of them is to run. */
  const endOthers = async (config: TaskConfig): Promise<void> => {
    const own = [...tasks.values()].filter((task) => task && isOtherStart(config, task.config.id)) as Task[];
    const isNobodys = (id: string) => isOtherStart(config, id) && !tasks.has(id);
    await Promise.allSettled([left.end(node.client, node.sessionId, isNobodys), ...own.map(destroy)]);
  };

  const start = async (config: TaskConfig, signal: AbortSignal): Promise<Task> => {
    const { snippet: wanted, unmet } = await prepare(config, node.config, node.sessionId);
    await within(START_WAIT_MS, endOthers(config));
    const submit = (over: AbortSignal) =>
      requireDaemonsUser(config, node.address).then(() => node.execute(wanted, over));
    const take = (over: AbortSignal) => retry(() => submit(over), { limitMs: START_RETRY_MS, signal: over });
    const end = () => void abandon(node.client, wanted.sessionId, config.id);
    const snippet = await takenWithin(START_ANSWER_MS, take, end);
    const { sessionId, language, env, workingDirectory, isolation, memoryLimitMb } = snippet;
    const place = { sessionId, language, env, workingDirectory, isolation, memoryLimitMb };
    const task = follow(config, { version: 1, place }, 0);
    await within(START_WAIT_MS, task.settled.promise);
    for (const message of unmet) tell(config, message);
    const cut = `memory is cut to ${memoryLimitMb} MiB, the ceiling of session "${sessionId}"`;
    if (memoryLimitMb !== wanted.memoryLimitMb) tell(config, cut);
    if (signal.aborted) throw new UnavailableError('the agent has gone');
    if (task.result?.reason !== 'start_failed') return task;
    throw new UnavailableError(task.result.message ?? 'the task could not be started');
  };

  return {
    init: unary(async () => ({})),
    shutdown: unary(async () => ({})),
    taskConfigSchema: unary(async () => ({ spec: TASK.spec })),
    capabilities: unary(async () => capabilitiesOf({ collectsLogs: node.config.logs === 'nomad' })),
    fingerprint: stream((_request, signal) => node.fingerprint(signal)),
    taskEvents: stream((_request, signal) => told(signal)),

    startTask: unary(async ({ task: config }, signal) => {
      if (config === undefined) throw new Error('task cannot be nil');
      if (node.closed !== undefined) throw new Error(`the driver takes no tasks: ${node.closed}`);
      const { id } = config;
      if (tasks.has(id)) throw new Error(`task with ID "${id}" already started`);
      tasks.set(id, undefined);
      const task = await start(config, signal).catch((error) => {
        tasks.delete(id);
        // What nobody hears of must not run on: the agent's next start has another id.
        if (isLost(error)) void abandon(node.client, node.sessionId, id);
        throw new StartError(error, isLost(error) || error instanceof ResourceExhaustedError);
      });
      return startedWith(config, task.state);
    }),

    recoverTask: unary(async ({ handle }) => {
      const { config, state } = keptIn<DriverState>(handle, 1);
      const { sessionId } = state.place;
      const limit = { deadlineMs: RECOVER_LIMIT_MS };
      const look = () => node.client.getExecutionStatus(sessionId, config.id, limit);
      // A daemon that is away says nothing about the task: it is followed as soon as one answers.
      const found = tasks.has(config.id) ? undefined : await looks.at(node.client, look);
      if (tasks.has(config.id)) return {};
      void left.forget(node.client, sessionId, (id) => isCommandOfAnother(id, config.id));
      // It went with the machine, say: the agent starts it anew, and counts that as no failure.
      const { reason, message } = found?.result ?? {};
      if (reason === 'daemon_lost') throw new Error(message);
      const { settled } = follow(config, state, Date.now());
      // One that waits for a place may do so for long, and the agent recovers its tasks one by one.
      if (found && found.state !== 'pending') await within(RECOVER_LIMIT_MS, settled.promise);
      return {};
    }),

    waitTask: unary(({ taskId }) => find(taskId).exited.promise),

    stopTask: unary(({ taskId, timeout, signal }) => stop(find(taskId), signal || 'SIGTERM', millisecondsOf(timeout))),

    destroyTask: unary(async ({ taskId, force }) => {
      const task = find(taskId);
      if (task.completedAt === undefined && !force) throw new Error('cannot destroy running task');
      return destroy(task).then(() => ({}));
    }),

    inspectTask: unary(async ({ taskId }) => {
      const task = find(taskId);
      const { sessionId, language } = task.state.place;
      const found = await node.client.getExecutionStatus(sessionId, taskId).catch(() => undefined);
      const pid = String(found?.pid ?? 0);
      return inspectionOf(task, { session_id: sessionId, execution_id: taskId, language, pid });
    }),

    signalTask: unary(async ({ taskId, signal: name }, signal) => {
      const { config, state, settled } = find(taskId);
      const send = () => node.client.signalExecution(state.place.sessionId, taskId, name);
      const limitMs = reconnectMs();
      const hasBegun = await within(START_WAIT_MS, settled.promise);
      if (signal.aborted) return {};
      if (hasBegun) return retry(send, { limitMs, signal }).then(() => ({}));
      // An agent that hears of an error ends a task whose template was to signal it.
      tell(config, `the task waits for a place: ${name} is sent when it has begun`);
      settled.promise.then(() => retry(send, { limitMs })).catch(({ message }) => tell(config, message));
      return {};
    }),

    taskStats: pushes(async ({ taskId: executionId, collectionInterval }, push, signal) => {
      const { state, forgotten } = find(executionId);
      const until = AbortSignal.any([signal, forgotten.signal]);
      const followed = { ...state.place, executionId, intervalMs: intervalMsOf(collectionInterval), signal: until };
      const stats = statsSince(node.coreSpeedMhz);
      await node.metrics.follow(followed, (figures) => push(stats(figures)));
    }),

    execTask: unary((request, signal) => execCollected(startCommand, request, signal)),
    execTaskStreaming: execStreaming(startCommand),
  } satisfies Partial<DriverServer> as UntypedServiceImplementation;
}
