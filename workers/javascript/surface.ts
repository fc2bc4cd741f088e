import { syncBuiltinESMExports } from 'node:module';
import { prepareBuiltin, replaceGetBuiltin } from './builtins.ts';
import { replaceDescriptorFunctions, replaceForeignDescriptors, replaceInputPaths } from './descriptors.ts';
import { replaceFileFunctions } from './files.ts';
import { hookModules } from './modules.ts';
import { replaceWorker } from './nested.ts';
import { replacePlaces } from './places.ts';
import { program } from './program.ts';
import { replaceSharedNames } from './shared-names.ts';
import { confineProcess } from './signals.ts';

/**
 * Makes what belongs to the whole process belong to the program in this thread, where it has none to itself, and keeps its
 * output to its files and its limit. Done once, before any guest code.
 */
export function replaceSurface(): void {
  replaceFileFunctions();
  replaceDescriptorFunctions();
  replaceGetBuiltin();
  replacePlaces();
  replaceWorker();
  hookModules(prepareBuiltin);
  if (program.ownsProcess) {
    replaceInputPaths();
  } else {
    confineProcess();
    replaceSharedNames();
    replaceForeignDescriptors();
  }
  syncBuiltinESMExports();
}
