import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { TransformOptions, transformSync as TransformSync } from 'oxc-transform';
import type { MainSource, ProgramTask } from '../../src/cell/messages.ts';

/** JavaScript made from TypeScript, or what is wrong with it. */
export type Transformed = { ok: true; code: string } | Failed;
type Failed = { ok: false; message: string };

let loaded: typeof TransformSync | undefined;

/** Loaded when first needed: its native library costs a thread that only runs JavaScript time and memory. */
function transformer(): typeof TransformSync {
  loaded ??= (createRequire(import.meta.url)('oxc-transform') as { transformSync: typeof TransformSync }).transformSync;
  return loaded;
}

/**
 * Turns TypeScript into JavaScript with an inline source map: enums, namespaces and parameter properties included, types
 * not checked. `path` decides the dialect (`.tsx` knows JSX) and is what stack traces name.
 */
export function transformTypeScript(path: string, code: string): Transformed {
  const options: TransformOptions = {
    lang: /\.[jt]sx$/.test(path) ? 'tsx' : 'ts',
    target: 'esnext',
    sourcemap: true,
    typescript: { onlyRemoveTypeImports: false },
  };
  const transformSync = transformer();
  let result = transformSync(path, code, options);
  if (result.errors.length > 0) {
    // A script may not hold everything that CommonJS may, such as `using` at its top level.
    const commonjs = transformSync(path, code, { ...options, sourceType: 'commonjs' });
    if (commonjs.errors.length === 0) result = commonjs;
  }
  if (result.errors.length > 0) {
    return { ok: false, message: result.errors.map((error) => error.codeframe ?? error.message).join('\n') };
  }
  const map = { ...result.map, sources: [path], sourcesContent: [code] };
  const encoded = Buffer.from(JSON.stringify(map)).toString('base64');
  return { ok: true, code: `${result.code}\n//# sourceMappingURL=data:application/json;base64,${encoded}\n` };
}

/** At which character a JavaScript module does not parse; undefined where it does. */
export function syntaxErrorAt(path: string, code: string): number | undefined {
  const [error] = transformer()(path, code, { lang: 'js', sourceType: 'module' }).errors;
  return error && (error.labels.at(-1)?.start ?? 0);
}

/** The `source` of a program, as JavaScript. */
export function sourceOf({ typescript, source }: ProgramTask): { ok: true; source?: MainSource } | Failed {
  if (!typescript || source === undefined) return { ok: true, ...(source !== undefined && { source }) };
  const result = transformTypeScript(source.path, source.code);
  return result.ok ? { ok: true, source: { ...source, code: result.code, original: source.code } } : result;
}

/** The `type` of the nearest package.json at or above `directory`. */
export function packageType(directory: string): 'commonjs' | 'module' | undefined {
  for (let at = directory; ; at = dirname(at)) {
    const file = join(at, 'package.json');
    if (existsSync(file)) {
      try {
        const { type } = JSON.parse(readFileSync(file, 'utf8')) as { type?: unknown };
        return type === 'module' || type === 'commonjs' ? type : undefined;
      } catch {
        return undefined;
      }
    }
    if (at === dirname(at)) return undefined;
  }
}
