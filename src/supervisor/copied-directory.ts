import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { StartupError } from '../errors.ts';
import type { JournalContents } from '../journal/entries.ts';
import { readPlainFile } from '../plain-file.ts';
import { sessionsLeft } from '../processes.ts';
import type { StateDirectory } from '../state-directory.ts';
import { readProcessRecord } from '../wire/process-record.ts';

/** How much is read of the name of a process, which is shorter. */
const MOST_BYTES = 1024;

/**
 * Throws a `StartupError` where the state directory is a copy of another one, of whose cells or guests some run: all names
 * in it are theirs, and a daemon ends whom its directory names and it cannot reach.
 */
export function requireNoneOfOriginal(
  { root, original, paths }: StateDirectory,
  { unfinished }: JournalContents,
): void {
  if (original === undefined) return;
  const guests = unfinished.flatMap(({ events }) => events.flatMap((event) => event.process ?? []));
  const [running] = sessionsLeft([...namesOfCells(paths.cells), ...guests]);
  if (running === undefined) return;
  throw new StartupError(
    `state directory ${root} is a copy of ${original}, whose cells run (process ${running}); ` +
      'stop the daemon there, and all that it runs, or name another directory',
  );
}

/** Names of cells, and of what they gave programs to. */
function namesOfCells(directory: string): string[] {
  return readdirSync(directory).flatMap((name) => {
    const path = join(directory, name);
    if (name.endsWith('.process')) return readPlainFile(path, MOST_BYTES)?.toString() ?? [];
    return name.endsWith('.guests') ? readProcessRecord(path) : [];
  });
}
