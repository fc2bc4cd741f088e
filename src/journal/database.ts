import { DatabaseSync, type DatabaseSyncOptions } from 'node:sqlite';

/** Opens a journal's file. What SQLite would put into temporary files stays in memory: there may be no room for any. */
export function openDatabase(path: string, options: DatabaseSyncOptions): DatabaseSync {
  const database = new DatabaseSync(path, options);
  database.exec('PRAGMA temp_store = MEMORY');
  return database;
}
