#!/usr/bin/env node
import '../node-version.ts';

// Nothing of the rest before that: an older Node cannot even load it.
const { elidectl } = await import('./program.ts');

// Everything is written by now: leaving at once cuts off only what is no longer wanted, such as unread input.
process.exit(await elidectl(process.argv.slice(2)));
