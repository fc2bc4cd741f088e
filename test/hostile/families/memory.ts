import { BY_ITSELF, deaf, type Family, FORCED, type HostileGuest, stubborn } from '../guest.ts';

/** Runs into the heap limit of its session. V8 may abort the whole process; with one guest there, that is no doubt. */
const HEAP_LIMIT: Pick<
  HostileGuest,
  'stop' | 'reasons' | 'rungs' | 'endsWithinMs' | 'worksMs' | 'neighbours' | 'session'
> = {
  ...BY_ITSELF,
  rungs: [undefined, 'forced'],
  reasons: ['memory_exceeded', 'cell_lost'],
  // Filling a heap at last collects garbage over and over: that is V8's time, not the daemon's.
  worksMs: 3_000,
  neighbours: 'may be cell_lost',
  session: { memoryLimitMb: 16 },
};

/** Runs into its own memory limit. */
const MEMORY_LIMIT: Pick<
  HostileGuest,
  'stop' | 'reasons' | 'rungs' | 'endsWithinMs' | 'worksMs' | 'neighbours' | 'limits'
> = {
  ...BY_ITSELF,
  rungs: [undefined, 'forced'],
  reasons: ['memory_exceeded'],
  // Counted from where it begins to take memory: how long it takes to have too much is its own affair.
  worksMs: 3_000,
  limits: { memoryLimitMb: 128 },
};

/** `(module (memory (export "m") 1 65536))` */
const WASM_MEMORY = '0061736d010000000506010101808004070501016d0200';

/** Programs that take memory, and programs that take stack. */
export const memory: Family = {
  family: 'memory',
  guests: [
    {
      name: 'an array of objects',
      language: 'javascript',
      code: stubborn('const kept = []; for (;;) kept.push({ at: kept.length });'),
      ...HEAP_LIMIT,
    },
    {
      name: 'one array that doubles',
      language: 'javascript',
      code: stubborn('let kept = [1.5]; for (;;) kept = [...kept, ...kept];'),
      ...HEAP_LIMIT,
    },
    {
      name: 'a Map',
      language: 'javascript',
      code: stubborn('const kept = new Map(); for (;;) kept.set(kept.size, { at: kept.size });'),
      ...HEAP_LIMIT,
    },
    {
      name: 'strings',
      language: 'javascript',
      code: stubborn(
        "const kept = []; for (;;) kept.push(Buffer.alloc(100_000, String(kept.length)).toString('latin1'));",
      ),
      ...HEAP_LIMIT,
    },
    {
      name: 'closures in promises that never settle',
      language: 'javascript',
      code: stubborn(
        'const kept = []; for (;;) { const at = kept.length; kept.push(new Promise(() => at).then(() => at)); }',
      ),
      ...HEAP_LIMIT,
    },
    {
      name: 'a recursion without end, again and again',
      language: 'javascript',
      code: stubborn('const down = () => { try { down(); } finally { down(); } }; down();'),
      ...FORCED,
    },
    {
      name: 'recursions without end through native code',
      language: 'javascript',
      code: `
        console.log('ready');
        const caught = (call) => { try { call(); } catch (error) { return error instanceof RangeError; } };
        const compare = () => { [1, 2].sort(compare); };
        const replace = () => { 'a'.replace(/a/, replace); };
        const shown = { toJSON: () => JSON.stringify(shown) };
        const through = new Proxy({}, {}); Object.setPrototypeOf(through, Object.create(through));
        console.log([compare, replace, () => JSON.stringify(shown), () => through.a].map(caught).join());`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString().startsWith('ready\ntrue,true,true'),
    },
    {
      name: 'a quarter of a GiB of Buffers, kept in a loop',
      language: 'javascript',
      code: stubborn('for (;;);', 'const kept = Array.from({ length: 16 }, () => Buffer.alloc(2 ** 24, 1));'),
      ...FORCED,
    },
    {
      name: 'a quarter of a GiB of WebAssembly memory, kept in a loop',
      language: 'javascript',
      code: stubborn(
        'for (;;);',
        'const kept = new WebAssembly.Memory({ initial: 4096 }); new Uint8Array(kept.buffer).fill(1);',
      ),
      ...FORCED,
    },
    {
      name: 'a program that says its heap limit was hit',
      language: 'javascript',
      code: `
        console.log('ready');
        throw Object.assign(new Error('not at all'), { code: 'ERR_WORKER_OUT_OF_MEMORY' });`,
      ...BY_ITSELF,
      reasons: ['failed'],
    },
    {
      name: 'Buffers beyond its limit',
      language: 'javascript',
      code: stubborn('const kept = []; for (;;) kept.push(Buffer.alloc(2 ** 22, 1));'),
      ...MEMORY_LIMIT,
      neighbours: 'may be cell_lost',
    },
    {
      name: 'typed arrays beyond its limit',
      language: 'javascript',
      code: stubborn('const kept = []; for (;;) kept.push(new Float64Array(2 ** 19).fill(1.5));'),
      ...MEMORY_LIMIT,
      neighbours: 'may be cell_lost',
    },
    {
      name: 'one SharedArrayBuffer beyond its limit',
      language: 'javascript',
      code: stubborn('new Uint8Array(new SharedArrayBuffer(2 ** 28)).fill(1); for (;;);'),
      ...MEMORY_LIMIT,
      neighbours: 'may be cell_lost',
    },
    {
      name: 'WebAssembly memory beyond its limit',
      language: 'javascript',
      code: stubborn(
        'const { m } = instance.exports; for (;;) { m.grow(64); new Uint8Array(m.buffer).fill(1, -(2 ** 22)); }',
        `const instance = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from('${WASM_MEMORY}', 'hex')));`,
      ),
      ...MEMORY_LIMIT,
      neighbours: 'may be cell_lost',
    },
    {
      name: 'a bytearray beyond its limit',
      language: 'python',
      code: deaf('kept = []\nwhile True: kept.append(bytearray(b"x") * 2 ** 22)'),
      ...MEMORY_LIMIT,
    },
    {
      name: 'many small objects beyond its limit',
      language: 'python',
      code: deaf('kept = []\nwhile True: kept.append({len(kept): object()})'),
      ...MEMORY_LIMIT,
    },
    {
      name: 'children that are together beyond its limit',
      language: 'python',
      code: deaf(
        'for _ in range(8):\n    if os.fork() == 0:\n        kept = bytearray(b"x") * 2 ** 25\n        signal.pause()\nsignal.pause()',
      ),
      ...MEMORY_LIMIT,
    },
    {
      name: 'a quarter of a GiB of bytes, kept in a loop',
      language: 'python',
      code: deaf('while True: pass', 'kept = bytearray(b"x") * 2 ** 28'),
      ...FORCED,
    },
    {
      name: 'many small objects that refer to each other',
      language: 'python',
      code: deaf('while True: kept = [[kept]]', 'kept = [[] for _ in range(10 ** 6)]'),
      ...FORCED,
    },
    {
      name: 'a recursion without end',
      language: 'python',
      code: 'print("ready", flush=True)\ndef down(): down()\ndown()',
      ...BY_ITSELF,
      reasons: ['failed'],
      exitCode: 1,
    },
    {
      name: 'a recursion through native code, past the end of the stack',
      language: 'python',
      code: `
import sys
sys.setrecursionlimit(10 ** 9)
print("ready", flush=True)
def down(_): return sorted([1, 2], key=down)
down(0)`,
      ...BY_ITSELF,
      reasons: ['signaled'],
      exitCode: 139,
    },
  ],
};
