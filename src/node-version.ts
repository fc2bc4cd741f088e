/** The oldest Node that this runs on; `engines` in package.json says the same. */
const OLDEST = 24;

if (Number.parseInt(process.versions.node, 10) < OLDEST) {
  process.stderr.write(`elide-daemon needs Node ${OLDEST} or later; ${process.execPath} is ${process.version}\n`);
  process.exit(1);
}
