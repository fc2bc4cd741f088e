import fc from 'fast-check';
import { expect, test } from 'vitest';
import { checkConfig } from '../../src/config.ts';
import { InvalidArgumentError, StartupError } from '../../src/errors.ts';
import { Languages } from '../../src/supervisor/languages.ts';
import {
  applyDefaults,
  checkDefaults,
  checkEnforcement,
  type ExecutionDefaults,
  type ExecutionLimits,
  LIMITS,
} from '../../src/supervisor/limits.ts';
import { checkSessionConfiguration } from '../../src/supervisor/requests.ts';

const names = Object.keys(LIMITS) as (keyof ExecutionLimits)[];
const apply = (own: ExecutionDefaults, defaults: ExecutionDefaults = {}, ceilings: ExecutionLimits = {}) =>
  applyDefaults(own, defaults, ceilings, 'session "s"');

test.each(names)('%s out of range is refused, with its name and its bounds', (name) => {
  const { field, least, most } = LIMITS[name];
  for (const value of [0, -1, least - 1, most + 1, least + 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => apply({ [name]: value })).toThrow(InvalidArgumentError);
    expect(() => apply({ [name]: value })).toThrow(`config.${field} is ${value}`);
    expect(() => apply({ [name]: value })).toThrow(`${least} to ${most}`);
  }
  for (const value of [least, most]) expect(apply({ [name]: value })[name]).toBe(value);
});

test.each(names)('%s above the ceiling is refused, with both figures', (name) => {
  const { field, unit, least } = LIMITS[name];
  const ceiling = { [name]: least + 1 };

  expect(() => apply({ [name]: least + 2 }, {}, ceiling)).toThrow(
    `config.${field} is ${least + 2}${unit}; the ceiling of session "s" is ${least + 1}${unit}`,
  );
  for (const value of [least, least + 1]) expect(apply({ [name]: value }, {}, ceiling)[name]).toBe(value);
});

test('what an execution does not say it has from its session, and a ceiling is a limit too', () => {
  const options = apply(
    { cpuTimeLimitMs: 1 },
    { cpuTimeLimitMs: 5, timeoutMs: 7, outputPolicy: 'kill', isolation: 'process', signalTree: true, graceMs: 3 },
    { timeoutMs: 100, memoryLimitMb: 64 },
  );

  expect(options).toMatchObject({
    cpuTimeLimitMs: 1,
    timeoutMs: 7,
    memoryLimitMb: 64,
    outputPolicy: 'kill',
    isolation: 'process',
    signalTree: true,
    graceMs: 3,
  });
});

test('whatever daemon, session and execution say: what comes of it is never above a ceiling', async () => {
  const languages = await Languages.probe('none', AbortSignal.timeout(60_000), {
    until: AbortSignal.abort(),
    found: () => {},
  });
  const figure = fc.option(fc.integer({ min: 16, max: 40 }), { nil: undefined });
  const said = fc.record({
    name: fc.constantFrom(...names),
    daemon: fc.record({ byDefault: figure, ceiling: figure }),
    session: fc.record({ byDefault: figure, ceiling: figure, memoryLimitMb: figure }),
    own: figure,
  });
  let accepted = 0;
  fc.assert(
    fc.property(said, ({ name, daemon, session, own }) => {
      const limits = ({ byDefault, ceiling }: typeof daemon) => ({
        executionDefaults: { [name]: byDefault },
        executionCeilings: { [name]: ceiling },
      });
      const memoryLimitMb = name === 'memoryLimitMb' ? session.memoryLimitMb : undefined;
      let options: ExecutionLimits;
      try {
        const config = { ...limits(session), memoryLimitMb };
        const checked = checkSessionConfiguration(config, languages, checkConfig(limits(daemon)));
        options = apply({ [name]: own }, checked.executionDefaults, checked.executionCeilings);
      } catch (error) {
        expect([InvalidArgumentError, StartupError]).toContain((error as Error).constructor);
        return;
      }
      accepted += 1;
      for (const ceiling of [daemon.ceiling, session.ceiling ?? memoryLimitMb]) {
        if (ceiling !== undefined) expect(options[name]).toBeLessThanOrEqual(ceiling);
      }
    }),
    { numRuns: 500 },
  );
  expect(accepted).toBeGreaterThan(50);
});

test.each([
  [
    { memorySoftLimitMb: 64, memoryLimitMb: 64 },
    'memory_soft_limit_mb is 64 MiB; it must be below memory_limit_mb, 64',
  ],
  [{ onTimeout: 'explode' }, 'config.on_timeout is "explode"; it must be one of cancel, signal, kill'],
  [{ onTimeout: 'signal' }, 'config.timeout_signal is empty'],
  [{ timeoutSignal: 'SIGUSR1' }, 'config.on_timeout is not "signal"'],
  [{ onTimeout: 'signal', timeoutSignal: 'SIGNOPE' }, 'unknown signal "SIGNOPE"'],
  [{ outputPolicy: 'shout' }, 'config.output_policy is "shout"; it must be one of truncate, kill'],
  [{ isolation: 'moon' }, 'config.isolation is "moon"; it must be one of thread, process'],
  [{ graceMs: -1 }, 'config.grace is -1 ms'],
] as [ExecutionDefaults, string][])('%j is refused', (options, message) => {
  expect(() => checkDefaults(options, 'config')).toThrow(InvalidArgumentError);
  expect(() => checkDefaults(options, 'config')).toThrow(message);
});

test('a default of the daemon has to be below what its ceiling makes of the memory limit, as one of a session', () => {
  const executionDefaults = { memorySoftLimitMb: 64 };

  expect(() => checkConfig({ executionDefaults, executionCeilings: { memoryLimitMb: 65 } })).not.toThrow();
  expect(() => checkConfig({ executionDefaults, executionCeilings: { memoryLimitMb: 64 } })).toThrow(
    'executionDefaults.memory_soft_limit_mb is 64 MiB; it must be below memory_limit_mb, 64 MiB',
  );
});

test.each([32, 48])(
  'a soft limit of the session gives way to a hard one of the execution that is not above it',
  (hard) => {
    const options = apply({ memoryLimitMb: hard }, { memorySoftLimitMb: 48, memoryLimitMb: 64 });

    expect(options.memoryLimitMb).toBe(hard);
    expect(options.memorySoftLimitMb).toBeUndefined();
  },
);

test.each([
  ['limit', { memoryLimitMb: 64 }, {}],
  ['ceiling', {}, { memoryLimitMb: 64 }],
])('a soft limit of the execution has to be below the %s of its session', (_, defaults, ceilings) => {
  expect(apply({ memorySoftLimitMb: 63 }, defaults, ceilings).memorySoftLimitMb).toBe(63);
  expect(() => apply({ memorySoftLimitMb: 64 }, defaults, ceilings)).toThrow(
    'config.memory_soft_limit_mb is 64 MiB; it must be below memory_limit_mb, 64 MiB',
  );
});

test('an execution of which nobody says anything has no limit, shares a cell and keeps all it can', () => {
  expect(apply({})).toEqual({
    graceMs: 0,
    timeoutSignal: 'SIGTERM',
    outputPolicy: 'truncate',
    isolation: 'thread',
    signalTree: false,
    requireEnforcement: false,
  });
});

test('the signal of a run limit belongs to the action it was said with', () => {
  const defaults = { onTimeout: 'signal', timeoutSignal: 'SIGUSR1' } as const;

  expect(apply({}, defaults).timeoutSignal).toBe('SIGUSR1');
  expect(apply({ onTimeout: 'cancel' }, defaults).timeoutSignal).toBe('SIGTERM');
  expect(apply({ onTimeout: 'kill' }, defaults).timeoutSignal).toBe('SIGKILL');
  expect(apply({ onTimeout: 'signal', timeoutSignal: 'hup' }, defaults).timeoutSignal).toBe('SIGHUP');
});

test('a limit that the node cannot hold is a warning, or refused when it must be held', () => {
  const known = [
    { limit: 'open_file_limit', engine: 'thread', mechanism: 'none', enforced: false, note: 'shared descriptors' },
    { limit: 'timeout', engine: 'thread', mechanism: 'timer', enforced: true, note: '' },
  ];
  const options = apply({ openFileLimit: 100, timeoutMs: 5 });

  expect(checkEnforcement(options, 'thread', known)).toEqual([
    'config.open_file_limit is not enforced on this node: shared descriptors',
  ]);
  expect(checkEnforcement(options, 'python', known)).toEqual([]);
  expect(() => checkEnforcement({ ...options, requireEnforcement: true }, 'thread', known)).toThrow(
    'shared descriptors',
  );
});
