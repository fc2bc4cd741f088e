import { extname } from 'node:path';

const LANGUAGES: Record<string, string> = {
  '.js': 'javascript',
  '.mjs': 'javascript',
  '.cjs': 'javascript',
  '.ts': 'typescript',
  '.mts': 'typescript',
  '.cts': 'typescript',
  '.py': 'python',
};

/** The language of a program by its file's ending; undefined for another. */
export const languageOf = (path: string): string | undefined => LANGUAGES[extname(path).toLowerCase()];
