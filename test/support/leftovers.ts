/** What was started and not disposed of yet. A test that times out disposes of nothing: the end of its file does. */
export const leftovers = new Set<AsyncDisposable>();

export async function disposeOfLeftovers(): Promise<void> {
  await Promise.all([...leftovers].map((left) => left[Symbol.asyncDispose]()));
}
