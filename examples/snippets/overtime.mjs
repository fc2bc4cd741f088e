// Has more to do than it has time for.
console.log('ready');
setInterval(() => {}, 1000);
