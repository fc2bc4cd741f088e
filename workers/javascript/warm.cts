// Loaded and dropped while a thread boots: the way a program's CommonJS file goes is then travelled once.
const path: unknown = require('node:path');
module.exports = path;
