// Would hear SIGTERM, but never stops computing: only force ends it.
process.on('SIGTERM', () => console.log('never printed'));
console.log('ready');
for (;;);
