#!/usr/bin/env node
import { elidectl } from './program.ts';

// Everything is written by now: leaving at once cuts off only what is no longer wanted, such as unread input.
process.exit(await elidectl(process.argv.slice(2)));
