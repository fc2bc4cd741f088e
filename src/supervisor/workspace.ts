import { lstat, rmdir, unlink } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { removeTree } from '../remove-tree.ts';

/** After how long one that cannot be removed, as on a read-only disk, is tried again, in ms: twice as long each time. */
const REMOVE_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 300_000;

/** The directories of one guest, which go with it. */
export class Workspace {
  readonly #path: string;
  /** Where it runs, unless it was given a directory. */
  readonly cwd: string;
  readonly tmpDir: string;

  constructor(path: string) {
    this.#path = path;
    this.cwd = join(path, 'cwd');
    this.tmpDir = join(path, 'tmp');
  }

  /**
   * Removes what the guest may have left; `rm` does not follow the symbolic links in it. Where it cannot be removed now, it
   * is tried again while it `isWanted`. `sourceFileName`: where its code was put.
   */
  async remove(sourceFileName: string, isWanted: () => boolean): Promise<void> {
    if (await this.#removeGiven(sourceFileName)) return;
    for (let waitMs = REMOVE_RETRY_MS; !(await removeTree(this.#path)) && isWanted(); waitMs *= 2) {
      await sleep(Math.min(waitMs, LONGEST_RETRY_MS), undefined, { ref: false });
    }
  }

  /**
   * Removes one in which there is only what its guest was given: that goes by name, which costs a third of a search. Resolves
   * with false where there is anything else.
   */
  async #removeGiven(sourceFileName: string): Promise<boolean> {
    try {
      // Not through a link that the guest has put there.
      if ((await lstat(this.cwd)).isDirectory()) await unlink(join(this.cwd, basename(sourceFileName)));
      await Promise.all([rmdir(this.cwd), rmdir(this.tmpDir)]);
      await rmdir(this.#path);
      return true;
    } catch {
      return false;
    }
  }
}
