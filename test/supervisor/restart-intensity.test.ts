import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RestartIntensity } from '../../src/supervisor/restart-intensity.ts';

const gaps = fc.array(fc.integer({ min: 0, max: 3_000 }), { maxLength: 40 });

test('a child that never crashed may start at once', () => {
  expect(new RestartIntensity({ intensity: 0, periodMs: 1_000 }).waitMs(0)).toBe(0);
});

test('as many crashes as the intensity are answered at once, one more waits until the oldest is a period old', () => {
  const restarts = new RestartIntensity({ intensity: 2, periodMs: 1_000 });

  restarts.add(0);
  restarts.add(100);
  expect(restarts.waitMs(150)).toBe(0);
  restarts.add(200);

  expect(restarts.waitMs(200)).toBe(800);
  expect(restarts.waitMs(999)).toBe(1);
  expect(restarts.waitMs(1_000)).toBe(0);
});

test('an intensity of 0 waits a whole period after each crash', () => {
  const restarts = new RestartIntensity({ intensity: 0, periodMs: 1_000 });

  restarts.add(5_000);

  expect(restarts.waitMs(5_000)).toBe(1_000);
  expect(restarts.waitMs(6_000)).toBe(0);
});

test('it waits exactly when more crashes than the intensity lie within the period, and never beyond it', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 6 }),
      fc.integer({ min: 1, max: 5_000 }),
      gaps,
      fc.integer({ min: 0, max: 6_000 }),
      (intensity, periodMs, between, thenMs) => {
        const restarts = new RestartIntensity({ intensity, periodMs });
        const crashes: number[] = [];
        let nowMs = 1_000_000;
        for (const gapMs of between) {
          nowMs += gapMs;
          crashes.push(nowMs);
          restarts.add(nowMs);
        }
        nowMs += thenMs;
        const within = (atMs: number) => crashes.filter((crashMs) => atMs - crashMs < periodMs).length;

        const waitMs = restarts.waitMs(nowMs);

        expect(waitMs > 0).toBe(within(nowMs) > intensity);
        expect(waitMs).toBeLessThanOrEqual(periodMs);
        // Once the wait is over another start is within the intensity, and not a moment before.
        expect(restarts.waitMs(nowMs + waitMs)).toBe(0);
        if (waitMs > 0) expect(within(nowMs + waitMs - 1)).toBeGreaterThan(intensity);
      },
    ),
  );
});
