import { constants } from 'node:os';

/** Nobody reads what this command writes any more. Ends it without a word, as SIGPIPE would. */
export class OutputClosedError extends Error {
  static readonly exitCode = 128 + constants.signals.SIGPIPE;
}

/** What this command writes cannot be kept: a full disk, for example. */
export class OutputFailedError extends Error {}

/** How a write fails when the other end of a pipe, a socket or a terminal is gone. */
const CLOSED = new Set(['EPIPE', 'EIO', 'ECONNRESET', 'ERR_STREAM_DESTROYED']);

for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});

/** Writes to the command's own stdout or stderr; resolves when the bytes have left. */
export async function write(data: string | Uint8Array, stream: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
  try {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    process[stream].write(data, (error) => (error ? reject(error) : resolve()));
    await promise;
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    if (CLOSED.has(code)) throw new OutputClosedError(message, { cause: error });
    throw new OutputFailedError(`cannot write to ${stream}: ${message}`, { cause: error });
  }
}

/** One line for people on stderr. */
export function complain(message: string): Promise<void> {
  return write(`elidectl: ${message}\n`, 'stderr').catch(() => {});
}

/** One JSON document on one line; what is absent is null, so that every document of a kind has the same keys. */
export function writeJson(document: unknown): Promise<void> {
  return write(`${JSON.stringify(document, (_, value) => (value === undefined ? null : value))}\n`);
}

/** Left-aligned columns, two spaces apart. */
export function writeTable(head: string[], rows: string[][]): Promise<void> {
  return write(tableOf([head, ...rows]));
}

/** One `key  value` line for each pair that has a value. */
export function writePairs(pairs: [key: string, value: string | number | undefined][]): Promise<void> {
  return write(tableOf(pairs.flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)]]))));
}

function tableOf(rows: string[][]): string {
  const widestOf = (column: number) => rows.reduce((widest, row) => Math.max(widest, row[column]?.length ?? 0), 0);
  const widths = (rows[0] ?? []).map((_, column) => widestOf(column));
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}
