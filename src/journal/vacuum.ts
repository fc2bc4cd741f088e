import { statSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';

/** Makes a journal's file as small as what it holds. Nobody else may have it open. Sizes in bytes. */
export function vacuumJournal(path: string): { before: number; after: number } {
  const before = statSync(path).size;
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    database.exec('VACUUM; PRAGMA wal_checkpoint(TRUNCATE)');
  } finally {
    database.close();
  }
  return { before, after: statSync(path).size };
}
