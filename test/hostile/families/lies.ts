import { SHARED } from '../../../workers/javascript/shared.ts';
import {
  ABOVE,
  BY_ITSELF,
  deaf,
  type Family,
  FORCED,
  GRACEFUL,
  type HostileGuest,
  PERHAPS_WITH_ITS_CELL,
  stubborn,
} from '../guest.ts';

/** Ends in good order when asked, whatever it has done before to what everybody uses. */
const STILL_HEARS: Pick<
  HostileGuest,
  'stop' | 'reasons' | 'rungs' | 'endsWithinMs' | 'neighbours' | 'exitCode' | 'stdout'
> = {
  ...GRACEFUL,
  exitCode: 3,
  stdout: (bytes) => bytes.toString() === 'ready\nbye\n',
};

/** Listens for SIGTERM, does `harm`, and only then says that it is ready. */
const after = (harm: string) => `
  const { exit, stdout } = process;
  process.on('SIGTERM', () => { stdout.write('bye\\n'); exit.call(process, 3); });
  setInterval(() => {}, 1000);
  ${harm}
  stdout.write('ready\\n');`;

/** Every port of the thread that a program can get hold of, in `ports`. */
const PORTS = `
  const { MessagePort } = require('node:worker_threads');
  const ports = new Set(process._getActiveHandles().filter((handle) => handle instanceof MessagePort));
  for (const name of ['ref', 'unref', 'on', 'postMessage']) {
    const original = MessagePort.prototype[name];
    MessagePort.prototype[name] = function (...args) { ports.add(this); return original.apply(this, args); };
  }
  process.stdin.resume(); process.stdin.ref();`;

const post = (messages: string) => `${PORTS}
  const forged = () => { for (const port of ports) for (const message of [${messages}]) port.postMessage(message); };`;

/** What its threads share with each other, and with its cell, in `shared`: it is to be had while a thread is made. */
const SHARES = `
  const { Worker, getEnvironmentData } = require('node:worker_threads');
  let shared = new Int32Array(28);
  const look = () => { shared = getEnvironmentData('elide.program')?.shared ?? shared; };
  new Worker('', { eval: true, workerData: { get look() { look(); } } });`;

/** The kernel's id of its thread is nowhere to be found by its cell. */
const HIDDEN_THREAD = `
  const { spawnSync } = require('node:child_process');
  ${SHARES}
  shared[${SHARED.threads}] = 0;`;

/** The sockets of this daemon's cells, found where the kernel lists them: a private directory is STATE/work/SESSION/EXECUTION/cwd. */
const SOCKETS = `
  const state = process.cwd().split('/work/')[0];
  const sockets = require('node:fs').readFileSync('/proc/net/unix', 'latin1').split('\\n')
    .map((line) => line.split(' ').at(-1)).filter((path) => path.startsWith(state + '/daemon/cells/'));`;

const GARBAGE = [
  "Buffer.from('GET / HTTP/1.1\\r\\n\\r\\n')",
  'Buffer.alloc(4096, 255)',
  'Buffer.from([0, 0, 0, 2, 255, 255])',
  'Buffer.from([0, 0, 1])',
].join(', ');

/** Opens every pipe of the process `pid` for writing. */
const PIPES_OF = `
def pipes_of(pid):
    for fd in os.listdir("/proc/%d/fd" % pid):
        path = "/proc/%d/fd/%s" % (pid, fd)
        try:
            if os.readlink(path).startswith("pipe:"): yield os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError: pass
def say(pid, data):
    for fd in pipes_of(pid):
        try: os.write(fd, data)
        except OSError: pass
`;

/** Opens the pipe on which its shepherd reports. */
const REPORT = 'report = os.open("/proc/%d/fd/3" % os.getppid(), os.O_WRONLY)';

/** Programs that change what others rely on, and programs that pretend to be somebody else. */
export const lies: Family = {
  family: 'lies',
  guests: [
    {
      name: 'Promise replaced',
      language: 'javascript',
      code: after(`
        for (const name of ['then', 'catch', 'finally']) Promise.prototype[name] = () => { throw new Error(name); };
        Promise.resolve = Promise.reject = Promise.all = Promise.withResolvers = () => {};
        globalThis.Promise = class { then() {} };`),
      ...STILL_HEARS,
    },
    {
      name: 'Date replaced',
      language: 'javascript',
      code: after(`
        Date.now = () => NaN; performance.now = () => -1; Date.prototype.getTime = () => 1e308;
        globalThis.Date = { now: () => 'never' };`),
      ...STILL_HEARS,
    },
    {
      name: 'a clock that jumps',
      language: 'javascript',
      code: after('let at = 0; Date.now = () => [Infinity, -1e300, 0, 1e300][at++ % 4];'),
      ...STILL_HEARS,
    },
    {
      name: 'a clock that throws',
      language: 'javascript',
      code: after("Date.now = () => { throw new Error('no time'); };"),
      ...STILL_HEARS,
    },
    {
      name: 'everything of process replaced',
      language: 'javascript',
      code: `
        setInterval(() => {}, 1000);
        const { stdout } = process;
        for (const name of Object.getOwnPropertyNames(process)) {
          try { if (typeof process[name] === 'function') process[name] = () => {}; } catch {}
        }
        for (const name of ['emit', 'on', 'listenerCount']) require('node:events').prototype[name] ??= () => 0;
        stdout.write('ready\\n');`,
      ...GRACEFUL,
    },
    {
      name: 'Array.prototype replaced',
      language: 'javascript',
      code: after(`
        const no = () => { throw new Error('no arrays'); };
        for (const name of Reflect.ownKeys(Array.prototype)) {
          if (name !== 'constructor' && name !== 'length') Array.prototype[name] = no;
        }`),
      // Node's own message events need arrays that work: a handler in a thread is not reached.
      ...GRACEFUL,
      reasons: ['cancelled', 'failed'],
      rungs: [undefined, 'graceful'],
    },
    {
      name: 'setters and getters in Object.prototype',
      language: 'javascript',
      code: after(`
        for (const name of ['type', 'name', 'value', 'get', 'set', 'exitCode', 'signal', 'message', 'code', 'count', '0', '1', 'fd']) {
          Object.defineProperty(Object.prototype, name, {
            __proto__: null, configurable: true, get() { throw new Error(name); }, set() { throw new Error(name); },
          });
        }`),
      ...STILL_HEARS,
    },
    {
      name: 'values in Object.prototype',
      language: 'javascript',
      code: after(`
        Object.assign(Object.prototype, { type: 'started', exitCode: 0, signal: 'SIGHUP', end: true, bytes: [], offset: 7 });`),
      ...STILL_HEARS,
    },
    {
      name: 'Function.prototype replaced',
      language: 'javascript',
      code: `
        const { stdout } = process;
        setInterval(() => {}, 1000);
        process.on('SIGTERM', () => { stdout.write('bye\\n'); process.exit(3); });
        const no = () => { throw new Error('no calls'); };
        for (const name of ['call', 'apply', 'bind']) Function.prototype[name] = no;
        stdout.write('ready\\n');`,
      ...STILL_HEARS,
    },
    {
      name: 'Map, Set, JSON, Reflect, Atomics and typed arrays replaced',
      language: 'javascript',
      code: after(`
        const no = () => { throw new Error('no'); };
        for (const owner of [Map.prototype, Set.prototype, WeakMap.prototype, JSON, Reflect, Atomics, Object.getPrototypeOf(Int32Array.prototype)]) {
          for (const name of Reflect.ownKeys?.(owner) ?? Object.keys(owner)) {
            if (name !== 'constructor' && name !== 'ownKeys') try { Object.defineProperty(owner, name, { value: no }); } catch {}
          }
        }
        for (const name of ['Map', 'Set', 'JSON', 'Reflect', 'Atomics', 'Int32Array', 'Float64Array', 'Uint8Array']) globalThis[name] = undefined;`),
      ...STILL_HEARS,
      // Node's own writes to a file look at the length of a buffer: it ends by an error that it cannot even write.
      reasons: ['failed'],
      rungs: [undefined],
      exitCode: 1,
      stdout: () => true,
    },
    {
      name: 'EventEmitter, MessagePort and streams replaced',
      language: 'javascript',
      code: `
        const { EventEmitter } = require('node:events');
        const { MessagePort } = require('node:worker_threads');
        require('node:fs').writeSync(1, 'ready\\n');
        const no = () => { throw new Error('no'); };
        const { Writable, Readable } = require('node:stream');
        for (const { prototype } of [EventEmitter, MessagePort, EventTarget, Writable, Readable]) {
          for (const name of Object.getOwnPropertyNames(prototype)) try { prototype[name] = no; } catch {}
        }
        for (;;);`,
      ...GRACEFUL,
    },
    {
      name: 'child processes under a replaced Atomics',
      language: 'javascript',
      code: `
        process.on('SIGTERM', () => {});
        const { spawn } = require('node:child_process');
        const no = () => 0;
        for (const name of Object.getOwnPropertyNames(Atomics)) Atomics[name] = no;
        spawn('sleep', [process.env.MARK], { detached: true, stdio: 'ignore' }).once('spawn', () => console.log('ready'));
        setInterval(() => {}, 1000);`,
      ...FORCED,
    },
    {
      name: 'forged messages on every port it finds',
      language: 'javascript',
      code: stubborn(
        'forged(); setInterval(forged, 20);',
        post(
          "'warm', 0, 'x', [], {}, { type: 'started' }, { type: 'nonsense' }, { type: 'taken', count: 1e9 }, { taskId: 1, result: 1, error: null }, { ready: true }",
        ),
      ),
      ...FORCED,
      alone: true,
      inProcess: false,
    },
    {
      name: 'forged messages on its channel to the cell',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        `forge(); setInterval(forge, 20);`,
        `const { writeSync } = require('node:fs');
        const figures = { userSeconds: 0, systemSeconds: 0, residentBytes: 0, dropped: 0 };
        const messages = [{ type: 'warm' }, { type: 'started', ...figures }, { type: 'end', ...figures }, { type: 'output', bits: 2, dropped: 0 }];
        for (const pid of [process.ppid, process.pid, 1, 0, -1, NaN, 2 ** 40]) messages.push({ type: 'child', pid });
        const lines = [...messages.map((message) => JSON.stringify(message)), 'null', '[]', '7', '{', '\\0\\xff', 'x'.repeat(1e5)];
        const forge = () => { for (const line of lines) try { writeSync(3, line + '\\n'); } catch {} };`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'figures forged that are none',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        `for (const forged of [0.5, -0.5, -1, 1e30, 1e308, 2 ** 53 - 1, '1', null, [1], {}]) for (const message of messages) {
          for (const name of Object.keys(message)) if (name !== 'type') writeSync(3, JSON.stringify({ ...message, [name]: forged }) + '\\n');
        }
        for (;;);`,
        `const { writeSync } = require('node:fs');
        const used = { userSeconds: 0, systemSeconds: 0, residentBytes: 0 };
        const messages = [{ type: 'output', bits: 3, dropped: 0 }, { type: 'child', pid: 0 }, { type: 'end', ...used, dropped: 0 }];`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'more and more children told of on its channel to the cell',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        'for (;;) try { writeSync(3, lines); } catch {}',
        `const { writeSync } = require('node:fs');
        const lines = [process.ppid, process.pid, 1].map((pid) => JSON.stringify({ type: 'child', pid }) + '\\n').join('').repeat(800);`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'the cells of its daemon told of as its children on its channel to the cell',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        `forge(); setInterval(forge, 1);`,
        `const { readFileSync, readdirSync, writeSync } = require('node:fs');
        const parent = /^PPid:\\t(\\d+)/m.exec(readFileSync('/proc/' + process.ppid + '/status', 'latin1'))[1];
        const children = () => readdirSync('/proc/' + parent + '/task')
          .flatMap((thread) => readFileSync('/proc/' + parent + '/task/' + thread + '/children', 'latin1').match(/\\d+/g) ?? []);
        const forge = () => { for (const pid of children()) try { writeSync(3, '{"type":"child","pid":' + pid + '}\\n'); } catch {} };`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'children that are all different told of on its channel to the cell',
      language: 'javascript',
      isolation: 'process',
      code: stubborn(
        'for (;;) try { writeSync(3, lines); } catch {}',
        `const { writeSync } = require('node:fs');
        const lines = Array.from({ length: 9_000 }, (_, at) => JSON.stringify({ type: 'child', pid: 2 + at }) + '\\n').join('');`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'the figures it shares with its cell, forged',
      language: 'javascript',
      code: stubborn(
        'figures.fill(2n ** 63n - 1n); for (;;);',
        `${SHARES}
        const figures = new BigInt64Array(shared.buffer, shared.buffer.byteLength - 12 * 8);`,
      ),
      ...FORCED,
    },
    {
      name: 'its CPU time hidden in the memory it shares with its cell',
      language: 'javascript',
      code: `
        ${SHARES}
        console.log('ready');
        shared[${SHARED.threads}] = 0;
        for (;;);`,
      ...FORCED,
      stop: { by: 'itself' },
      reasons: ['timed_out'],
      rungs: ['graceful', 'forced'],
      worksMs: 1_000,
      limits: { cpuTimeLimitMs: 500 },
      snippet: { graceMs: 0 },
      inProcess: false,
    },
    {
      name: 'a child that it waits for hidden in the memory it shares with its cell',
      language: 'javascript',
      code: stubborn("spawnSync('sleep', [process.env.MARK]);", HIDDEN_THREAD),
      ...FORCED,
      inProcess: false,
    },
    {
      name: 'the memory of a child that it waits for hidden in the memory it shares with its cell',
      language: 'javascript',
      code: stubborn(
        "spawnSync('python3', ['-c', held]);",
        `
        ${HIDDEN_THREAD}
        const held = 'held = bytearray(300 * 2 ** 20)\\nfor at in range(0, len(held), 4096): held[at] = 1\\nwhile True: pass';`,
      ),
      ...FORCED,
      stop: { by: 'itself' },
      reasons: ['memory_exceeded'],
      worksMs: 2_000,
      limits: { memoryLimitMb: 128 },
      snippet: { graceMs: 0 },
      inProcess: false,
    },
    {
      name: 'counts nested too deep to be read, posted on every port it finds',
      language: 'javascript',
      code: `
        process.on('SIGTERM', () => {});
        ${post('...nests')}
        const nested = (depth) => { let nest = []; while (depth-- > 0) nest = [nest]; return nest; };
        const nests = Array.from({ length: 40 }, (_, at) => ({ type: 'taken', count: nested(250 * at) }));
        // By then it waits for input, on one of them.
        setImmediate(() => { forged(); console.log('ready'); });
        setInterval(() => {}, 1000);`,
      ...FORCED,
      snippet: { stdin: true },
      alone: true,
      inProcess: false,
    },
    {
      name: "an error that pretends to be V8's",
      language: 'javascript',
      code: `
        console.log('ready');
        throw { code: 'ERR_WORKER_OUT_OF_MEMORY', message: { length: 1 } };`,
      ...BY_ITSELF,
      reasons: ['failed'],
      exitCode: 1,
    },
    {
      name: 'nothing at all, posted on every port it finds',
      language: 'javascript',
      code: stubborn('forged(); setInterval(forged, 20);', post('null, undefined')),
      ...FORCED,
      alone: true,
      inProcess: false,
    },
    {
      name: 'a storm of messages on every port it finds',
      language: 'javascript',
      code: stubborn('for (;;) forged();', post("{ type: 'nonsense' }, 'x'")),
      ...PERHAPS_WITH_ITS_CELL,
      inProcess: false,
    },
    {
      name: 'a storm on a BroadcastChannel',
      language: 'javascript',
      code: stubborn(
        "const channel = new BroadcastChannel('elide'); for (;;) channel.postMessage({ type: 'exited' });",
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'the memory it shares with its cell, found and overwritten',
      language: 'javascript',
      code: stubborn(
        // Nothing but zeros: its cell takes numbers there for processes to kill.
        'for (;;) shared.fill(0);',
        SHARES,
      ),
      ...PERHAPS_WITH_ITS_CELL,
      rungs: ['graceful', 'forced', 'cell'],
    },
    {
      name: 'its cell noted as its child',
      language: 'javascript',
      code: stubborn(
        'for (;;);',
        `${SHARES}
        shared.fill(process.pid, ${SHARED.closing});`,
      ),
      ...FORCED,
      rungs: ['forced', 'cell'],
      neighbours: 'may be cell_lost',
    },
    {
      name: 'process.send and IPC',
      language: 'javascript',
      code: `
        console.log('ready');
        for (const message of [null, { type: 'exited' }, 'x']) { try { process.send?.(message); } catch {} }
        try { process.disconnect?.(); } catch {}`,
      ...BY_ITSELF,
    },
    {
      name: 'every descriptor from 3 to 1000 closed',
      language: 'javascript',
      code: stubborn(
        "const fs = require('node:fs'); for (let fd = 3; fd <= 1000; fd += 1) try { fs.closeSync(fd); } catch {}\nfor (;;);",
      ),
      ...FORCED,
      reasons: ['cancelled', 'cell_lost'],
      rungs: [undefined, 'graceful', 'forced', 'cell'],
      neighbours: 'may be cell_lost',
      // It may be in there too.
      stdout: () => true,
      // Node itself falls over that.
      inProcess: { reasons: ['cancelled', 'signaled'] },
    },
    {
      name: 'garbage on every descriptor from 3 to 1000',
      language: 'javascript',
      code: stubborn(
        'for (let fd = 3; fd <= 1000; fd += 1) for (const bytes of garbage) try { fs.writeSync(fd, bytes); } catch {}\nfor (;;);',
        `const fs = require('node:fs'); const garbage = [${GARBAGE}];`,
      ),
      ...FORCED,
      reasons: ['cancelled', 'cell_lost'],
      rungs: [undefined, 'graceful', 'forced', 'cell'],
      neighbours: 'may be cell_lost',
      // It may be in there too.
      stdout: () => true,
      // Node itself falls over that.
      inProcess: { reasons: ['cancelled', 'signaled'] },
    },
    {
      name: 'its own marks overwritten with what is no number',
      language: 'javascript',
      code: `
        console.log('ready');
        const fs = require('node:fs');
        const { ino } = fs.fstatSync(1);
        const target = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
        const own = fs.readdirSync('/proc/self/fd').map(target)
          .find((path) => path.endsWith('/stdout') && fs.statSync(path).ino === ino);
        const marks = new Float64Array([NaN, NaN, NaN, 0, 7, -1, NaN, 1, NaN, 1e300, 2, Infinity]);
        fs.appendFileSync(own.replace(/stdout$/, 'marks'), Buffer.from(marks.buffer));
        console.log('still here');`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString() === 'ready\nstill here\n',
    },
    {
      name: 'descriptors opened until there are none',
      language: 'javascript',
      code: stubborn(
        "const fs = require('node:fs'); for (;;) try { fs.openSync('/dev/null'); } catch { break; }\nfor (;;);",
      ),
      ...FORCED,
      neighbours: 'may be cell_lost',
    },
    {
      name: 'garbage on the sockets of all cells',
      language: 'javascript',
      code: `${SOCKETS}
        const net = require('node:net');
        console.log('ready');
        for (const path of sockets) for (const bytes of [${GARBAGE}]) {
          const socket = net.connect(path).on('error', () => {});
          socket.write(bytes);
          setTimeout(() => socket.destroy(), 50);
        }
        console.log('found', sockets.length > 0);`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString() === 'ready\nfound true\n',
    },
    {
      name: 'connections to the sockets of all cells, held open',
      language: 'javascript',
      code: `${SOCKETS}
        process.on('SIGTERM', () => {});
        const net = require('node:net');
        for (const path of sockets) for (let at = 0; at < 20; at += 1) net.connect(path).on('error', () => {}).write('\\0\\0');
        setTimeout(() => console.log('ready'), 20);
        setInterval(() => {}, 1000);`,
      ...FORCED,
    },
    {
      name: 'its working directory removed',
      language: 'javascript',
      code: `
        console.log('ready');
        require('node:fs').rmSync(process.cwd(), { recursive: true });
        try { require('node:fs').writeFileSync('made', 'x'); } catch (error) { console.log(error.code); }`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString() === 'ready\nENOENT\n',
    },
    {
      name: 'the working directories of its whole session removed',
      language: 'javascript',
      code: stubborn(
        "require('node:fs').rmSync(require('node:path').resolve('../..'), { recursive: true, force: true }); for (;;);",
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'its working directory replaced by a link to the output of all',
      language: 'javascript',
      code: `
        console.log('ready');
        const fs = require('node:fs');
        const cwd = process.cwd();
        const output = cwd.split('/work/')[0] + '/daemon/output';
        fs.symlinkSync(output, '../link');
        fs.rmSync(cwd, { recursive: true });
        fs.symlinkSync(output, cwd);
        console.log(fs.readdirSync(cwd).length > 0);`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString() === 'ready\ntrue\n',
    },
    {
      name: 'os._exit, print and open replaced',
      language: 'python',
      code: `
import builtins, io, os, sys, threading, atexit, gc
print("ready", flush=True)
def no(*_, **__): raise BaseException("no")
for owner in (os, io, threading, atexit, gc):
    for name in dir(owner):
        if callable(getattr(owner, name)): setattr(owner, name, no)
for name in ("print", "open", "len", "isinstance", "issubclass", "getattr"): setattr(builtins, name, no)
sys.stdout = sys.stderr = None`,
      ...BY_ITSELF,
      reasons: ['completed', 'failed'],
    },
    {
      name: 'os._exit replaced by a loop',
      language: 'python',
      code: deaf('def stay(*_):\n    while True: pass\nos._exit = stay'),
      ...FORCED,
    },
    {
      name: 'a file that never has written everything',
      language: 'python',
      code: deaf(
        'import io\nclass Never(io.RawIOBase):\n    def flush(self):\n        while True: pass\nnever = Never()',
      ),
      ...FORCED,
    },
    {
      name: 'every module forgotten',
      language: 'python',
      code: 'import sys\nprint("ready", flush=True)\nsys.modules.clear()\nsys.path.clear()\nsys.meta_path.clear()',
      ...BY_ITSELF,
      reasons: ['completed', 'failed'],
    },
    {
      name: 'every descriptor closed',
      language: 'python',
      code: deaf('os.closerange(0, 1000)\nwhile True: pass'),
      ...FORCED,
    },
    {
      name: 'garbage on the descriptors 0 to 10',
      language: 'python',
      code: deaf(
        'for fd in range(11):\n    try: os.write(fd, b"\\xff\\0{}\\n")\n    except OSError: pass\nwhile True: pass',
      ),
      ...FORCED,
    },
    {
      name: 'garbage on every pipe of its shepherd',
      language: 'python',
      code: deaf('say(os.getppid(), b"\\xff\\0 no JSON\\n[]\\nnull\\n7\\n{}\\n")\nwhile True: pass', PIPES_OF),
      ...FORCED,
      reasons: ['cancelled', 'signaled', 'failed'],
      rungs: [undefined, 'graceful', 'forced'],
      alone: true,
    },
    {
      name: 'its own end forged with its shepherd',
      language: 'python',
      code: deaf(
        'say(os.getppid(), b\'{"exited": 0, "user": 0, "system": 0, "maxrss": 0, "blocks": 0}\\n\')\nwhile True: pass',
        PIPES_OF,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'its own end forged with figures beyond all numbers, and its shepherd killed',
      language: 'python',
      code: `import os, signal
${REPORT}
print("ready", flush=True)
os.write(report, b'{"exited": 0, "user": 0, "system": 0, "maxrss": 1e300, "blocks": 0}\\n')
os.close(report)
os.kill(os.getppid(), signal.SIGKILL)
os._exit(0)`,
      ...BY_ITSELF,
      reasons: ['completed', 'failed', 'signaled'],
    },
    {
      name: 'a flood of reports beside those of its shepherd',
      language: 'python',
      code: deaf('while True: os.write(report, b"1\\n" * 32768)', REPORT),
      ...FORCED,
    },
    {
      name: 'a report that never ends beside those of its shepherd',
      language: 'python',
      code: deaf('while True: os.write(report, b"x" * 65536)', REPORT),
      ...FORCED,
    },
    {
      name: 'another process forged as its own',
      language: 'python',
      // The process it names is its own child: whoever believes it kills that, and waits for nothing else.
      code: deaf(
        'say(os.getppid(), b\'{"started": %d, "shepherd": %d}\\n\' % (child, child))\nwhile True: pass',
        `${PIPES_OF}\nchild = os.fork()\nif child == 0:\n    while True: signal.pause()`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'garbage on every pipe of its zygote',
      language: 'python',
      code: deaf('for _ in range(3): say(zygote, b"\\xff\\0 no JSON\\n")\nwhile True: pass', PIPES_OF + ABOVE),
      ...FORCED,
      alone: true,
    },
    {
      name: 'garbage on the sockets of all cells',
      language: 'python',
      code: `
import os, socket
state = os.getcwd().split("/work/")[0]
paths = [line.split()[-1] for line in open("/proc/net/unix") if state + "/daemon/cells/" in line]
print("ready", flush=True)
for path in paths:
    for data in (b"GET / HTTP/1.1\\r\\n\\r\\n", b"\\xff" * 4096, b"\\0\\0\\0\\2\\xff\\xff", b"\\0\\0\\1"):
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(0.2)
                connection.connect(path)
                connection.sendall(data)
        except OSError: pass
print("found", len(paths) > 0)`,
      ...BY_ITSELF,
      stdout: (bytes) => bytes.toString() === 'ready\nfound True\n',
    },
    {
      name: 'its working directory removed',
      language: 'python',
      code: deaf('import shutil\nshutil.rmtree(os.getcwd())\nwhile True: pass'),
      ...FORCED,
    },
    {
      name: 'a working directory too deep for any path',
      language: 'python',
      code: deaf(
        'while True: pass',
        'home = os.getcwd()\nfor _ in range(100):\n    os.mkdir("d" * 200)\n    os.chdir("d" * 200)\nos.chdir(home)',
      ),
      ...FORCED,
    },
    {
      name: 'more and more files in its working directory',
      language: 'python',
      code: deaf(
        'from itertools import count\nfor at in count(): os.close(os.open("f%d" % at, os.O_CREAT | os.O_WRONLY))',
      ),
      ...FORCED,
    },
  ],
};
