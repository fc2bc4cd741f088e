import { readFileSync } from 'node:fs';
import Module, { registerHooks } from 'node:module';
import { dirname, extname } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { compileFunction } from 'node:vm';
import type { MainSource } from '../../src/cell/messages.ts';
import { OWN_FRAME } from './own-frame.ts';
import { packageType, syntaxErrorAt, transformTypeScript } from './source.ts';

const TYPESCRIPT = /^file:.*\.[cm]?tsx?$/;

/** How many frames a hook puts on the stack of what Node throws when it finds no module, at most. */
const HOOK_FRAMES = 8;
/** Those of Node's that are there for hooks only. */
const HOOK_FRAME = /^ +at .*\(node:internal\/modules\/customization_hooks:.*\n?/gm;
const ANY_FRAME = /^ +at .*\n?/gm;

/** Of the modules that were given out the newest: one that does not parse is among them. */
const given: string[] = [];
const MOST_GIVEN = 16;

/** The program, where it is served from memory. */
let main: { names: string[]; url: string; format: string; code: string } | undefined;

/**
 * Lets programs import TypeScript files with everything Node's own type stripping refuses (enums, namespaces), and has
 * modules of Node prepared before a program gets them: `prepareBuiltin` is called with the name of each.
 */
export function hookModules(prepareBuiltin: (name: string) => void): void {
  registerHooks({
    resolve(specifier, context, next) {
      if (main?.names.includes(specifier)) return { url: main.url, format: main.format, shortCircuit: true };
      const result = unseen(() => next(specifier, context));
      if (result.url.startsWith('node:')) prepareBuiltin(result.url);
      return result;
    },
    load(url, context, next) {
      if (url === main?.url) {
        note(url, main.format);
        return { format: main.format, source: main.code, shortCircuit: true };
      }
      if (!TYPESCRIPT.test(url)) {
        const result = next(url, context);
        note(url, result.format);
        return result;
      }
      const path = fileURLToPath(url);
      const result = transformTypeScript(path, readFileSync(path, 'utf8'));
      if (!result.ok) throw new SyntaxError(result.message);
      process.setSourceMapsEnabled(true);
      return { format: formatOf(path, result.code), source: result.code, shortCircuit: true };
    },
  });
}

/** Serves `source` as the file that it lies in, whether or not there is one; `mainPath` may be a link to it. */
export function serveMain(mainPath: string, { path, code, format }: MainSource): void {
  const url = pathToFileURL(path).href;
  main = { names: [mainPath, path, url], url, format: format === 'syntax' ? formatBySyntax(code) : format, code };
}

function note(url: string, format: string | null | undefined): void {
  if (format === 'module' && url.startsWith('file:') && given.unshift(url) > MOST_GIVEN) given.length = MOST_GIVEN;
}

/** Which of the modules does not parse, and where: line and column from 1. Undefined where all do. */
export function brokenModule(): { url: string; code: string; line: number; column: number } | undefined {
  for (const url of given) {
    const path = fileURLToPath(url);
    const code = url === main?.url ? main.code : readFileSync(path, 'utf8');
    const at = syntaxErrorAt(path, code);
    if (at === undefined) continue;
    const lines = code.slice(0, at).split('\n');
    return { url, code, line: lines.length, column: (lines.at(-1) as string).length + 1 };
  }
  return undefined;
}

/** What `next` does, but that the stack of what it throws has as many of the program's frames as without a hook. */
function unseen<T>(next: () => T): T {
  const limit = Error.stackTraceLimit;
  if (typeof limit !== 'number') return next();
  Reflect.set(Error, 'stackTraceLimit', limit + HOOK_FRAMES);
  try {
    return next();
  } catch (error) {
    if (error instanceof Error && typeof error.stack === 'string') hideHook(error, error.stack, limit);
    throw error;
  } finally {
    Reflect.set(Error, 'stackTraceLimit', limit);
  }
}

function hideHook(error: Error, stack: string, limit: number): void {
  let seen = 0;
  const shown = stack.replace(OWN_FRAME, '').replace(HOOK_FRAME, '');
  Reflect.set(error, 'stack', shown.replace(ANY_FRAME, (frame) => (++seen > limit ? '' : frame)).trimEnd());
}

/** How Node treats a file: by its extension, else the nearest package.json's `type`, else its syntax. */
function formatOf(path: string, code: string): 'commonjs' | 'module' {
  const extension = extname(path);
  if (extension.startsWith('.m')) return 'module';
  if (extension.startsWith('.c')) return 'commonjs';
  return packageType(dirname(path)) ?? formatBySyntax(code);
}

/** What the compiler says of CommonJS code that only a module may contain. */
const MODULE_ONLY =
  /^(?:Cannot use (?:import statement|'import\.meta') outside a module|Unexpected token 'export'|Identifier '(?:require|module|exports|__filename|__dirname)' has already been declared)/;

/** A module when it does not parse as CommonJS but would as a module; what parses as neither fails as CommonJS. */
function formatBySyntax(code: string): 'commonjs' | 'module' {
  const message = syntaxError(code);
  if (message === undefined) return 'commonjs';
  if (MODULE_ONLY.test(message)) return 'module';
  // Awaits at its top level, perhaps before it imports or exports.
  const awaiting = syntaxError(`(async () => {${code.replace(/^#!.*/, '')}\n})`);
  return awaiting === undefined || MODULE_ONLY.test(awaiting) ? 'module' : 'commonjs';
}

function syntaxError(code: string): string | undefined {
  try {
    compileFunction(code, ['exports', 'require', 'module', '__filename', '__dirname']);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/**
 * Leaves nothing of the files that run beside a program for it to find: not as its main module, nor among those it has.
 * They are all that there are, or those below `directory`.
 */
export function forgetModules(directory = ''): void {
  const internals = Module as unknown as { _cache: Record<string, unknown> };
  for (const path of Object.keys(internals._cache)) if (path.startsWith(directory)) delete internals._cache[path];
  Reflect.deleteProperty(process, 'mainModule');
}
