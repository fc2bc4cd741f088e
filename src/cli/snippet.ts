import { isUtf8 } from 'node:buffer';
import { readFile } from 'node:fs/promises';
import { basename, isAbsolute, resolve } from 'node:path';
import { languageOf } from '../client/language.ts';
import { InvalidArgumentError } from '../errors.ts';
import type { Snippet } from '../supervisor/requests.ts';
import { readInput } from './stdin.ts';

/** The flags that say what to run, and where. */
export interface ProgramFlags {
  language?: string;
  eval?: string;
  cwd?: string;
}

type Program = Pick<Snippet, 'code' | 'language' | 'args' | 'workingDirectory' | 'sourceFileName'>;

/**
 * The program of a command line. Where paths mean the same to the daemon as here, it runs under its own name and in this
 * directory: imports and stack traces are the user's own. Elsewhere it runs under its base name in a fresh directory.
 */
export async function programOf(
  file: string | undefined,
  operands: string[],
  flags: ProgramFlags,
  sameMachine: boolean,
): Promise<Program> {
  const workingDirectory = directoryOf(flags.cwd, sameMachine);
  if (flags.eval !== undefined) {
    const args = file === undefined ? operands : [file, ...operands];
    return { code: flags.eval, language: named(flags, '--eval'), args, workingDirectory };
  }
  if (file === undefined) throw new InvalidArgumentError('nothing to run: name a file, - for stdin, or -e CODE');
  if (file === '-') {
    const language = named(flags, '-');
    return { code: textOf(await readInput(), 'what stdin holds'), language, args: operands, workingDirectory };
  }
  const language = flags.language ?? languageOf(file);
  if (language === undefined) {
    throw new InvalidArgumentError(
      `the ending of ${file} says no language: name it with --language (elidectl languages)`,
    );
  }
  const sourceFileName = sameMachine ? absolute(file) : basename(file);
  return { code: textOf(await read(file), file), language, args: operands, workingDirectory, sourceFileName };
}

function directoryOf(cwd: string | undefined, sameMachine: boolean): string | undefined {
  if (sameMachine) return absolute(cwd ?? '.');
  if (cwd === undefined || isAbsolute(cwd)) return cwd;
  throw new InvalidArgumentError(
    `--cwd ${cwd} is relative; over --tcp it must be an absolute path on the daemon's machine`,
  );
}

function absolute(path: string): string {
  try {
    return resolve(path);
  } catch (error) {
    throw new InvalidArgumentError(`the current directory cannot be used: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function named({ language }: ProgramFlags, source: string): string {
  if (language !== undefined) return language;
  throw new InvalidArgumentError(
    `${source} has no file name to tell the language by: name it with --language (elidectl languages)`,
  );
}

/** Code goes to the daemon as text: of anything else it would get something that nobody has written. */
function textOf(bytes: Buffer, source: string): string {
  if (!isUtf8(bytes)) throw new InvalidArgumentError(`${source} is not UTF-8`);
  return bytes.toString('utf8');
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'there is no such file' : code === 'EISDIR' ? 'it is a directory' : message;
    throw new InvalidArgumentError(`cannot read ${file}: ${why}`, { cause: error });
  }
}
