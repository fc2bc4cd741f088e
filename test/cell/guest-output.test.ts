import fs, { writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { GuestOutput } from '../../src/cell/guest-output.ts';
import { openDestination } from '../../src/output/output-destination.ts';
import { announceOutput } from '../../workers/javascript/output-limit.ts';
import { OUTPUT, SHARED_BYTES } from '../../workers/javascript/shared.ts';
import { temporaryDirectory } from '../support/daemon.ts';

const FILES = 1_000;

test('many rotated files are not looked at again at once, but at the end', () => {
  const directory = temporaryDirectory();
  const [stdout, stderr] = [join(directory, 'stdout'), join(directory, 'stderr')];
  const shared = new Int32Array(new SharedArrayBuffer(SHARED_BYTES));
  const destination = openDestination(directory, { stdout, stderr, maxFiles: FILES, maxFileBytes: 1_024n });
  const exceeded = vi.fn();
  const output = new GuestOutput(destination, shared, FILES, exceeded);
  for (let number = 0; number < FILES; number += 1) writeFileSync(`${stdout}.${number}`, 'x');
  announceOutput(shared, OUTPUT.direct);
  const look = vi.spyOn(fs, 'lstatSync');
  syncBuiltinESMExports();
  onTestFinished(() => {
    look.mockRestore();
    syncBuiltinESMExports();
  });

  for (let round = 0; round < 10; round += 1) output.look();
  const looks = look.mock.calls.length;
  writeFileSync(`${stdout}.0`, 'more');
  output.close();

  expect(looks).toBeGreaterThan(FILES);
  expect(looks).toBeLessThan(3 * FILES);
  expect(exceeded).toHaveBeenCalledOnce();
});
