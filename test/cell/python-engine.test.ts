import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test, vi } from 'vitest';
import type { Guest, GuestExit, StartRequest } from '../../src/cell/engine.ts';
import { PythonEngine } from '../../src/cell/python-engine.ts';
import type { PythonGuest } from '../../src/cell/python-guest.ts';
import { soonest } from '../support/in-time.ts';

const zygotePath = fileURLToPath(new URL('../../workers/zygote.py', import.meta.url));
const root = mkdtempSync(join(tmpdir(), 'python-engine-'));
const engine = new PythonEngine({ python: 'python3', zygotePath });
const MB = 2 ** 20;

afterAll(async () => {
  await engine.close();
  rmSync(root, { recursive: true, force: true });
});

interface Run {
  guest: Guest;
  dir: string;
  mainPath: string;
  started: Promise<number>;
  exited: Promise<GuestExit>;
  isOver(): boolean;
  stdout(): string;
  stderr(): string;
}

let count = 0;

function start(code: string, overrides: Partial<StartRequest> = {}, on: PythonEngine = engine): Run {
  const dir = join(root, `e${String(++count).padStart(6, '0')}`);
  for (const name of ['work', 'scratch', 'tmp', 'out']) mkdirSync(join(dir, name), { recursive: true });
  const started = Promise.withResolvers<number>();
  const exited = Promise.withResolvers<GuestExit>();
  let over = false;
  const request: StartRequest = {
    executionKey: `e${count}`,
    language: 'python',
    code,
    args: [],
    env: {},
    cwd: join(dir, 'work'),
    mainPath: join(dir, 'main.py'),
    writeMain: true,
    tmpDir: join(dir, 'tmp'),
    outputDir: join(dir, 'out'),
    stdin: false,
    limits: { outputKill: false },
    signalTree: false,
    ...overrides,
  };
  const guest = on.start(request, {
    started: ({ pid }) => started.resolve(pid ?? 0),
    outputExceeded: () => {},
    exited: (exit) => {
      over = true;
      exited.resolve(exit);
    },
  });
  return {
    guest,
    dir,
    mainPath: request.mainPath,
    started: started.promise,
    exited: exited.promise,
    isOver: () => over,
    stdout: () => readFileSync(join(dir, 'out', 'stdout'), 'utf8'),
    stderr: () => readFileSync(join(dir, 'out', 'stderr'), 'utf8'),
  };
}

async function until(what: string, condition: () => boolean, limitMs = 30_000): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`not within ${limitMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** True for a process that is neither gone nor a zombie. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

function parentOf(pid: number): number {
  return Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

/** None of a process that is gone. */
function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

/** Writes its pid to a file, and sleeps, in a session of its own whose parent is gone. */
const DAEMON = `
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid() if os.getpid() != os.getsid(0) else None
        with open('daemon.tmp', 'w') as file: file.write(str(os.getpid()))
        os.rename('daemon.tmp', 'daemon')
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists('daemon'): time.sleep(0.001)
print('ready')
`;

test('output, exit code and usage of a program that prints and ends', async () => {
  const run = start('print("hello")');

  expect(await run.exited).toMatchObject({ exitCode: 0, usage: { processes: 1 } });
  expect(run.stdout()).toBe('hello\n');
  expect(run.stderr()).toBe('');
  expect(await run.started).toBeGreaterThan(0);
});

test('a printed line is in the file while the program runs', async () => {
  const run = start('import time\nprint("live")\ntime.sleep(1000)');

  await until('the line', () => run.stdout() === 'live\n');

  expect(run.isOver()).toBe(false);
  run.guest.kill();
  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test('arguments, environment and directories are exactly those of the request', async () => {
  const env = { PATH: '/usr/bin:/bin', GREETING: 'grüß\ndich', LC_ALL: 'C' };
  const code = `
import sys, os, json, subprocess, tempfile, ctypes
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(json.dumps({'argv': sys.argv, 'env': dict(os.environ), 'cwd': os.getcwd(), 'path0': sys.path[0],
  'child': subprocess.run(['/usr/bin/env', '-0'], capture_output=True, text=True).stdout,
  'c': getenv(b'GREETING').decode(), 'coerced': getenv(b'LC_CTYPE'), 'tmp': tempfile.gettempdir(),
  'fds': sorted(os.listdir('/proc/self/fd')), 'leader': os.getpid() == os.getsid(0) == os.getpgid(0)}))`;
  const run = start(code, { args: ['a b', 'ü', '', '-x'], env });

  await run.exited;

  const seen = JSON.parse(run.stdout());
  expect(seen).toMatchObject({
    argv: [run.mainPath, 'a b', 'ü', '', '-x'],
    env,
    cwd: join(run.dir, 'work'),
    path0: run.dir,
    c: env.GREETING,
    coerced: null,
    tmp: join(run.dir, 'tmp'),
    leader: true,
  });
  expect(seen.env).toEqual(env);
  expect(seen.child.split('\0').filter(Boolean).sort()).toEqual(
    Object.entries(env)
      .map(([k, v]) => `${k}=${v}`)
      .sort(),
  );
  expect(seen.fds).toEqual(['0', '1', '2', '3']); // 3 is the listing itself
});

test('TMPDIR in the environment decides about temporary files', async () => {
  const run = start('import tempfile; print(tempfile.gettempdir())', { env: { TMPDIR: '/var/tmp' } });

  await run.exited;

  expect(run.stdout()).toBe('/var/tmp\n');
});

test('nothing of the environment of the engine is in a program', async () => {
  vi.stubEnv('OF_THE_ENGINE', 'a secret');
  const own = new PythonEngine({ python: 'python3', zygotePath });
  // What its process was given, whatever was taken out of it later.
  const run = start('print(open("/proc/self/environ").read())', {}, own);
  vi.unstubAllEnvs();

  expect(await run.exited).toMatchObject({ exitCode: 0 });

  expect(run.stdout()).not.toContain('OF_THE_ENGINE');
  await own.close();
});

test('PYTHONPATH in the environment is searched after the directory of the program', async () => {
  const library = join(root, 'library');
  mkdirSync(library);
  writeFileSync(join(library, 'greeting.py'), 'text = "hello"');
  writeFileSync(join(library, 'sibling.py'), 'text = "not this one"');
  mkdirSync(join(root, 'beside'));
  writeFileSync(join(root, 'beside', 'sibling.py'), 'text = "from beside"');

  const run = start('import greeting, sibling\nprint(greeting.text, sibling.text)', {
    mainPath: join(root, 'beside', 'main.py'),
    writeMain: false,
    env: { PYTHONPATH: `/nowhere/at/all:${library}` },
  });
  await run.exited;

  expect(run.stderr()).toBe('');
  expect(run.stdout()).toBe('hello from beside\n');
});

test('what a program imports is found where python3 itself finds it, imported ahead or not', async () => {
  const dir = mkdtempSync(join(root, 'beside-'));
  for (const name of ['statistics', 'uuid', 'urllib', 'library']) mkdirSync(join(dir, name));
  const names = ['queue', 'os', 'time', 'statistics/__init__', 'urllib/__init__', 'urllib/parse', 'library/json'];
  for (const name of names) writeFileSync(join(dir, `${name}.py`), 'mine = True');
  for (const name of ['uuid/data.py', 'string.txt', 'string.tar.gz']) writeFileSync(join(dir, name), '');
  const mainPath = join(dir, 'main.py');
  const code = `
import json, os, queue, statistics, string, subprocess, time, urllib.parse, uuid
for module in json, os, queue, statistics, string, subprocess, time, urllib, urllib.parse, uuid:
    print(module.__name__, getattr(module, '__file__', None), hasattr(module, 'mine'))`;
  writeFileSync(mainPath, code);
  const env = { PATH: process.env.PATH ?? '', PYTHONPATH: join(dir, 'library') };

  const run = start(code, { mainPath, writeMain: false, env });
  await run.exited;

  const real = spawnSync('python3', ['-B', mainPath], { env, encoding: 'utf8' });
  expect(run.stderr()).toBe(real.stderr);
  expect(run.stdout()).toBe(real.stdout);
  expect(run.stdout()).toContain(`queue ${join(dir, 'queue.py')} True`);
});

test('a program that is a link finds what lies beside the file it leads to', async () => {
  const dir = mkdtempSync(join(root, 'linked-'));
  for (const name of ['bin', 'real']) mkdirSync(join(dir, name));
  for (const name of ['bin', 'real']) writeFileSync(join(dir, name, 'sibling.py'), `where = '${name}'`);
  const code = 'import sys, sibling\nprint(sibling.where, sys.argv, __file__, sys.path[0])';
  const mainPath = join(dir, 'bin', 'main.py');
  writeFileSync(join(dir, 'real', 'program.py'), code);
  symlinkSync('../real/program.py', mainPath);

  const run = start(code, { mainPath, writeMain: false });
  await run.exited;

  expect(run.stderr()).toBe('');
  expect(run.stdout()).toBe(spawnSync('python3', ['-B', mainPath], { encoding: 'utf8' }).stdout);
  expect(run.stdout()).toContain('real');
});

test('Unicode in code, arguments and output', async () => {
  const run = start('# ☃\nimport sys\nπ = "🐍"\nprint(π, sys.argv[1])', { args: ['日本'] });

  await run.exited;

  expect(run.stdout()).toBe('🐍 日本\n');
});

test('code is text: what it says of its encoding, and a mark at its beginning, change nothing', async () => {
  const run = start('\ufeff# coding: latin-1\nprint(len("é"))');

  await run.exited;

  expect(run.stderr()).toBe('');
  expect(run.stdout()).toBe('1\n');
});

/** An object that says when it is freed, and what a program may do beside. */
const NOTED = `import os, signal, sys, threading
class Noted:
    def __del__(self): os.write(2, b"freed\\n")
class Tee:
    def __init__(self, stream): self.stream = stream
    def write(self, text): self.stream.write(text)
    def flush(self): self.stream.flush()
def stuck(): threading.Event().wait()
a = Noted()
`;

/** Programs whose end has to look like that under `python3 FILE`: exit code, standard output and standard error. */
const LIKE_CPYTHON: [string, string][] = [
  ['sys.exit with a number', 'import sys; sys.exit(3)'],
  ['sys.exit with a large number', 'import sys; sys.exit(259)'],
  ['sys.exit with a negative number', 'import sys; sys.exit(-1)'],
  ['sys.exit with a number that fits no integer', 'import sys; sys.exit(2 ** 70)'],
  ['sys.exit with a string', 'import sys; print("out"); sys.exit("tschüß")'],
  ['sys.exit with None', 'import sys; sys.exit(None)'],
  ['an exception', 'def f():\n    return 1 / 0\n\nf()'],
  ['a chained exception', 'try:\n    {}["a"]\nexcept KeyError as e:\n    raise ValueError("b") from e'],
  ['an exception in handling another', 'try:\n    int("x")\nexcept ValueError:\n    open("/nowhere/at/all")'],
  ['an exception with a suggestion', 'import collections\ncollections.OrderedDic'],
  ['a syntax error', 'x = 1\ny = (1,\nz = 3\n'],
  ['an indentation error', 'if True:\nprint(1)'],
  ['a syntax error inside a string', 'eval("1 +")'],
  ['an exception group or its absence', 'raise ExceptionGroup("g", [ValueError(1), TypeError(2)])'],
  [
    'what is kept of an exception',
    'import atexit, sys\natexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno))\n1 / 0',
  ],
  ['an interrupt nobody handles', 'raise KeyboardInterrupt'],
  [
    'a hook for exceptions',
    'import sys\nsys.excepthook = lambda k, e, t: print("hook", k.__name__, e, t.tb_lineno)\n1 / 0',
  ],
  ['a hook that fails', 'import sys\ndef hook(k, e, t):\n    raise ValueError("hook")\nsys.excepthook = hook\n1 / 0'],
  ['a hook that exits', 'import sys\nsys.excepthook = lambda *a: sys.exit(7)\n1 / 0'],
  [
    'functions for the exit',
    'import atexit\natexit.register(print, "first")\natexit.register(print, "second")\nprint("end")',
  ],
  ['an exception in such a function', 'import atexit\natexit.register(lambda: 1 / 0)'],
  [
    'an exception after threads',
    'import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()\n1 / 0',
  ],
  [
    'a daemon thread',
    'import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nprint(1)',
  ],
  [
    'an exception in a thread',
    'import threading\nt = threading.Thread(target=lambda: 1 / 0, name="t")\nt.start()\nt.join()',
  ],
  ['objects with a finalizer', 'class A:\n    def __del__(self): print("del", B)\nB = 2\na = A()\nc = A(); c.me = c'],
  ['an object with a finalizer, and a handler of signals', `${NOTED}signal.signal(15, lambda *a: sys.exit(0))`],
  ['an object with a finalizer, and other standard streams', `${NOTED}sys.stdout = sys.stderr = Tee(sys.stdout)`],
  [
    'an object with a finalizer, held by a standard stream',
    `${NOTED}sys.stdout = Tee(sys.stdout); sys.stdout.a = a; del a`,
  ],
  ['an object with a finalizer, and a class in a cache', `${NOTED}import typing\ntyping.List[Noted]`],
  ['an object with a finalizer, and a daemon thread', `${NOTED}threading.Thread(target=stuck, daemon=True).start()`],
  [
    'an object with a finalizer, in an imported module',
    `${NOTED}del a\nimport types\nm = sys.modules["m"] = types.ModuleType("m")\nm.a, m.f = Noted(), types.FunctionType(stuck.__code__, vars(m))`,
  ],
  [
    'a handler of signals at the end',
    'import os, signal\nsignal.signal(15, print)\nclass A:\n    def __del__(self): os.kill(os.getpid(), 15)\na = A()',
  ],
  ['a program that removes itself', 'import sys\ndel sys.modules["__main__"]\nsys.modules = {}\nprint(1)'],
  ['a file left open', 'import os\nf = open(os.dup(2), "w")\nf.write("left")'],
  ['a file left open in a module', 'import json, os\njson.f = open(os.dup(2), "w")\njson.f.write("left")'],
  [
    'a daemon thread that writes to a full pipe, and files left open',
    'import json, os, select, threading, time\njson.before = open(os.dup(2), "w")\njson.before.write("before ")\n' +
      'stuck = open(os.pipe()[1], "wb")\nthreading.Thread(target=stuck.write, args=(bytes(10 ** 6),), daemon=True).start()\n' +
      'while select.select([], [stuck], [], 0)[1]: time.sleep(0.001)\n' +
      'json.after = open(os.dup(1), "w")\njson.after.write("after")\nprint("end")',
  ],
  ['output without a newline', 'import sys\nsys.stdout.write("a")\nsys.stderr.write("b")'],
  ['a closed standard output', 'import sys\nsys.stdout.close()'],
  ['a closed descriptor 1', 'import os, sys\nsys.stdout.write("x")\nos.close(1)'],
  ['no standard output', 'import sys\nsys.stdout = None\nprint(1)'],
  ['output through C', 'import ctypes\nctypes.CDLL(None).printf(b"from c\\n")'],
  [
    'the module __main__',
    'import sys\nm = sys.modules["__main__"]\nprint(sorted(vars(m)), __name__, __spec__, __package__, __doc__, m.__dict__ is globals(), type(__builtins__))',
  ],
  ['how it was started', 'import sys\nprint(getattr(sys, "orig_argv", sys.argv)[1:], sys.flags, sys.path)'],
  [
    'standard streams',
    'import sys\nfor s in sys.stdin, sys.stdout, sys.stderr: print(s, s.errors, s.newlines, s.buffer.raw.mode, s is getattr(sys, "__%s__" % s.name[1:-1]))',
  ],
  ['the source of a function', 'import inspect\ndef f():\n    return 1  # here\nprint(inspect.getsource(f))'],
  [
    'pickled classes',
    'import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nprint(pickle.loads(pickle.dumps(P(1))))',
  ],
  [
    'processes of a pool',
    'import multiprocessing\ndef f(x): return x * x\nif __name__ == "__main__":\n    with multiprocessing.get_context("fork").Pool(2) as p: print(p.map(f, range(5)))',
  ],
  [
    'a child that falls off the end',
    'import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint("parent" if pid else "child")',
  ],
  [
    'signals and their masks',
    'import signal\nprint([(n, signal.getsignal(n)) for n in (1, 2, 13, 15, 17, 25)], signal.pthread_sigmask(0, []), signal.set_wakeup_fd(-1))',
  ],
  ['the collector', 'import gc\nprint(gc.isenabled(), gc.get_threshold())'],
  [
    'asyncio',
    'import asyncio\nasync def main():\n    p = await asyncio.create_subprocess_exec("/bin/echo", "x", stdout=-1)\n    print(await p.communicate(), p.returncode)\nasyncio.run(main())',
  ],
  ['abort', 'import os\nos.abort()'],
];

test.each(LIKE_CPYTHON)('ends as under python3 itself: %s', (_, code) => endsAsUnderPython(code));

/** The same of programs whose environment steers the interpreter. */
const STEERED: [string, Record<string, string>, string][] = [
  [
    'a time zone',
    { TZ: 'JST-9' },
    'import time, datetime\nprint(time.tzname, time.timezone, time.localtime(0), datetime.datetime.fromtimestamp(0))',
  ],
  [
    'output without a buffer',
    { PYTHONUNBUFFERED: '1' },
    'import os, sys\nfor s in sys.stdout, sys.stderr: print(s.buffer, s.write_through, s.line_buffering)\nprint("a", end="")\nos._exit(0)',
  ],
  [
    'an encoding',
    { PYTHONIOENCODING: 'latin-1' },
    'import sys\nfor s in sys.stdin, sys.stdout, sys.stderr: print(s.encoding, s.errors, "ü")\nprint("π")',
  ],
  [
    'an encoding and what to do with the rest',
    { PYTHONIOENCODING: 'ascii:replace' },
    'import sys\nfor s in sys.stdin, sys.stdout, sys.stderr: print(s.encoding, s.errors)\nprint("ü")\nsys.exit("ü")',
  ],
  [
    'only what to do with the rest',
    { PYTHONIOENCODING: ':backslashreplace' },
    'import sys\nfor s in sys.stdin, sys.stdout, sys.stderr: print(s.encoding, s.errors)\nprint("\\ud800")',
  ],
  [
    'no bytecode, and where to put it',
    { PYTHONDONTWRITEBYTECODE: 'x', PYTHONPYCACHEPREFIX: '/nowhere/at/all' },
    'import sys\nprint(sys.dont_write_bytecode, sys.pycache_prefix)',
  ],
  ['a handler of faults', { PYTHONFAULTHANDLER: '1' }, 'import faulthandler\nprint(faulthandler.is_enabled())'],
  [
    'warnings',
    { PYTHONWARNINGS: 'ignore,,error::DeprecationWarning,nonsense' },
    'import sys, warnings\nprint(sys.warnoptions, warnings.filters)\nwarnings.warn("a")\nwarnings.warn("b", DeprecationWarning)',
  ],
  [
    'variables that are empty',
    {
      PYTHONUNBUFFERED: '',
      PYTHONIOENCODING: '',
      PYTHONDONTWRITEBYTECODE: '',
      PYTHONFAULTHANDLER: '',
      PYTHONWARNINGS: '',
    },
    'import faulthandler, sys\nprint(sys.stdout.write_through, sys.stdout.encoding, sys.dont_write_bytecode, faulthandler.is_enabled(), sys.warnoptions)',
  ],
];

test.each(STEERED)('is steered by its environment as python3 itself: %s', (_, env, code) =>
  endsAsUnderPython(code, env),
);

async function endsAsUnderPython(code: string, variables: Record<string, string> = {}): Promise<void> {
  const env = { PATH: process.env.PATH ?? '', ...variables };
  const run = start(code, { env });
  const exit = await run.exited;

  const real = spawnSync('python3', [run.mainPath], {
    cwd: join(run.dir, 'work'),
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
  });
  const plain = (text: string) => text.replaceAll(/0x[0-9a-f]{6,}/g, '0x');
  expect(plain(run.stderr())).toBe(plain(real.stderr));
  expect(plain(run.stdout())).toBe(plain(real.stdout));
  expect(exit.signal ?? null).toBe(real.signal);
  if (real.status !== null) expect(exit.exitCode).toBe(real.status);
}

test('an encoding that there is not is told as a failed start', async () => {
  const run = start('print(1)', { env: { PYTHONIOENCODING: 'no-such' } });

  expect(await run.exited).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('no-such') });
});

test('the clock of log records begins with the program', async () => {
  await start('pass').exited;
  const beforeMs = Date.now();

  const run = start('import logging\nr = logging.makeLogRecord({})\nprint(r.created * 1000 - r.relativeCreated)');
  await run.exited;

  expect(Number(run.stdout())).toBeGreaterThanOrEqual(beforeMs - 1);
});

test('a traceback shows source lines although the program lies in no file', async () => {
  const run = start('def f():\n    raise ValueError("x")\n\nf()', { writeMain: false });

  expect(await run.exited).toMatchObject({ exitCode: 1 });

  expect(existsSync(run.mainPath)).toBe(false);
  const path = run.mainPath;
  expect(run.stderr().replaceAll(/^ +[~^]+\n/gm, '')).toBe(
    `Traceback (most recent call last):\n  File "${path}", line 4, in <module>\n    f()\n` +
      `  File "${path}", line 2, in f\n    raise ValueError("x")\nValueError: x\n`,
  );
});

test('code that lies in no file has the module __main__ of such code', async () => {
  const code = 'print([(n, n in globals()) for n in ("__file__", "__cached__", "__loader__", "__builtins__")])';
  const run = start(code, { writeMain: false });

  expect(await run.exited).toMatchObject({ exitCode: 0 });

  expect(run.stdout()).toBe(
    "[('__file__', False), ('__cached__', False), ('__loader__', True), ('__builtins__', True)]\n",
  );
});

test('a signal reaches the handler the program installed', async () => {
  const run = start(
    'import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint("ready")\ntime.sleep(1000)',
  );
  await until('the handler', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGTERM');

  expect(await run.exited).toMatchObject({ exitCode: 3 });
});

test('SIGTERM and SIGINT end a program that does not handle them', async () => {
  const terminated = start('import time\nprint("ready")\ntime.sleep(1000)');
  const interrupted = start('import time\nprint("ready")\ntime.sleep(1000)');
  await until('both', () => terminated.stdout() + interrupted.stdout() === 'ready\nready\n');

  terminated.guest.signal('SIGTERM');
  interrupted.guest.signal('SIGINT');

  expect(await terminated.exited).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
  expect(await interrupted.exited).toMatchObject({ exitCode: 130, signal: 'SIGINT' });
  expect(interrupted.stderr()).toMatch(/KeyboardInterrupt\n$/);
  expect(interrupted.stderr()).not.toContain('zygote');
});

test('a signal is for the program alone, which decides about its children', async () => {
  const code = `
import signal, subprocess, sys
script = 'trap "exit 7" TERM; echo ready; read line; exit 5'
child = subprocess.Popen(['sh', '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
def stop(*_):
    child.communicate(b'\\n')
    sys.exit(child.returncode)
signal.signal(15, stop)
print('ready')
while True: signal.pause()`;
  const run = start(code, { env: { PATH: '/usr/bin:/bin' } });
  await until('the child', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGTERM');

  expect(await run.exited).toMatchObject({ exitCode: 5 });
});

test('a program that catches everything is killed', async () => {
  const run = start(
    'print("ready")\nwhile True:\n    try:\n        while True: pass\n    except BaseException: continue',
  );
  await until('the loop', () => run.stdout() === 'ready\n');

  run.guest.signal('SIGINT');
  run.guest.kill();

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test('kill and signal before the start are not lost', async () => {
  const killed = start('import time; time.sleep(1000)');
  killed.guest.kill();
  const terminated = start('import time; time.sleep(1000)');
  terminated.guest.signal('SIGTERM');
  const cold = new PythonEngine({ python: 'python3', zygotePath });
  const killedCold = start('import time; time.sleep(1000)', {}, cold);
  killedCold.guest.kill();

  expect(await killed.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  expect(await terminated.exited).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
  expect(await killedCold.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  await cold.close();
});

test('an interrupt before the first line ends a program, and shows nothing of what started it', async () => {
  // The start is told before all code has arrived, and so much does not arrive at once.
  const run = start(`#${'x'.repeat(8 * MB)}\nprint("never")`);
  run.guest.signal('SIGINT');

  expect(await run.exited).toMatchObject({ exitCode: 130, signal: 'SIGINT' });

  expect(run.stderr()).toBe('KeyboardInterrupt\n');
  expect(run.stdout()).toBe('');
});

test('methods after the end do no harm', async () => {
  const run = start('pass', { stdin: true });
  await run.exited;

  run.guest.signal('SIGTERM');
  run.guest.kill();

  await run.guest.write(Buffer.from('x'), true);
});

test.each(['ends', 'is killed'])('a daemon of its own session dies when the program %s', async (how) => {
  const run = start(`${DAEMON}${how === 'ends' ? '' : 'time.sleep(1000)'}`);
  if (how === 'is killed') {
    await until('the daemon', () => run.stdout() === 'ready\n');
    run.guest.kill();
  }

  await run.exited;

  const daemon = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));
  expect(daemon).toBeGreaterThan(1);
  expect(existsSync(`/proc/${daemon}`)).toBe(false);
});

/** Leaves shared memory, of which it tells the name, and a child that holds what its keeper waits for. */
const SHARING = `
import os, signal, sys, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=1000)
if os.fork() == 0: time.sleep(1000)
print(memory._name)
`;

test.each<[string, string, (guest: Guest) => void]>([
  ['ends', '', () => {}],
  ['is stopped', 'time.sleep(1000)', (guest) => guest.signal('SIGTERM')],
  ['stops itself', 'signal.signal(15, lambda *_: sys.exit(0))\nos.kill(os.getpid(), 15)', () => {}],
])('shared memory that a program leaves is gone when it %s', async (_, rest, stop) => {
  const run = start(SHARING + rest);
  await until('the memory', () => run.stdout().endsWith('\n'));

  stop(run.guest);
  await run.exited;

  const path = join('/dev/shm', run.stdout().trim());
  const isThere = existsSync(path);
  rmSync(path, { force: true });
  expect(isThere).toBe(false);
});

/** A child that looks as if it kept the program's shared memory, and lives on. */
const KEEPER = `
import os, signal, time
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.setsid()
    os.close(1), os.close(2)
    for number in (2, 15): signal.signal(number, signal.SIG_IGN)
    os.write(writer, b'.')
    time.sleep(1000)
os.read(reader, 1)
print(child)
`;

test('a child that only looks as if it kept shared memory delays the end of its program a little, and ends with it', async () => {
  const run = start(`${KEEPER}os._exit(3)`);

  expect(await run.exited).toMatchObject({ exitCode: 3 });

  expect(isAlive(Number(run.stdout()))).toBe(false);
});

test('a program that is killed while its end waits for what keeps shared memory ends at once', async () => {
  const tookMs = await soonest(1_000, 5, async () => {
    const run = start(`${KEEPER}os._exit(3)`);
    const pid = await run.started;
    await until('the end of its process', () => !isAlive(pid));

    const killedAtMs = performance.now();
    run.guest.kill();
    expect(await run.exited).toMatchObject({ exitCode: 3 });

    expect(isAlive(Number(run.stdout()))).toBe(false);
    return performance.now() - killedAtMs;
  });

  expect(tookMs).toBeLessThan(1_000);
});

test('processes that fork and end for ever, in sessions of their own, do not survive', async () => {
  const code = `
import os, time
os.close(1), os.close(2)
for chain in range(8):
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
            os.setsid()
            open('chain-%d' % chain, 'w').close()
time.sleep(1000)
`;
  const run = start(code);
  await until('all chains', () =>
    [0, 1, 2, 3, 4, 5, 6, 7].every((i) => existsSync(join(run.dir, 'work', `chain-${i}`))),
  );
  // One look may come while all of them are between two.
  await until('a chain is seen', () => descendants(run) > 1);

  run.guest.kill();
  await run.exited;

  expect(descendants(run)).toBe(0);
});

test('daemons that ended do not stay as zombies while the program runs', async () => {
  const code = `
import os, time
for i in range(20):
    if os.fork() == 0:
        if os.fork() == 0: os.setsid()
        os._exit(0)
    os.wait()
print('ready')
time.sleep(1000)`;
  const run = start(code);
  const shepherd = parentOf(await run.started);
  await until('the daemons', () => run.stdout() === 'ready\n');

  await until(
    'the reaping',
    () => readFileSync(`/proc/${shepherd}/task/${shepherd}/children`, 'utf8').trim().split(' ').length === 1,
  );
  run.guest.kill();
  await run.exited;
});

test('a program that ends just when one of its daemons is reaped keeps its status', () => {
  const script = `
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location('zygote', sys.argv[1])
zygote = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zygote)
reader, writer = os.pipe()
guest = os.fork()
if guest == 0:
    os.read(reader, 1)
    os._exit(7)
daemon = os.fork()
if daemon == 0:
    os._exit(0)
waitid = os.waitid
waitid(os.P_PID, daemon, os.WEXITED | os.WNOWAIT)
def waitid_and_then(*which):
    seen = waitid(*which)
    if seen and seen.si_pid == daemon:
        os.write(writer, b'.')
        waitid(os.P_PID, guest, os.WEXITED | os.WNOWAIT)
    return seen
os.waitid = waitid_and_then
print(zygote.Usage().reap_all_but(guest), os.waitstatus_to_exitcode(os.waitpid(guest, 0)[1]))`;

  const result = spawnSync('python3', ['-B', '-c', script, zygotePath], { encoding: 'utf8' });

  expect(result.stderr).toBe('');
  expect(result.stdout).toBe('True 7\n');
});

/** How many processes work in the directory of `run`. */
function descendants(run: Run): number {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readlinkSync(`/proc/${pid}/cwd`) === join(run.dir, 'work');
    } catch {
      return false;
    }
  }).length;
}

test('standard input arrives, and its end', async () => {
  const run = start('import sys\nfor line in sys.stdin: print("got", line, end="")\nprint("end")', { stdin: true });

  await run.guest.write(Buffer.from('one\n'), false);
  await run.guest.write(Buffer.from('two\n'), true);

  await run.exited;
  expect(run.stdout()).toBe('got one\ngot two\nend\n');
});

test('without standard input it is at its end', async () => {
  const run = start('import sys, os\nprint(repr(sys.stdin.read()), os.readlink("/proc/self/fd/0"))');

  await run.exited;

  expect(run.stdout()).toBe("'' /dev/null\n");
});

test('input waits for a program that does not read, and is let go at its end', async () => {
  const run = start('import time\nprint("ready")\ntime.sleep(1000)', { stdin: true });
  await until('the start', () => run.stdout() === 'ready\n');
  let taken = false;
  const write = run.guest.write(Buffer.alloc(MB), false).then(() => {
    taken = true;
  });
  // A turn of the loop is enough for a pipe that has room.
  await new Promise((resolve) => setImmediate(resolve));
  expect(taken).toBe(false);

  run.guest.kill();

  await run.exited;
  await write;
});

test('input that a program has closed is let go while it runs', async () => {
  const run = start('import os, time\nos.close(0)\nprint("ready")\ntime.sleep(1000)', { stdin: true });
  await until('the start', () => run.stdout() === 'ready\n');

  await run.guest.write(Buffer.alloc(MB), false);

  expect(run.isOver()).toBe(false);
  run.guest.kill();
  await run.exited;
});

test('large input is passed on whole', async () => {
  const run = start('import sys\nprint(len(sys.stdin.buffer.read()))', { stdin: true });

  await run.guest.write(Buffer.alloc(5 * MB), true);

  await run.exited;
  expect(run.stdout()).toBe(`${5 * MB}\n`);
});

test('20,000 lines written before a kill are kept', async () => {
  const run = start('import os\nfor i in range(20000): print(i)\nos.kill(os.getpid(), 9)');

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });

  expect(run.stdout().split('\n')).toHaveLength(20_001);
});

test('streams that somebody else still holds do not keep a program from its end, and what is in them is kept', async () => {
  const run = start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")', { stdin: true });
  const pid = await run.started;
  await until('the start', () => run.stdout() === 'ready\n');
  const held = [1, 2].map((fd) => openSync(`/proc/${pid}/fd/${fd}`, 'w'));

  await run.guest.write(Buffer.alloc(0), true);
  while (!(run.guest as PythonGuest).isOver) await new Promise((resolve) => setImmediate(resolve));
  // From here on only the limit ends it. Until after that this process is too busy to look at the streams.
  for (const fd of held) writeSync(fd, 'late\n');
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);

  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\nlate\n');
  expect(run.stderr()).toBe('late\n');
  for (const fd of held) closeSync(fd);
});

test('a running program outlives the zygote, and the next start has a new one', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const run = start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")', { stdin: true }, own);
  const zygote = parentOf(parentOf(await run.started));
  await until('the start', () => run.stdout() === 'ready\n');

  process.kill(zygote, 'SIGKILL');
  const many = Array.from({ length: 10 }, () => start('print("next")', {}, own));

  expect((await Promise.all(many.map((next) => next.exited))).map((exit) => exit.exitCode)).toEqual(Array(10).fill(0));
  expect(run.isOver()).toBe(false);
  await run.guest.write(Buffer.alloc(0), true);
  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\n');
  expect(isAlive(zygote)).toBe(false);
  await own.close();
});

test('a program can neither hold up what comes after it by stopping the zygote, nor by stopping what waits for its start', async () => {
  const stopped = new PythonEngine({ python: 'python3', zygotePath });
  const spoiled = new PythonEngine({ python: 'python3', zygotePath });
  const sleep = 'import time; time.sleep(1000)';
  const zygote = parentOf(parentOf(await start(sleep, {}, stopped).started));
  const shepherd = parentOf(await start(sleep, {}, spoiled).started);
  const spares = () =>
    childrenOf(parentOf(shepherd))
      .filter((pid) => pid !== shepherd)
      .flatMap(childrenOf);
  await until('two spare guests', () => spares().length === 2);

  process.kill(zygote, 'SIGSTOP');
  for (const spare of spares()) process.kill(spare, 'SIGSTOP');
  const many = Array.from({ length: 5 }, () => start('print("next")', {}, stopped));
  const victim = start('print("next")', {}, spoiled);

  expect(await victim.exited).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('10 s') });
  expect((await Promise.all(many.map((next) => next.exited))).map((exit) => exit.exitCode)).toEqual(Array(5).fill(0));
  await Promise.all([stopped.close(), spoiled.close()]);
}, 120_000);

test('a running program outlives all of the process group that the zygote leads', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const run = start('import sys\nprint("ready")\nsys.stdin.read()\nprint("done")', { stdin: true }, own);
  const zygote = parentOf(parentOf(await run.started));
  await until('the start', () => run.stdout() === 'ready\n');

  process.kill(-zygote, 'SIGKILL');
  await until('the end of the zygote', () => !isAlive(zygote));

  await run.guest.write(Buffer.alloc(0), true);
  expect(await run.exited).toMatchObject({ exitCode: 0 });
  expect(run.stdout()).toBe('ready\ndone\n');
  await own.close();
});

test('a program that kills its shepherd dies with all it started', async () => {
  const run = start(
    `${DAEMON}\nimport ctypes\nctypes.CDLL(None).prctl(1, 0)\nos.kill(os.getppid(), 9)\ntime.sleep(1000)`,
  );
  const pid = await run.started;

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });

  const daemon = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));
  expect([isAlive(pid), isAlive(daemon)]).toEqual([false, false]);
});

test('the end of a program that killed its shepherd is told as soon as all it started is gone, not before', async () => {
  // It holds no stream of the program, and what it has takes a while to free.
  const code = `
import os, time
if os.fork() == 0:
    os.setsid()
    os.close(1), os.close(2)
    kept = b'x' * (300 << 20)
    with open('daemon.tmp', 'w') as file: file.write(str(os.getpid()))
    os.rename('daemon.tmp', 'daemon')
    time.sleep(1000)
while not os.path.exists('daemon'): time.sleep(0.001)
print('ready')
time.sleep(1000)`;
  // After a second it would be told without the zygote's word.
  const tookMs = await soonest(1_000, 5, async () => {
    const run = start(code);
    const shepherd = parentOf(await run.started);
    await until('the daemon', () => run.stdout() === 'ready\n');
    const pid = Number(readFileSync(join(run.dir, 'work', 'daemon'), 'utf8'));

    const killedAtMs = performance.now();
    process.kill(shepherd, 'SIGKILL');
    await run.exited;

    expect(isAlive(pid)).toBe(false);
    return performance.now() - killedAtMs;
  });

  expect(tookMs).toBeLessThan(1_000);
});

test('a program that kills its shepherd after the zygote, or stops its shepherd, ends', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const stopped = start('import os, time\nos.kill(os.getppid(), 19)\nprint("ready")\ntime.sleep(1000)', {}, own);
  await until('the stop', () => stopped.stdout() === 'ready\n');
  stopped.guest.kill();
  expect(await stopped.exited).toMatchObject({ exitCode: 137 });

  const code = `
import os, time
zygote = open('/proc/%d/stat' % os.getppid()).read().rpartition(')')[2].split()[1]
os.kill(int(zygote), 9)
os.kill(os.getppid(), 9)
time.sleep(1000)`;
  const orphan = start(code, {}, own);

  expect(await orphan.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
  await own.close();
});

test("a program that kills its shepherd's word in the bud, or drowns it, ends as it ended", async () => {
  const code = (harm: string) => `
import os, sys
report = os.open('/proc/%d/fd/3' % os.getppid(), os.O_WRONLY)
${harm}
sys.exit(3)`;
  const flood = (text: string) => code(`for _ in range(1000): os.write(report, ${text} * (65536 // len(${text})))`);
  const before = process.cpuUsage();

  const runs = [code(`os.write(report, b'{"exited": ')`), flood("b'x'"), flood("b'1\\n'")].map((each) => start(each));
  const exits = await Promise.all(runs.map((run) => run.exited));

  expect(exits.map((exit) => exit.exitCode)).toEqual([3, 3, 3]);
  const { user, system } = process.cpuUsage(before);
  expect((user + system) / 1_000_000).toBeLessThan(8);
});

test('a spare guest that was killed is not handed out', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const shepherd = parentOf(await start('import time; time.sleep(1000)', {}, own).started);
  const zygote = parentOf(shepherd);
  const spares = () =>
    childrenOf(zygote)
      .filter((pid) => pid !== shepherd)
      .flatMap(childrenOf);
  await until('two spare guests', () => spares().length === 2);

  const killed = spares();
  for (const pid of killed) process.kill(pid, 'SIGKILL');
  await until('two others', () => spares().filter((pid) => !killed.includes(pid)).length === 2);

  expect(await start('pass', {}, own).exited).toMatchObject({ exitCode: 0 });
  await own.close();
});

test('a guest that was killed before it started, unseen, is told as a failed start', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const shepherd = parentOf(await start('import time; time.sleep(1000)', {}, own).started);
  const zygote = parentOf(shepherd);
  const shepherds = () => childrenOf(zygote).filter((pid) => pid !== shepherd);
  await until('two spare guests', () => shepherds().flatMap(childrenOf).length === 2);
  process.kill(zygote, 'SIGSTOP');
  for (const pid of shepherds().flatMap(childrenOf)) process.kill(pid, 'SIGKILL');
  await until('the end of both', () => !shepherds().some(isAlive));

  const exit = await start('pass', {}, own).exited;
  await own.close();

  expect(exit).toMatchObject({ cause: 'start_failed', message: expect.stringContaining('before it started') });
});

/** An engine in a process of its own, which runs `code` and, once that has started, `onStarted` with its `pid`. */
async function startHost(code: string, onStarted = '') {
  const dir = join(root, `host-${++count}`);
  for (const name of ['work', 'tmp', 'out']) mkdirSync(join(dir, name), { recursive: true });
  const request = {
    executionKey: 'e',
    language: 'python',
    code,
    args: [],
    env: {},
    cwd: join(dir, 'work'),
    mainPath: join(dir, 'main.py'),
    writeMain: true,
    tmpDir: join(dir, 'tmp'),
    outputDir: join(dir, 'out'),
    stdin: true,
    limits: { outputKill: false },
    signalTree: false,
  };
  const script = `
    import { readFileSync, writeSync } from 'node:fs';
    import { PythonEngine } from ${JSON.stringify(new URL('../../src/cell/python-engine.ts', import.meta.url).href)};
    const engine = new PythonEngine(${JSON.stringify({ python: 'python3', zygotePath })});
    const request = JSON.parse(readFileSync(${JSON.stringify(join(dir, 'request'))}));
    const parentOf = (pid) => Number(readFileSync('/proc/' + pid + '/stat', 'latin1').split(') ').at(-1).split(' ')[1]);
    const started = ({ pid }) => {
      writeSync(1, String(pid));
      ${onStarted}
    };
    engine.start(request, { started, exited() {} });`;
  writeFileSync(join(dir, 'request'), JSON.stringify(request));
  const host = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const guest = Number(await new Promise((resolve) => host.stdout.once('data', (data) => resolve(String(data)))));
  const shepherd = parentOf(guest);
  return {
    host,
    dir,
    guest,
    shepherd,
    zygote: parentOf(shepherd),
    stdout: () => readFileSync(join(dir, 'out', 'stdout'), 'utf8'),
  };
}

test('nothing is left when the process of the engine is killed', async () => {
  const { host, dir, guest, shepherd, zygote, stdout } = await startHost(`${DAEMON}\ntime.sleep(1000)`);
  await until('the daemon', () => stdout() === 'ready\n');
  const daemon = Number(readFileSync(join(dir, 'work', 'daemon'), 'utf8'));
  const all = [guest, daemon, shepherd, zygote, ...childrenOf(zygote)];
  expect(all.map(isAlive)).toEqual(all.map(() => true));

  host.kill('SIGKILL');

  await until('the end of all', () => !all.some(isAlive));
});

test('nothing is left when the process of the engine is killed after a program has stopped its shepherd', async () => {
  const { host, guest, shepherd, zygote, stdout } = await startHost(
    'import os, time\nos.kill(os.getppid(), 19)\nprint("ready")\ntime.sleep(1000)',
  );
  await until('the stop', () => stdout() === 'ready\n');

  host.kill('SIGKILL');

  await until('the end of all', () => ![guest, shepherd, zygote].some(isAlive));
});

test('a program ends with its shepherd even when nobody is left who could kill it', async () => {
  const { host, guest, shepherd, zygote, stdout } = await startHost('import time\nprint("ready")\ntime.sleep(1000)');
  await until('the start', () => stdout() === 'ready\n');

  // Stopped first, so that none of them does anything about the end of another.
  for (const pid of [shepherd, zygote]) process.kill(pid, 'SIGSTOP');
  for (const pid of [host.pid as number, zygote, shepherd]) process.kill(pid, 'SIGKILL');

  await until('the end of the program', () => !isAlive(guest));
});

test('code of which the end never came, because the engine was killed, is not run', async () => {
  const { dir, guest, shepherd, zygote } = await startHost(
    `open('ran', 'w').close()\n#${'x'.repeat(64 * MB)}`,
    // Those who would kill it must not be quicker than it is.
    `for (const parent of [parentOf(pid), parentOf(parentOf(pid))]) process.kill(parent, 'SIGSTOP');
    process.kill(process.pid, 'SIGKILL');`,
  );

  await until('the end of the program', () => !isAlive(guest));
  process.kill(zygote, 'SIGCONT');
  await until('the end of all', () => ![shepherd, zygote].some(isAlive));

  expect(existsSync(join(dir, 'work', 'ran'))).toBe(false);
});

test('an engine that is to be warm has programs forked before the first is started', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const before = childrenOf(process.pid);

  own.keepWarm(2);
  const spares = () => {
    const zygote = childrenOf(process.pid).find((pid) => !before.includes(pid));
    // A `python3` that is a script, which looks for the real one first, has children too.
    const isPython = zygote !== undefined && readlinkSync(`/proc/${zygote}/exe`).includes('python');
    return isPython ? childrenOf(zygote).flatMap(childrenOf) : [];
  };
  await until('two spare guests', () => spares().length === 2);
  const warm = spares();
  const run = start('pass', {}, own);

  expect(warm).toContain(await run.started);
  await own.close();
});

test('close ends every program and the zygote', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const runs = Array.from({ length: 3 }, () => start('import time; time.sleep(1000)', {}, own));
  const pids = await Promise.all(runs.map((run) => run.started));
  const zygote = parentOf(parentOf(pids[0] as number));

  await own.close();

  expect([...pids, zygote].map(isAlive)).toEqual([false, false, false, false]);
  expect(await start('pass', {}, own).exited).toMatchObject({ cause: 'start_failed' });
});

test('64 MB of code are run', async () => {
  const run = start(`#${'x'.repeat(64 * MB)}\nprint("done")`);
  const other = start('print("meanwhile")');

  await other.exited;
  expect(await run.exited).toMatchObject({ exitCode: 0 });

  expect(run.stdout()).toBe('done\n');
}, 120_000);

test('a program that is killed while it is sent 64 MB of code', async () => {
  const run = start(`#${'x'.repeat(64 * MB)}\nimport time; time.sleep(1000)`, { writeMain: false });
  await run.started;

  run.guest.kill();

  expect(await run.exited).toMatchObject({ exitCode: 137, signal: 'SIGKILL' });
});

test('100 programs at once', async () => {
  const runs = Array.from({ length: 100 }, (_, i) => start(`import sys\nprint(sys.argv[1] * 3)`, { args: [`${i};`] }));

  await Promise.all(runs.map((run) => run.exited));

  expect(runs.map((run) => run.stdout())).toEqual(runs.map((_, i) => `${`${i};`.repeat(3)}\n`));
}, 120_000);

test('nothing of one program is in the memory of the next', async () => {
  const secret = 'sesam-oeffne-dich';
  const holder = start('import time; print("ready"); time.sleep(1000)', { env: { SECRET: secret } });
  await until('the holder', () => holder.stdout() === 'ready\n');
  const search = `
import sys
needle = sys.argv[1].encode()[::-1]
found = 0
for line in open('/proc/self/maps'):
    parts = line.split()
    if parts[1].startswith('rw'):
        low, high = (int(x, 16) for x in parts[0].split('-'))
        with open('/proc/self/mem', 'rb') as mem:
            mem.seek(low)
            found += mem.read(high - low).count(needle)
print(found)`;
  const finder = start(search, { args: [[...secret].reverse().join('')] });
  await finder.exited;
  holder.guest.kill();
  await holder.exited;

  // The needle itself, made in the finder, and copies of it that its search made.
  const control = start(search, { args: [[...'voellig-anders-17'].reverse().join('')] });
  await control.exited;
  expect(Number(finder.stdout())).toBe(Number(control.stdout()));
});

test('programs of two engines do not share a hash seed', async () => {
  const own = new PythonEngine({ python: 'python3', zygotePath });
  const code = 'print(hash("text"))';
  const runs = [start(code), start(code, {}, own)];

  await Promise.all(runs.map((run) => run.exited));

  expect(runs[0]?.stdout()).not.toBe(runs[1]?.stdout());
  await own.close();
});

test('random numbers differ between programs', async () => {
  const runs = [start('import random; print(random.random())'), start('import random; print(random.random())')];

  await Promise.all(runs.map((run) => run.exited));

  expect(runs[0]?.stdout()).not.toBe(runs[1]?.stdout());
});

test('the usage of a program is its own and that of all below it, also of what it leaves behind', async () => {
  const code = `
import os, time
def burn(seconds):
    while time.process_time() < seconds: sum(range(10000))
if os.fork() == 0:
    kept = b'x' * (100 << 20)
    burn(0.3)
    os._exit(0)
os.wait()
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    burn(0.2)
    os.write(writer, b'.')
    time.sleep(1000)
os.read(reader, 1)
burn(0.1)`;
  const run = start(code);

  const { usage } = await run.exited;

  const { userSeconds = 0, systemSeconds = 0, peakMemoryBytes = 0 } = usage ?? {};
  expect(userSeconds + systemSeconds).toBeGreaterThan(0.58);
  expect(userSeconds + systemSeconds).toBeLessThan(1.2);
  expect(userSeconds).toBeGreaterThan(systemSeconds * 2);
  expect(peakMemoryBytes).toBeGreaterThan(100 * MB);
  expect(peakMemoryBytes).toBeLessThan(110 * MB);
});

test('a directory that vanished is told as a failed start', async () => {
  const run = start('print(1)', { cwd: '/nowhere/at/all' });

  const exit = await run.exited;

  expect(exit).toMatchObject({ cause: 'start_failed' });
  expect(exit.message).toContain('/nowhere/at/all');
});

test('an output file that cannot be written neither stops the program nor the engine', async () => {
  const dir = join(root, 'full');
  mkdirSync(dir);
  for (const name of ['stderr', 'marks']) writeFileSync(join(dir, name), '');
  execFileSync('ln', ['-s', '/dev/full', join(dir, 'stdout')]);
  const run = start('import sys\nfor i in range(100000): print(i)\nsys.exit(4)', { outputDir: dir });

  const exit = await run.exited;

  expect(exit).toMatchObject({ exitCode: 4 });
  expect(exit.message).toContain('ENOSPC');
});

test('of rotated files only what could not be written is missing', async () => {
  const dir = mkdtempSync(join(root, 'rotated-'));
  const outputFiles = { stdout: join(dir, 'out'), stderr: join(dir, 'err'), maxFiles: 10, maxFileBytes: 1024n };
  const code =
    'import os, sys\nsys.stdin.readline()\nos.write(1, b"x" * 1500)\nsys.stdin.readline()\nprint("there is room")';
  const run = start(code, { outputFiles, stdin: true });
  await run.started;
  // For a moment there is no room for a second file.
  mkdirSync(join(dir, 'out.1'));
  await run.guest.write(Buffer.from('\n'), false);
  await until('the first file is full', () => statSync(join(dir, 'out.0')).size === 1024);
  rmdirSync(join(dir, 'out.1'));

  await run.guest.write(Buffer.from('\n'), true);
  const exit = await run.exited;

  expect(readFileSync(join(dir, 'out.1'), 'utf8')).toBe('there is room\n');
  expect(exit).toMatchObject({ exitCode: 0, message: expect.stringContaining('output could not be written') });
});

test('an interpreter that is missing, too old or broken is named with what to do', async () => {
  const old = join(root, 'old-python');
  writeFileSync(old, '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  for (const python of ['python-that-is-nowhere', old]) {
    const own = new PythonEngine({ python, zygotePath });
    const runs = [start('pass', {}, own), start('pass', {}, own)];

    for (const run of runs) {
      const exit = await run.exited;
      expect(exit).toMatchObject({ cause: 'start_failed' });
      expect(exit.message).toContain(`"${python}"`);
      expect(exit.message).toContain('Python 3.9');
    }
    await own.close();
  }
});
