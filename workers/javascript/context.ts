import { AsyncLocalStorage } from 'node:async_hooks';

const { snapshot } = AsyncLocalStorage;

/** An asynchronous context of the program, to call it in. Undefined where a program has broken what Node needs for it. */
export type Context = ReturnType<typeof snapshot> | undefined;

/** That of whoever runs now. */
export function currentContext(): Context {
  try {
    return snapshot();
  } catch {
    return undefined;
  }
}

/** Calls in that context; without one, or where a program has broken it, as it comes. */
export function callIn(context: Context, call: () => void): void {
  let isCalled = false;
  const noted = () => {
    isCalled = true;
    call();
  };
  try {
    if (context !== undefined) context(noted);
  } catch (error) {
    if (isCalled) throw error;
  }
  if (!isCalled) call();
}
