import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryDirectory } from '../support/daemon.ts';

test('a Nomad that cannot be built is told of in one line, and leaves nothing behind', () => {
  const cache = temporaryDirectory();
  const nowhere = { GOPROXY: 'off', GOFLAGS: '-mod=mod', GOMODCACHE: join(cache, 'modules') };

  const { status, stdout, stderr } = spawnSync(process.execPath, [join(import.meta.dirname, 'build-nomad.ts')], {
    env: { ...process.env, ...nowhere, XDG_CACHE_HOME: cache },
    encoding: 'utf8',
  });

  expect([status, stderr]).toEqual([1, '']);
  expect(stdout).toMatch(/^Nomad \S+ could not be built, its tests are skipped: .+\n$/);
  expect(readdirSync(join(cache, 'elide-daemon'), { recursive: true })).toEqual(['nomad-1.11.3']);
});
