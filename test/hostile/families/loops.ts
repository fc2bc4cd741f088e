import { deaf, type Family, FORCED, GRACEFUL, PERHAPS_WITH_ITS_CELL, stubborn, WITH_ITS_CELL } from '../guest.ts';

/** `(module (func (export "f") (loop (br 0))))` */
const WASM_LOOP = '0061736d0100000001040160000003020100070501016600000a0901070003400c000b0b';

/** Programs that do not come to an end by themselves, in every way a language has. */
export const loops: Family = {
  family: 'loops',
  guests: [
    { name: 'an empty loop', language: 'javascript', code: stubborn('for (;;);'), ...FORCED },
    {
      name: 'an empty loop at its run limit',
      language: 'javascript',
      code: stubborn('for (;;);'),
      ...FORCED,
      stop: { by: 'timeout', timeoutMs: 3_000, graceMs: 60 },
      reasons: ['timed_out'],
    },
    {
      name: 'an empty loop without a handler',
      language: 'javascript',
      code: "console.log('ready'); for (;;);",
      ...GRACEFUL,
    },
    {
      name: 'a regular expression that backtracks for ever',
      language: 'javascript',
      code: stubborn('/^(a+)+$/.test("a".repeat(60) + "b");'),
      ...FORCED,
    },
    {
      name: 'a generator that yields on in its finally',
      language: 'javascript',
      code: stubborn(
        'for (;;) for (const _ of stay()) break;',
        'function* stay() { for (;;) try { yield 1; } finally { yield 2; continue; } }',
      ),
      ...FORCED,
    },
    {
      name: 'a generator whose return never returns',
      language: 'javascript',
      code: stubborn('for (const _ of stay()) break;', 'function* stay() { try { yield 1; } finally { for (;;); } }'),
      ...FORCED,
    },
    {
      name: 'a getter',
      language: 'javascript',
      code: stubborn('JSON.stringify({ get a() { for (;;); } });'),
      ...FORCED,
    },
    {
      name: 'a Proxy with an ownKeys trap',
      language: 'javascript',
      code: stubborn('Object.keys(new Proxy({}, { ownKeys() { for (;;); } }));'),
      ...FORCED,
    },
    {
      name: 'a Proxy with a has trap',
      language: 'javascript',
      code: stubborn("'a' in new Proxy({}, { has() { for (;;); } });"),
      ...FORCED,
    },
    {
      name: 'a prototype chain that is a circle through a Proxy',
      language: 'javascript',
      code: stubborn(
        'for (;;) try { target instanceof Map; target.missing; } catch {}',
        'const target = {}; Object.setPrototypeOf(target, new Proxy(target, {}));',
      ),
      ...FORCED,
    },
    {
      name: 'a promise storm',
      language: 'javascript',
      code: stubborn('const spin = () => Promise.resolve().then(spin); spin();'),
      ...FORCED,
    },
    {
      name: 'an await storm in a module',
      language: 'javascript',
      code: `export {};\n${stubborn('for (;;) await null;')}`,
      ...FORCED,
    },
    {
      name: 'a nextTick storm',
      language: 'javascript',
      code: stubborn('const spin = () => process.nextTick(spin); spin();'),
      ...FORCED,
    },
    {
      name: 'a setImmediate storm',
      language: 'javascript',
      code: stubborn('const spin = () => { setImmediate(spin); setImmediate(() => {}); }; spin();'),
      ...FORCED,
    },
    {
      name: 'a message storm between two ports',
      language: 'javascript',
      code: stubborn(`
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => { port1.postMessage(1); port1.postMessage(1); };
        port2.onmessage = () => port2.postMessage(1);
        port2.postMessage(1);`),
      ...FORCED,
    },
    {
      name: 'a native sort of 2^25 numbers',
      language: 'javascript',
      code: stubborn('for (;;) numbers.sort().reverse();', 'const numbers = new Float64Array(2 ** 25).fill(1.5);'),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'a sort of many strings',
      language: 'javascript',
      code: stubborn('for (;;) [...words].sort();', 'const words = Array.from({ length: 3e5 }, (_, i) => String(i));'),
      ...FORCED,
    },
    {
      name: 'a search through an object of length 2^53',
      language: 'javascript',
      code: stubborn('Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1);'),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'a replace over 2^28 characters',
      language: 'javascript',
      code: stubborn("'a'.repeat(2 ** 28).replace(/a/g, 'b');"),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'a padEnd to 2^28 characters',
      language: 'javascript',
      code: stubborn("for (;;) 'x'.padEnd(2 ** 28, 'yz').indexOf('q');"),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'JSON.stringify of what doubles at each of 26 levels',
      language: 'javascript',
      code: stubborn(
        'for (;;) try { JSON.stringify(list); } catch {}',
        'let list = [1]; for (let level = 0; level < 26; level += 1) list = [list, list];',
      ),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'brotli at its slowest',
      language: 'javascript',
      code: stubborn(
        'for (;;) brotliCompressSync(noise);',
        "const { brotliCompressSync } = require('node:zlib'); const noise = require('node:crypto').randomBytes(2 ** 24);",
      ),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'a deflate of a quarter of a GiB',
      language: 'javascript',
      code: stubborn(
        'for (;;) deflateSync(zeros, { level: 9 });',
        "const { deflateSync } = require('node:zlib'); const zeros = Buffer.alloc(2 ** 28);",
      ),
      ...PERHAPS_WITH_ITS_CELL,
    },
    {
      name: 'a key derivation of hours (pbkdf2)',
      language: 'javascript',
      code: stubborn(
        "pbkdf2Sync('a', 'b', 2 ** 31 - 1, 64, 'sha512');",
        "const { pbkdf2Sync } = require('node:crypto');",
      ),
      ...WITH_ITS_CELL,
    },
    {
      name: 'a key derivation of minutes (scrypt)',
      language: 'javascript',
      code: stubborn(
        "scryptSync('a', 'b', 64, { N: 2 ** 16, r: 8, p: 1000, maxmem: 2 ** 28 });",
        "const { scryptSync } = require('node:crypto');",
      ),
      ...WITH_ITS_CELL,
    },
    {
      name: 'a FIFO that nobody writes',
      language: 'javascript',
      code: stubborn(
        "openSync('fifo');",
        "const { openSync } = require('node:fs'); require('node:child_process').execFileSync('mkfifo', ['fifo']);",
      ),
      ...WITH_ITS_CELL,
    },
    {
      name: 'Atomics.wait',
      language: 'javascript',
      code: stubborn('for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);'),
      ...FORCED,
    },
    {
      name: 'an allocation loop that V8 would unroll',
      language: 'javascript',
      code: stubborn('for (;;) new Array(1000).fill(1.5);'),
      ...FORCED,
    },
    {
      name: 'a power of big integers',
      language: 'javascript',
      code: stubborn('for (;;) (7n ** (2n ** 26n)).toString();'),
      ...FORCED,
    },
    {
      name: 'a loop in WebAssembly',
      language: 'javascript',
      code: stubborn(
        'instance.exports.f();',
        `const instance = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from('${WASM_LOOP}', 'hex')));`,
      ),
      ...FORCED,
    },
    {
      name: 'threads of its own that loop',
      language: 'javascript',
      code: stubborn(
        'setInterval(() => {}, 1000);',
        `const { Worker } = require('node:worker_threads');
        const code = "require('node:worker_threads').parentPort.postMessage(1); for (;;);";
        const threads = [1, 2].map(() => new Worker(code, { eval: true }));
        await Promise.all(threads.map((thread) => new Promise((resolve) => thread.once('message', resolve))));`,
      ).replace(/^/, "import { createRequire } from 'node:module';\nconst require = createRequire(import.meta.url);\n"),
      ...FORCED,
    },
    { name: 'an empty loop', language: 'python', code: deaf('while True: pass'), ...FORCED },
    {
      name: 'an empty loop at its run limit',
      language: 'python',
      code: deaf('while True: pass'),
      ...FORCED,
      stop: { by: 'timeout', timeoutMs: 3_000, graceMs: 60 },
      reasons: ['timed_out'],
    },
    { name: 'a power of big integers', language: 'python', code: deaf('7 ** (10 ** 9)'), ...FORCED },
    {
      name: 'a regular expression that backtracks for ever',
      language: 'python',
      code: deaf('import re\nre.match("^(a+)+$", "a" * 60 + "b")'),
      ...FORCED,
    },
    {
      name: 'a sort with a comparison that loops',
      language: 'python',
      code: deaf(`
class Loops:
    def __lt__(self, other):
        while True: pass
sorted([Loops(), Loops()])`),
      ...FORCED,
    },
    {
      name: 'a search through a native iterator',
      language: 'python',
      code: deaf('import itertools\n-1 in itertools.count()'),
      ...FORCED,
    },
    {
      name: 'a deflate of a quarter of a GiB',
      language: 'python',
      code: deaf('while True: zlib.compress(bytes(2 ** 28), 9)', 'import zlib'),
      ...FORCED,
    },
    {
      name: 'a key derivation of hours (pbkdf2)',
      language: 'python',
      code: deaf('hashlib.pbkdf2_hmac("sha512", b"a", b"b", 2 ** 31 - 1)', 'import hashlib'),
      ...FORCED,
    },
    {
      name: 'a loop that catches everything',
      language: 'python',
      code: `
import sys
def refuse(*_): raise BaseException("no")
import signal
for number in range(1, 32):
    try: signal.signal(number, refuse)
    except (OSError, ValueError): pass
while True:
    try:
        print("ready", flush=True)
        while True: pass
    except BaseException: continue`,
      ...FORCED,
    },
    {
      name: 'a __del__ that loops when the program has ended',
      language: 'python',
      code: deaf(`
class Stays:
    def __del__(self):
        while True: pass
stays = Stays()`),
      ...FORCED,
    },
    {
      name: 'an atexit function that loops',
      language: 'python',
      code: deaf('import atexit\n@atexit.register\ndef stay():\n    while True: pass'),
      ...FORCED,
    },
    {
      name: 'a thread that the end waits for',
      language: 'python',
      code: deaf('import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()'),
      ...FORCED,
    },
    {
      name: 'a lock that is taken twice',
      language: 'python',
      code: deaf('import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()'),
      ...FORCED,
    },
    { name: 'a loop of signal.pause', language: 'python', code: deaf('while True: signal.pause()'), ...FORCED },
  ],
};
