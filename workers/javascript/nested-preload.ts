import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { OutputWriter } from '../output-writer.ts';
import { NESTED_KEY, type NestedProgram } from './nested.ts';
import { program, setWorkingDirectory } from './program.ts';
import { replaceSurface } from './surface.ts';

// Runs in a thread that a guest started, before the guest's file.
const { cwd, ...rest } = getEnvironmentData(NESTED_KEY) as unknown as NestedProgram;
setEnvironmentData(NESTED_KEY, undefined);
Object.assign(program, rest);
setWorkingDirectory(cwd);
program.writer = new OutputWriter(program.descriptors);
process.execArgv.splice(0, 2);
replaceSurface();
