import { createRequire } from 'node:module';

/** Runs once what every program will run, so that none waits for Node to load or compile it. */
export async function warmUp(): Promise<void> {
  console.log('%s %o', 'warm', { array: [1], map: new Map([[1, new Error('warm')]]) });
  console.error(new Error('warm'));
  const require = createRequire(import.meta.url);
  require('./warm.cjs');
  delete require.cache[require.resolve('./warm.cjs')];
  // Put together here, so that no bundler takes it for a part of this program.
  await import(['data:text/javascript', 'await 0;export default import.meta.url'].join(','));
}
