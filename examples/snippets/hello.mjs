// Reads itself and greets with what it found: a program of two files, run under its own name.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { mostCommon } from './words.mjs';

const path = fileURLToPath(import.meta.url);
const [word, count] = mostCommon(readFileSync(path, 'utf8'));
console.log(`hello from node ${process.version}: I say "${word}" ${count} times`);
