// Holds a file, and gives it back when it is asked to end.
import { rmSync, writeFileSync } from 'node:fs';

writeFileSync('held.lock', String(Date.now()));
process.on('SIGTERM', () => {
  rmSync('held.lock');
  console.log('lock released');
  process.exit(3);
});
setInterval(() => {}, 1000);
console.log('ready');
