import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';

/** A first build fetches some hundred modules and compiles them: minutes. What is compiled by then the next one finds. */
const LIMIT_MS = 12 * 60_000;

const VERSION = /nomad v(\S+)/.exec(readFileSync(join(import.meta.dirname, 'go.mod'), 'utf8'))?.[1];
const CACHE = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'elide-daemon');
const BUILT = join(CACHE, `nomad-${VERSION}`, 'nomad');

/** The Nomad to test with: `$NOMAD_BIN`, or the one that `npm run build:nomad` has built. */
export function findNomad(): string | undefined {
  return process.env.NOMAD_BIN || (existsSync(BUILT) ? BUILT : undefined);
}

/** Builds it, unless it is there. Beside its place, and renamed: two that build at once do the work twice, no more. */
function build(): string {
  if (existsSync(BUILT)) return `${BUILT} is there`;
  const part = `${BUILT}.${process.pid}`;
  mkdirSync(dirname(BUILT), { recursive: true });
  try {
    execFileSync('nice', ['go', 'build', '-o', part, 'github.com/hashicorp/nomad'], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: LIMIT_MS,
      killSignal: 'SIGKILL',
    });
    renameSync(part, BUILT);
  } finally {
    rmSync(part, { force: true });
  }
  return `${BUILT} is built`;
}

if (import.meta.main) {
  try {
    console.log(build());
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: Buffer };
    const why = stderr?.toString().trim().split('\n').at(-1) || message;
    console.log(`Nomad ${VERSION} could not be built, its tests are skipped: ${why}`);
    process.exitCode = 1;
  }
}
