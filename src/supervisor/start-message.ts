import { resolve } from 'node:path';
import type { Limits, Start } from '../gen/elide/cell/v1/cell.ts';
import type { CheckedOptions } from './limits.ts';
import type { ExecutionRequest } from './requests.ts';
import type { Workspace } from './workspace.ts';

/** What a cell is told of a guest that it is to start. */
export function startMessage(
  executionKey: string,
  request: ExecutionRequest,
  { cwd: ownDirectory, tmpDir }: Workspace,
  outputDir: string,
): Start {
  const createCwd = request.workingDirectory === undefined;
  const cwd = request.workingDirectory ?? ownDirectory;
  const mainPath = resolve(cwd, request.sourceFileName);
  return {
    executionKey,
    language: request.language,
    code: request.code,
    args: request.args,
    env: request.env,
    cwd,
    mainPath,
    createCwd,
    writeMain: createCwd && mainPath.startsWith(`${cwd}/`),
    tmpDir,
    outputDir,
    stdin: request.stdin,
    limits: limitsOf(request.options),
    signalTree: request.options.signalTree,
    outputFiles: request.outputFiles && {
      ...request.outputFiles,
      maxFileBytes: BigInt(request.outputFiles.maxFileBytes),
    },
  };
}

const MIB = 1024 * 1024;

function limitsOf(options: CheckedOptions): Limits {
  const { cpuTimeLimitMs = 0, memoryLimitMb = 0, memorySoftLimitMb = 0, outputLimitBytes = 0 } = options;
  return {
    cpuTimeMs: BigInt(cpuTimeLimitMs),
    memoryBytes: BigInt(memoryLimitMb * MIB),
    memorySoftBytes: BigInt(memorySoftLimitMb * MIB),
    outputBytes: BigInt(outputLimitBytes),
    outputKill: options.outputPolicy === 'kill',
    processes: options.processLimit ?? 0,
    openFiles: options.openFileLimit ?? 0,
  };
}
