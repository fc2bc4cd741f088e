/** In ms. */
const UNITS: Record<string, number> = {
  ns: 1e-6,
  us: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};
const MIB = 2 ** 20;
/** In bytes; a number without a unit is in MiB. */
const SIZES: Record<string, number> = {
  '': MIB,
  b: 1,
  k: 1024,
  kib: 1024,
  kb: 1e3,
  m: MIB,
  mib: MIB,
  mb: 1e6,
  g: 2 ** 30,
  gib: 2 ** 30,
  gb: 1e9,
};

/** A duration as Go writes it (`1500ms`, `5s`, `1m30s`), in whole ms; undefined when it is none. */
export function durationMs(text: string): number | undefined {
  if (text === '0') return 0;
  // Either micro sign, by its number: the letter itself would make a string of two bytes a character of a bundled program.
  const plain = text.replaceAll(/[\u00b5\u03bc]s/g, 'us');
  const pieces = [...plain.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|ms|s|m|h)/gy)];
  const read = pieces.reduce((length, [piece]) => length + piece.length, 0);
  if (read === 0 || read < plain.length) return undefined;
  return safe(
    Math.round(pieces.reduce((sum, [, count, unit]) => sum + Number(count) * (UNITS[unit as string] as number), 0)),
  );
}

/** A size in MiB, or with a unit (`100kB`, `64MiB`), in whole bytes; undefined when it is none. */
export function sizeBytes(text: string): number | undefined {
  const [, count, unit = ''] = /^(\d+(?:\.\d+)?)([a-z]*)$/i.exec(text) ?? [];
  const factor = SIZES[unit.toLowerCase()];
  return count === undefined || factor === undefined ? undefined : safe(Math.floor(Number(count) * factor));
}

/** Beyond that a number is no longer the one that was meant, and no message holds it. */
function safe(value: number): number | undefined {
  return Number.isSafeInteger(value) ? value : undefined;
}
