import { expect, test } from 'vitest';
import { formatDuration, parseDuration, parseSize } from '../../src/cli/values.ts';

test.each([
  ['1500ms', 1500],
  ['5s', 5000],
  ['1.5s', 1500],
  ['.5s', 500],
  ['1m30s', 90_000],
  ['2h', 7_200_000],
  ['1500us', 2],
  ['0', 0],
])('the duration %s is %i ms', (text, ms) => {
  expect(parseDuration(text)).toBe(ms);
});

const BEYOND = '9'.repeat(20);

test.each(['', '5', '5 s', '-5s', 's', '5d', '1.2.3s', '5s!', '1e3s', '00', `${BEYOND}s`])(
  '"%s" is no duration',
  (text) => {
    expect(() => parseDuration(text)).toThrow('A duration is for example 1500ms, 5s or 1m30s.');
  },
);

test.each([
  ['128', 128],
  ['64MiB', 64],
  ['1gib', 1024],
  ['100MB', 95],
])('the size %s is %i MiB', (text, mib) => {
  expect(parseSize(text)).toBe(mib);
});

test.each(['', '-1', '5qb', 'x', '1 GiB', BEYOND])('"%s" is no size', (text) => {
  expect(() => parseSize(text)).toThrow('A size is for example');
});

test.each([
  [850, '850ms'],
  [3249, '3.2s'],
  [59_999, '59.9s'],
  [245_000, '4m05s'],
  [7_380_000, '2h03m'],
])('%i ms are shown as %s', (ms, text) => {
  expect(formatDuration(ms)).toBe(text);
});
