import { lstatSync, readdirSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { isNoFile } from '../plain-file.ts';

/** The numbers of the rotated files that are there of a path, in no order. */
export function numbersOf(path: string): number[] {
  const prefix = `${basename(path)}.`;
  return readdirSync(dirname(path))
    .filter((name) => name.startsWith(prefix) && /^\d{1,9}$/.test(name.slice(prefix.length)))
    .map((name) => Number(name.slice(prefix.length)));
}

/** How many bytes were written since then, whoever has written them: files before the last that are gone were full. */
export function bytesSince(path: string, since: { file: number; bytes: number }, maxFileBytes: number): number {
  const numbers = numbersOf(path).filter((number) => number >= since.file);
  if (numbers.length === 0) return 0;
  const gone = Math.max(...numbers) + 1 - since.file - numbers.length;
  const sizes = numbers.map((number) => sizeOf(`${path}.${number}`) ?? maxFileBytes);
  return sizes.reduce((sum, size) => sum + size, gone * maxFileBytes - since.bytes);
}

/**
 * Those that are there of a path, from one on, as {@link OwnFile} has them: they need not be open here. None where a guest
 * has removed their directory.
 */
export function filesFrom(path: string, first: number): { path: string; is(found: Stats): boolean }[] {
  return numbersIfThere(path)
    .filter((number) => number >= first)
    .flatMap((number) => {
      const name = `${path}.${number}`;
      const there = lstatSync(name, { throwIfNoEntry: false });
      return there === undefined ? [] : [{ path: name, is: ({ dev, ino }) => ino === there.ino && dev === there.dev }];
    });
}

function numbersIfThere(path: string): number[] {
  try {
    return numbersOf(path);
  } catch (error) {
    if (isNoFile(error)) return [];
    throw error;
  }
}

function sizeOf(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.size;
}
