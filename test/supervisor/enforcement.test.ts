import { expect, test } from 'vitest';
import { enforcementOf, type GroupSupport } from '../../src/supervisor/enforcement.ts';
import { LIMITS, summaryOf } from '../../src/supervisor/limits.ts';

const support = (version: 0 | 1 | 2, controllers: string[], why = ''): GroupSupport => ({
  version,
  controllers: new Set(controllers),
  why,
});
const held = (groups: GroupSupport, limit: string, engine = 'python') =>
  enforcementOf(groups).find((entry) => entry.limit === limit && entry.engine === engine);

test('every limit has a line for threads, processes and Python, and one that is not held says why', () => {
  const lines = enforcementOf(support(0, [], 'switched off'));

  expect(lines.map(({ limit, engine }) => `${limit} ${engine}`).sort()).toEqual(
    Object.values(LIMITS)
      .flatMap(({ field }) => [`${field} thread`, `${field} process`, `${field} python`])
      .sort(),
  );
  expect(lines.filter(({ enforced }) => !enforced).map(({ limit, engine, note }) => [limit, engine, note])).toEqual([
    ['process_limit', 'python', 'needs a control group for pids; no cgroup: switched off'],
    ['open_file_limit', 'thread', 'threads of one process share its descriptors'],
    ['open_file_limit', 'process', 'a process is booted before its limits are known'],
  ]);
});

test.each([
  ['memory_limit_mb', 'memory', { mechanism: 'sampling', enforced: true }],
  ['process_limit', 'pids', { mechanism: 'none', enforced: false }],
] as const)('%s of Python is held by the controller %s where there is one', (limit, controller, otherwise) => {
  const others = ['memory', 'pids'].filter((name) => name !== controller);

  for (const version of [1, 2] as const) {
    expect(held(support(version, [controller]), limit)).toMatchObject({
      mechanism: `cgroup v${version}`,
      enforced: true,
      note: '',
    });
    expect(held(support(version, others), limit)).toMatchObject({
      ...otherwise,
      note: expect.stringMatching(`no cgroup: the cgroup controller ${controller} is not available$`),
    });
  }
  expect(held(support(0, [], 'no rights'), limit)).toMatchObject({
    ...otherwise,
    note: expect.stringMatching('no cgroup: no rights$'),
  });
});

test('where memory is sampled it is said that files in memory are not seen', () => {
  const notes = (groups: GroupSupport) =>
    ['thread', 'process', 'python'].map((engine) => held(groups, 'memory_limit_mb', engine)?.note ?? '');
  const isSaid = (note: string) => note.includes('files in memory');

  expect(notes(support(0, [], 'no rights')).map(isSaid)).toEqual([true, true, true]);
  expect(notes(support(1, ['memory'])).map(isSaid)).toEqual([true, false, false]);
});

test('control groups hold nothing of a thread, which shares its process', () => {
  const threads = (groups: GroupSupport) => enforcementOf(groups).filter(({ engine }) => engine === 'thread');

  expect(threads(support(2, ['memory', 'pids']))).toEqual(threads(support(0, [], 'switched off')));
});

test('the summary has one line for a limit', () => {
  expect(summaryOf(enforcementOf(support(1, ['pids'])))).toMatchObject({
    process_limit: 'thread: at each start, process: at each start, python: cgroup v1',
    open_file_limit: 'thread: none, process: none, python: rlimit',
  });
});

test('CPU time that threads shared by all programs of a cell use for one is said to be unseen, of a thread only', () => {
  const notes = ['thread', 'process', 'python'].map(
    (engine) => held(support(2, []), 'cpu_time_limit_ms', engine)?.note ?? '',
  );

  expect(notes.map((note) => note.includes("V8's own threads"))).toEqual([true, false, false]);
});
