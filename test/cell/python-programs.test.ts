import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { Host, MB, OPTIONS } from './python-harness.ts';

const host = new Host();
const start = host.start.bind(host);

afterAll(() => host[Symbol.asyncDispose]());

test('output, exit code and usage of a program that prints and ends', async () => {
  const run = start('print("hello")');

  expect(await run.exited).toMatchObject({ exitCode: 0, usage: { processes: 1 } });
  expect(run.stdout()).toBe('hello\n');
  expect(run.stderr()).toBe('');
  expect(await run.started).toBeGreaterThan(0);
});

test('a printed line is in the file while the program runs', async () => {
  const run = start('import time\nprint("live")\ntime.sleep(1000)');

  await eventually('the line', () => run.stdout() === 'live\n');

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
  await using own = new Host();
  // What its process was given, whatever was taken out of it later.
  const run = own.start('print(open("/proc/self/environ").read())');
  vi.unstubAllEnvs();

  expect(await run.exited).toMatchObject({ exitCode: 0 });

  expect(run.stdout()).not.toContain('OF_THE_ENGINE');
});

test('PYTHONPATH in the environment is searched after the directory of the program', async () => {
  const library = join(host.root, 'library');
  mkdirSync(library);
  writeFileSync(join(library, 'greeting.py'), 'text = "hello"');
  writeFileSync(join(library, 'sibling.py'), 'text = "not this one"');
  mkdirSync(join(host.root, 'beside'));
  writeFileSync(join(host.root, 'beside', 'sibling.py'), 'text = "from beside"');

  const run = start('import greeting, sibling\nprint(greeting.text, sibling.text)', {
    mainPath: join(host.root, 'beside', 'main.py'),
    writeMain: false,
    env: { PYTHONPATH: `/nowhere/at/all:${library}` },
  });
  await run.exited;

  expect(run.stderr()).toBe('');
  expect(run.stdout()).toBe('hello from beside\n');
});

test('what a program imports is found where python3 itself finds it, imported ahead or not', async () => {
  const dir = mkdtempSync(join(host.root, 'beside-'));
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
  const dir = mkdtempSync(join(host.root, 'linked-'));
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
  // What is said of it changes with the version, and has no part in it.
  [
    'sys.exit with a number that fits no integer',
    'import os, sys; os.dup2(os.open(os.devnull, 1), 2); sys.exit(2 ** 70)',
  ],
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
  const run = start(code, { env, stdin: false });
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
  await eventually('the holder', () => holder.stdout() === 'ready\n');
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
  await using own = new Host();
  const code = 'print(hash("text"))';
  const runs = [start(code), own.start(code)];

  await Promise.all(runs.map((run) => run.exited));

  expect(runs[0]?.stdout()).not.toBe(runs[1]?.stdout());
});

test('a program is as after a fork of its own: its first thread, its locks and its random numbers are its own', async () => {
  const code = `
import logging, os, random, threading
main = threading.main_thread()
print(main.native_id == os.getpid(), main is threading.current_thread(), threading.active_count())
thread = threading.Thread(target=lambda: logging.warning('%s', threading.current_thread().native_id != os.getpid()))
thread.start()
thread.join()
print(random.random())
pid = os.fork()
if pid == 0:
    print(random.random(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)`;
  const runs = [start(code), start(code)];

  const ends = await Promise.all(runs.map((run) => run.exited));

  expect(ends.map(({ exitCode }) => exitCode)).toEqual([0, 0]);
  const lines = runs.map((run) => run.stdout().split('\n'));
  expect(lines.map(([threads]) => threads)).toEqual(Array(2).fill('True True 1'));
  expect(new Set(lines.flatMap(([, own, forked]) => [own, forked])).size).toBe(4);
  expect(runs.map((run) => run.stderr())).toEqual(Array(2).fill('WARNING:root:True\n'));
});

test('what is imported ahead asks for nothing to be done after a fork but what is done for it', () => {
  const code = `
import os, re, sys
found = set()
os.register_at_fork = lambda **hooks: 'after_in_child' in hooks and found.add(sys._getframe(1).f_globals['__name__'])
ahead = open(sys.argv[1]).read().partition('PRELOAD = (')[2].partition(')')[0]
for name in re.findall("'(.+?)'", ahead): __import__(name)
print(*sorted(found))`;

  const { stdout } = spawnSync('python3', ['-IS', '-c', code, OPTIONS.zygotePath], { encoding: 'utf8' });

  expect(stdout).toBe('logging random threading\n');
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
