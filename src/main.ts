#!/usr/bin/env node
import './node-version.ts';

// Nothing of the rest before that: an older Node cannot even load it.
await import('./program.ts');
