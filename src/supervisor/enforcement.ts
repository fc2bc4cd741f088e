import { type Enforcement, LIMITS } from './limits.ts';

/** What control groups this node offers: 0 for none, with the reason. */
export interface GroupSupport {
  version: 0 | 1 | 2;
  controllers: ReadonlySet<string>;
  /** Why there are none; empty when there are. */
  why: string;
}

interface Held {
  mechanism: string;
  note: string;
}

const none = (note: string): Held => ({ mechanism: 'none', note });

/** By which mechanism this node holds each limit, for each engine: the one place that says so. */
export function enforcementOf(groups: GroupSupport): Enforcement[] {
  const { timeoutMs, queueTimeoutMs, cpuTimeLimitMs, memoryLimitMb, memorySoftLimitMb } = LIMITS;
  const { outputLimitBytes, processLimit, openFileLimit } = LIMITS;
  const timer = { mechanism: 'timer of the daemon', note: 'monotonic; a clock that is set does not move it' };
  const written = {
    mechanism: 'at each write',
    note: 'a child process that inherits the output writes by itself: cut back every 50 ms',
  };
  const started = {
    mechanism: 'at each start',
    note: 'counts what node:child_process starts, not what that starts itself; threads are not counted',
  };
  const sampled = { mechanism: 'sampling', note: 'every 100 ms, every 20 ms past half of the limit' };
  const unseen = 'files in memory (tmpfs, memfd) are not seen';
  const sampledMemory = { ...sampled, note: `${sampled.note}; ${unseen}` };
  return [
    ...each(timeoutMs.field, timer),
    ...each(queueTimeoutMs.field, timer),
    ...each(
      cpuTimeLimitMs.field,
      { ...sampled, note: `${sampled.note}; what V8's own threads and Node's pool compute for it is not seen` },
      sampled,
    ),
    ...each(
      memoryLimitMb.field,
      {
        mechanism: 'heap limit, sampling',
        note: `WebAssembly and shared buffers are measured by the growth of the process, page by page; ${unseen}`,
      },
      withHeapLimit(byGroup(groups, 'memory', sampledMemory)),
      byGroup(groups, 'memory', sampledMemory),
    ),
    ...each(memorySoftLimitMb.field, sampled),
    ...each(outputLimitBytes.field, written, written, { mechanism: 'at each write', note: '' }),
    ...each(processLimit.field, started, started, byGroup(groups, 'pids', none('needs a control group for pids'))),
    ...each(
      openFileLimit.field,
      none('threads of one process share its descriptors'),
      none('a process is booted before its limits are known'),
      { mechanism: 'rlimit', note: 'of each process of the guest' },
    ),
  ];
}

/** `thread` and `process` are of JavaScript; held alike where it is not said otherwise. */
function each(limit: string, thread: Held, process = thread, python = process): Enforcement[] {
  return [entryOf(limit, 'thread', thread), entryOf(limit, 'process', process), entryOf(limit, 'python', python)];
}

function withHeapLimit({ mechanism, note }: Held): Held {
  return { mechanism: `heap limit, ${mechanism}`, note };
}

function entryOf(limit: string, engine: string, { mechanism, note }: Held): Enforcement {
  return { limit, engine, mechanism, enforced: mechanism !== 'none', note };
}

function byGroup({ version, controllers, why }: GroupSupport, controller: string, otherwise: Held): Held {
  if (version !== 0 && controllers.has(controller)) return { mechanism: `cgroup v${version}`, note: '' };
  const missing = why || `the cgroup controller ${controller} is not available`;
  return { ...otherwise, note: [otherwise.note, `no cgroup: ${missing}`].filter(Boolean).join('; ') };
}
