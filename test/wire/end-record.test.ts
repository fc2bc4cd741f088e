import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Exited } from '../../src/gen/elide/cell/v1/cell.ts';
import { EndRecord, readEndRecord } from '../../src/wire/end-record.ts';
import { temporaryDirectory } from '../support/daemon.ts';
import { MAY_MOUNT, smallDisk } from '../support/small-disk.ts';

const end = (executionKey: string, message = ''): Exited =>
  Exited.create({ executionKey, exitCode: 3, message, atMs: 1.5, monotonicMs: 2.25, bootId: 'boot' });
const keysIn = (path: string) => readEndRecord(path).map(({ executionKey }) => executionKey);

if (!MAY_MOUNT) console.info('left out, as only root may mount a file system: a record on a full disk');

test('what was kept is read as it was, oldest first, and a part of an end at its tail is left out', () => {
  const path = join(temporaryDirectory(), 'ends');
  const record = new EndRecord(path);
  const ends = [end('a'), end('b', 'x'.repeat(300)), Exited.create({ executionKey: 'c', atMs: 1 })];
  const lengths = ends.map((each) => {
    record.keep(each);
    return statSync(path).size;
  });
  expect(readEndRecord(path)).toEqual(ends);
  const bytes = readFileSync(path);

  fc.assert(
    fc.property(fc.nat({ max: bytes.byteLength }), (length) => {
      writeFileSync(path, bytes.subarray(0, length));

      expect(readEndRecord(path)).toEqual(ends.slice(0, lengths.filter((each) => each <= length).length));
    }),
  );
});

test('nothing is read where there is no record, and garbage is none', () => {
  const path = join(temporaryDirectory(), 'ends');

  expect(readEndRecord(path)).toEqual([]);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (garbage) => {
      writeFileSync(path, garbage);

      expect(Array.isArray(readEndRecord(path))).toBe(true);
    }),
  );
});

test.each([1, 64])('what a guest has put behind the ends is none, be it %d MiB', (mib) => {
  const path = join(temporaryDirectory(), 'ends');
  new EndRecord(path).keep(end('a'));
  truncateSync(path, mib * 1024 * 1024);

  expect(keysIn(path).filter((key) => key !== 'a')).toEqual([]);
});

test('a record in which something is always needed stays small, too, and has what is', () => {
  const path = join(temporaryDirectory(), 'ends');
  const record = new EndRecord(path);
  const keys = Array.from({ length: 20 }, (_, index) => `e${index}`);
  record.keep(end('first'));

  for (const key of keys) {
    record.keep(end(key, 'x'.repeat(1024 * 1024)));
    if (key !== 'e19') record.forget(key);
  }

  expect(statSync(path).size).toBeLessThan(16 * 1024 * 1024);
  const read = keysIn(path);
  expect([read.at(0), read.at(-1)]).toEqual(['first', 'e19']);
});

test('a record that has grown is emptied once nothing in it is needed, and not before', () => {
  const path = join(temporaryDirectory(), 'ends');
  const record = new EndRecord(path);
  const keys = Array.from({ length: 100 }, (_, index) => `e${index}`);
  for (const key of keys) record.keep(end(key, 'x'.repeat(1_000)));

  for (const key of keys.slice(1)) record.forget(key);
  expect(keysIn(path)).toEqual(keys);
  expect(record.kept().map(({ executionKey }) => executionKey)).toEqual(['e0']);
  record.forget('e0');

  expect(record.has('e0')).toBe(false);
  expect(statSync(path).size).toBe(0);
});

/** A record on a disk of its own, what fills that, and what makes room on it again. */
function recordOnDisk() {
  const { directory, fill, free } = smallDisk(128);
  const path = join(directory, 'ends');
  return { path, record: new EndRecord(path), fill, free };
}

test.skipIf(!MAY_MOUNT)(
  'an end that finds no room on the disk is kept in memory, and written before the next one',
  () => {
    const { path, record, fill, free } = recordOnDisk();
    record.keep(end('before'));
    fill();

    record.keep(end('large', 'x'.repeat(8_000)));
    const during = keysIn(path);
    free();
    record.keep(end('after'));

    expect(during).toEqual(['before']);
    expect(keysIn(path)).toEqual(['before', 'large', 'after']);
  },
);

test.skipIf(!MAY_MOUNT)(
  'on a full disk, what nobody needs any more is room for the next end, and nothing else is',
  () => {
    const { path, record, fill } = recordOnDisk();
    for (const key of ['first', 'second']) record.keep(end(key, 'x'.repeat(6_000)));
    fill();

    record.forget('first');
    record.keep(end('third', 'x'.repeat(6_000)));
    const during = keysIn(path);
    for (const key of ['second', 'third']) record.forget(key);
    record.keep(end('fourth', 'x'.repeat(6_000)));

    expect(during).toEqual(['first', 'second']);
    expect(keysIn(path)).toEqual(['fourth']);
  },
);
