import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const OUTPUT = new URL('../../src/cli/output.ts', import.meta.url).href;

test('a table may have any number of rows', async () => {
  const rows = 500_000;
  const code = `
    import { writeTable } from ${JSON.stringify(OUTPUT)};
    await writeTable(['ONE', 'TWO'], new Array(${rows}).fill(['a', 'b']));`;
  const options = { maxBuffer: 100_000_000 };

  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', code], options);

  expect(stdout).toBe(`ONE  TWO\n${'a    b\n'.repeat(rows)}`);
});
