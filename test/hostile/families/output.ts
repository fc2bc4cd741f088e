import { BY_ITSELF, deaf, type Family, FORCED, type HostileGuest, stubborn } from '../guest.ts';

/** Writes more than it may. */
const OUTPUT_LIMIT: Pick<HostileGuest, 'stop' | 'reasons' | 'rungs' | 'endsWithinMs' | 'neighbours' | 'limits'> = {
  ...BY_ITSELF,
  limits: { outputLimitBytes: 65_536, outputPolicy: 'truncate' },
};

const LINE = 'x'.repeat(63);

const isWithinLimit = (bytes: Buffer) => bytes.length === 65_536;

/** The same where that is its end. */
const KILLED_AT_LIMIT: Partial<HostileGuest> & typeof OUTPUT_LIMIT = {
  ...OUTPUT_LIMIT,
  limits: { outputLimitBytes: 65_536, outputPolicy: 'kill' },
  reasons: ['output_exceeded'],
  rungs: ['forced'],
  stdout: isWithinLimit,
};

const ends = (wanted: Buffer) => (bytes: Buffer) => bytes.equals(Buffer.concat([Buffer.from('ready\n'), wanted]));

/** Every byte there is, twice over, in an order that is no UTF-8. */
const EVERY_BYTE = Buffer.from(Array.from({ length: 512 }, (_, at) => (511 - at) & 255));

/** Programs that write too much, too little at a time, or what is no text. */
export const output: Family = {
  family: 'output',
  guests: [
    {
      name: 'a flood of lines',
      language: 'javascript',
      code: stubborn("for (;;) console.log('x'.repeat(99));"),
      ...FORCED,
    },
    {
      name: 'a flood of blocks on both streams',
      language: 'javascript',
      code: stubborn(
        'for (;;) { process.stdout.write(block); process.stderr.write(block); }',
        'const block = Buffer.alloc(4096, 120);',
      ),
      ...FORCED,
    },
    {
      name: 'a flood from a child that has its output',
      language: 'javascript',
      code: stubborn("require('node:child_process').spawn('yes', [], { stdio: 'inherit' });"),
      ...FORCED,
    },
    {
      name: 'bytes that are no UTF-8',
      language: 'javascript',
      code: `console.log('ready'); process.stdout.write(Buffer.from('${EVERY_BYTE.toString('hex')}', 'hex'));`,
      ...BY_ITSELF,
      stdout: ends(EVERY_BYTE),
    },
    {
      name: 'NUL bytes',
      language: 'javascript',
      code: "console.log('ready'); process.stdout.write('\\0'.repeat(100_000));",
      ...BY_ITSELF,
      stdout: ends(Buffer.alloc(100_000)),
    },
    {
      name: 'a MiB without a newline, then a loop',
      language: 'javascript',
      code: stubborn('for (;;);', "process.stdout.write('x'.repeat(2 ** 20));"),
      ...FORCED,
      stdout: (bytes) => bytes.length === 2 ** 20 + 6,
    },
    {
      name: 'one byte at a time',
      language: 'javascript',
      code: "console.log('ready'); for (let at = 0; at < 20_000; at += 1) require('node:fs').writeSync(1, 'x');",
      ...BY_ITSELF,
      // Its own work: as long as the others leave it for that.
      endsWithinMs: 30_000,
      stdout: ends(Buffer.alloc(20_000, 'x')),
    },
    {
      name: 'standard streams that it has closed',
      language: 'javascript',
      code: `
        console.log('ready');
        const fs = require('node:fs');
        for (const fd of [0, 1, 2]) fs.closeSync(fd);
        process.stdout.end(); process.stderr.destroy(); process.stdin.destroy();
        console.log('still'); console.error('here');`,
      ...BY_ITSELF,
      reasons: ['completed', 'failed'],
    },
    {
      name: 'output beyond its limit, cut off',
      language: 'javascript',
      code: "console.log('ready'); for (let at = 0; at < 10_000; at += 1) console.log('x'.repeat(99));",
      ...OUTPUT_LIMIT,
      stdout: isWithinLimit,
    },
    {
      name: 'output beyond its limit, which ends it',
      language: 'javascript',
      code: stubborn("for (;;) console.log('x'.repeat(99));"),
      ...KILLED_AT_LIMIT,
    },
    {
      name: 'a flood to its file by its path, which ends it',
      language: 'javascript',
      code: stubborn(
        "for (;;) { fs.writeSync(fd, 'x'.repeat(4096)); Atomics.wait(still, 0, 0, 1); }",
        `const fs = require('node:fs');
        const still = new Int32Array(new SharedArrayBuffer(4));
        const { ino } = fs.fstatSync(1);
        const target = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
        const isOwn = (path) => path.endsWith('/stdout') && fs.statSync(path).ino === ino;
        const fd = fs.openSync(fs.readdirSync('/proc/self/fd').map(target).find(isOwn), 'a');`,
      ),
      ...KILLED_AT_LIMIT,
    },
    {
      name: 'a flood from a child that is cut off while it takes every descriptor',
      language: 'javascript',
      code: stubborn(
        "for (;;) try { fs.openSync('/dev/null'); } catch { fs.mkdirSync('full', { recursive: true }); }",
        `const fs = require('node:fs');
        const flood = 'until [ -d full ]; do sleep 0.02; done; while :; do head -c 100000 /dev/zero >&2; sleep 0.02; done';
        require('node:child_process').spawn('sh', ['-c', flood], { stdio: 'inherit' });`,
      ),
      ...OUTPUT_LIMIT,
      ...FORCED,
      stop: { by: 'timeout', timeoutMs: 4_000, graceMs: 60 },
      reasons: ['timed_out'],
      alone: true,
      inProcess: false,
    },
    {
      name: 'a flood from a child that finds its output, which ends it',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        `require('node:child_process').spawn('sh', ['-c', 'while :; do echo ${LINE}; done >> /proc/$PPID/fd/1'], { stdio: 'ignore' });`,
      ),
      ...KILLED_AT_LIMIT,
    },
    {
      name: 'a flood from what takes its place, which ends it',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        "process.execve('/bin/sh', ['sh', '-c', 'while :; do echo x; done'], { PATH: process.env.PATH });",
      ),
      ...KILLED_AT_LIMIT,
      // That it did so is a warning, on the other stream.
      stdout: (bytes) => bytes.length > 60_000 && bytes.length <= 65_536,
    },
    { name: 'a flood of lines', language: 'python', code: deaf('while True: print("x" * 99)'), ...FORCED },
    {
      name: 'a flood of blocks on both streams',
      language: 'python',
      code: deaf('block = b"x" * 65536\nwhile True:\n    os.write(1, block)\n    os.write(2, block)'),
      ...FORCED,
    },
    {
      name: 'a flood without waiting for room',
      language: 'python',
      code: deaf(`
os.set_blocking(1, False)
while True:
    try: os.write(1, b"x" * 4096)
    except BlockingIOError: pass`),
      ...FORCED,
    },
    {
      name: 'a flood from a child in a session of its own',
      language: 'python',
      code: deaf('import subprocess\nsubprocess.Popen(["yes"], start_new_session=True)\nsignal.pause()'),
      ...FORCED,
    },
    {
      name: 'bytes that are no UTF-8',
      language: 'python',
      code: `print("ready", flush=True)\nimport os\nos.write(1, bytes.fromhex("${EVERY_BYTE.toString('hex')}"))`,
      ...BY_ITSELF,
      stdout: ends(EVERY_BYTE),
    },
    {
      name: 'NUL bytes',
      language: 'python',
      code: 'print("ready", flush=True)\nimport sys\nsys.stdout.write("\\0" * 100000)',
      ...BY_ITSELF,
      stdout: ends(Buffer.alloc(100_000)),
    },
    {
      name: 'one byte at a time',
      language: 'python',
      code: 'print("ready", flush=True)\nimport os\nfor _ in range(20000): os.write(1, b"x")',
      ...BY_ITSELF,
      // Its own work: as long as the others leave it for that.
      endsWithinMs: 30_000,
      stdout: ends(Buffer.alloc(20_000, 'x')),
    },
    {
      name: 'standard streams that it has closed',
      language: 'python',
      code: 'print("ready", flush=True)\nimport os, sys\nfor fd in (0, 1, 2): os.close(fd)\nprint("still")\nsys.stdout.flush()',
      ...BY_ITSELF,
      reasons: ['failed'],
    },
    {
      name: 'closed streams, and a loop',
      language: 'python',
      code: deaf('for fd in (0, 1, 2): os.close(fd)\nwhile True: pass'),
      ...FORCED,
    },
    {
      name: 'output beyond its limit, cut off',
      language: 'python',
      code: 'print("ready", flush=True)\nfor _ in range(10000): print("x" * 99)',
      ...OUTPUT_LIMIT,
      stdout: isWithinLimit,
    },
    {
      name: 'output beyond its limit, which ends it',
      language: 'python',
      code: deaf('while True: print("x" * 99)'),
      ...KILLED_AT_LIMIT,
    },
  ],
};
