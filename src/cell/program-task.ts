import { realpathSync, writeFileSync } from 'node:fs';
import { dirname, extname } from 'node:path';
import { packageType } from '../../workers/javascript/source.ts';
import type { GuestLimits, StartRequest } from './engine.ts';
import type { MainSource, ProgramTask } from './messages.ts';

const MEBIBYTE = 2 ** 20;

/** Node does not boot in a smaller heap: at 5 MB the thread ends, below 3 the whole process. */
const SMALLEST_HEAP_MB = 8;

/** Puts the program where it belongs. Its TypeScript is still what it was. */
export function prepare(request: StartRequest, outputPaths: ProgramTask['outputPaths']): ProgramTask {
  const { mainPath, code, writeMain } = request;
  if (writeMain) writeFileSync(mainPath, code, { mode: 0o600 });
  const typescript = request.language === 'typescript';
  let source: MainSource | undefined;
  // A private file may lie below somebody's package.json, which has nothing to say about it.
  if (typescript || !writeMain || (extname(mainPath) === '.js' && packageType(dirname(mainPath)) !== undefined)) {
    const path = writeMain ? mainPath : realPathOf(mainPath);
    source = { code, path, format: formatOf(path, writeMain) };
  }
  const { args, env, cwd, tmpDir, stdin, limits } = request;
  const { outputBytes, processes } = limits;
  // The guest's own thread is one of them.
  const maxChildren = processes === undefined ? undefined : Math.max(0, processes - 1);
  const task = {
    mainPath,
    typescript,
    args,
    env,
    cwd,
    tmpDir,
    stdin,
    outputPaths,
    outputBytes,
    maxChildren,
  };
  return { ...task, ...(source !== undefined && { source }) };
}

/** The code of a client need not lie anywhere. */
function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** How Node would take a file at `mainPath`. */
function formatOf(mainPath: string, isPrivate: boolean): MainSource['format'] {
  const extension = extname(mainPath);
  if (extension.startsWith('.m')) return 'module';
  if (extension.startsWith('.c')) return 'commonjs';
  return (isPrivate ? undefined : packageType(dirname(mainPath))) ?? 'syntax';
}

/** The heap limit of a context for a guest with these limits, in MB; undefined: Node's own. */
export function heapLimitMbOf({ memoryBytes }: GuestLimits): number | undefined {
  return memoryBytes && Math.max(SMALLEST_HEAP_MB, Math.ceil(memoryBytes / MEBIBYTE));
}
