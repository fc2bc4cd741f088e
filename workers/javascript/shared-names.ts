import workerThreads from 'node:worker_threads';
import { define, program, standIn } from './program.ts';

// Locks and broadcast channels are of the whole process. By their names all threads of a cell would meet: those of one
// program are to meet each other only.

type AnyFunction = (...args: unknown[]) => unknown;
type LockEntry = { name: string };
type LockSnapshot = { held: LockEntry[]; pending: LockEntry[] };

const { apply, construct } = Reflect;

/** Keeps the locks and channels of this program apart from those of its neighbours, which call theirs the same. */
export function replaceSharedNames(): void {
  replaceChannel();
  // Not before Node 24.5.
  const { locks } = workerThreads as { locks?: object };
  if (locks !== undefined) replaceLocks(Object.getPrototypeOf(locks));
}

/** No other program has this one's directory for temporary files, and all of its threads know it. */
function ownName(name: string): string {
  return `${program.tmpDir}\0${name}`;
}

function replaceChannel(): void {
  const channel = new Proxy(workerThreads.BroadcastChannel, {
    construct(target, args, newTarget) {
      if (args.length === 0) return construct(target, args, newTarget);
      const name = `${args[0]}`;
      return called(construct(target, [ownName(name)], newTarget), name);
    },
  });
  define(workerThreads, 'BroadcastChannel', channel);
  define(globalThis, 'BroadcastChannel', channel);
  define(channel.prototype, 'constructor', channel);
}

function replaceLocks(prototype: object): void {
  const { request, query } = prototype as { request: AnyFunction; query: () => Promise<LockSnapshot> };
  async function requestOwn(this: unknown, ...args: unknown[]) {
    const name = `${args[0]}`;
    const index = args[2] === undefined ? 1 : 2;
    const callback = args[index];
    // What starts so is refused.
    if (!name.startsWith('-')) args[0] = ownName(name);
    if (typeof callback === 'function') {
      args[index] = (lock: object | null) => callback(lock === null ? null : called(lock, name));
    }
    return apply(request, this, args);
  }
  async function queryOwn(this: unknown) {
    const { held, pending } = await apply(query, this, []);
    return { held: ownLocks(held), pending: ownLocks(pending) };
  }
  define(prototype, 'request', standIn(request, requestOwn));
  define(prototype, 'query', standIn(query, queryOwn));
}

function ownLocks(locks: LockEntry[]): LockEntry[] {
  const prefix = ownName('');
  return locks
    .filter(({ name }) => name.startsWith(prefix))
    .map((lock) => ({ ...lock, name: lock.name.slice(prefix.length) }));
}

/** Gives a lock or a channel the name its program knows it by, in the place where Node keeps that. */
function called<T extends object>(thing: T, name: string): T {
  for (const key of Object.getOwnPropertySymbols(thing)) {
    if (key.description === 'kName') (thing as Record<symbol, unknown>)[key] = name;
  }
  return thing;
}
