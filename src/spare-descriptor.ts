import { closeSync, openSync } from 'node:fs';

// A process that has no descriptor left must still see what its children do, and read what they have left behind. So one is
// kept, and given up for the moment that this takes.

let spare: number | undefined;
let keepers = 0;

/** Keeps one descriptor for {@link withDescriptor}, until it is disposed. */
export function keepDescriptor(): Disposable {
  keepers += 1;
  refill();
  return {
    [Symbol.dispose]: () => {
      keepers -= 1;
      if (keepers === 0) giveUp();
    },
  };
}

/** Runs what opens one file at a time, and closes it again; a second time, with the spare, where no descriptor was left. */
export function withDescriptor<T>(run: () => T): T {
  refill();
  try {
    return run();
  } catch (error) {
    if (!isShortage(error) || !giveUp()) throw error;
  }
  try {
    return run();
  } finally {
    refill();
  }
}

/** Whether a call failed because this process, or the system, has no descriptor left. */
export function isShortage(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'EMFILE' || code === 'ENFILE';
}

function refill(): void {
  if (spare !== undefined || keepers === 0) return;
  try {
    spare = openSync('/dev/null', 'r');
  } catch {
    // The next use tries again.
  }
}

/** False when there is none. */
function giveUp(): boolean {
  if (spare === undefined) return false;
  closeSync(spare);
  spare = undefined;
  return true;
}
