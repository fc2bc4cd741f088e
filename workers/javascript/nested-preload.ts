import { fileURLToPath } from 'node:url';
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { OutputWriter } from '../output-writer.ts';
import { tellChild, tellOutput } from './control.ts';
import { forgetModules } from './modules.ts';
import { KEPT_FLAGS, NESTED_KEY, type NestedProgram, PRELOADS_FIRST } from './nested.ts';
import { onOutputChange, outputLimit } from './output-limit.ts';
import { program, setWorkingDirectory } from './program.ts';
import { figuresOf } from './shared.ts';
import { replaceSurface } from './surface.ts';
import { joinProgram, noteReaped } from './usage.ts';

// Runs in a thread that a guest started, before the guest's file.
const { cwd, ...rest } = getEnvironmentData(NESTED_KEY) as unknown as NestedProgram;
setEnvironmentData(NESTED_KEY, undefined);
// What children had used before is not for this thread to take: it has no program yet.
noteReaped();
Object.assign(program, rest);
setWorkingDirectory(cwd);
program.figures = figuresOf(program.shared);
program.writer = new OutputWriter(program.descriptors, outputLimit(program.shared, program.outputBytes));
const { NODE_OPTIONS } = process.env;
if (NODE_OPTIONS?.startsWith(PRELOADS_FIRST)) process.env.NODE_OPTIONS = NODE_OPTIONS.slice(PRELOADS_FIRST.length);
else process.execArgv.splice(0, 2);
process.execArgv.splice(0, KEPT_FLAGS.length);
if (program.ownsProcess) {
  onOutputChange(tellOutput);
  program.noteChild = tellChild;
}
joinProgram();
replaceSurface();
// Others may have been loaded before it, by what the guest says in NODE_OPTIONS.
forgetModules(fileURLToPath(new URL('.', import.meta.url)));
