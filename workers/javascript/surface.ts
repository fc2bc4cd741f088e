import { syncBuiltinESMExports } from 'node:module';
import { replaceGetBuiltin } from './builtins.ts';
import { replaceDescriptorFunctions } from './descriptors.ts';
import { replaceFileFunctions } from './files.ts';
import { hookModules } from './modules.ts';
import { replaceWorker } from './nested.ts';
import { replacePlaces } from './places.ts';
import { confineProcess } from './signals.ts';

/** Makes what belongs to the whole process belong to the program in this thread. Done once, before any guest code. */
export function replaceSurface(): void {
  confineProcess();
  replaceFileFunctions();
  replaceDescriptorFunctions();
  replaceGetBuiltin();
  replacePlaces();
  replaceWorker();
  hookModules();
  syncBuiltinESMExports();
}
