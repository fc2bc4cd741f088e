// Prints for some seconds; to be followed while it does.
import { setTimeout as pause } from 'node:timers/promises';

for (let tick = 1; tick <= 10; tick += 1) {
  console.log(`tick ${tick} of 10`);
  await pause(400);
}
