import { ABOVE, BY_ITSELF, deaf, type Family, FORCED, PERHAPS_WITH_ITS_CELL, stubborn } from '../guest.ts';

const SPAWN = "const { execSync, fork, spawn } = require('node:child_process');\nconst { MARK } = process.env;\n";

/** `ready` comes when the child's own first word has come. */
const child = (script: string, options = '{ detached: true }') => `
  process.on('SIGTERM', () => {});
  ${SPAWN}
  const child = spawn('sh', ['-c', ${JSON.stringify(script)}], ${options});
  child.stdout.once('data', () => console.log('ready'));
  setInterval(() => {}, 1000);`;

/** A grandchild in a session of its own, whose parent has ended. */
const RUNAWAY = `
import subprocess
def run_away():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execvp("sleep", ["sleep", os.environ["MARK"]])
        os._exit(0)
    os.wait()
run_away()`;

/** To the kernel the first thread of this process is a zombie from then on, and the process lives in another one. */
const WITHOUT_FIRST_THREAD = `
import ctypes, os, threading, time
def live():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z": time.sleep(0.01)
    print("up", flush=True)
    time.sleep(1000)
os.setpgid(0, 0)
threading.Thread(target=live).start()
ctypes.CDLL(None).pthread_exit(None)`;

/** ptrace(2) */
const PTRACE = { attach: 16, seize: 0x4206 };

/** Python that traces `target` and never waits for it: nobody else sees its end then, until the tracer has ended. */
const tracer = (request: number, target: string, then = '') =>
  `import ctypes, os, time
ctypes.CDLL(None).ptrace(${request}, ${target}, None, None)
print("ready", flush=True)
${then}
time.sleep(1000)`;

/** Python whose child traces it, in a session of its own. */
const tracedByChild = (request: number, then?: string) => `
import os, signal
shepherd = os.getppid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
traced = os.getpid()
if os.fork() == 0:
    os.setsid()
    exec(${JSON.stringify(tracer(request, 'traced', then))})
while True: signal.pause()`;

/** Python whose last child traces all above it up to the first, which are in sessions of their own. */
const chainTracedByLast = (length: number) => `
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
chain = [os.getpid()]
while len(chain) < ${length}:
    if os.fork():
        while True: signal.pause()
    os.setsid()
    chain.append(os.getpid())
import ctypes
for traced in chain[:-1]: ctypes.CDLL(None).ptrace(${PTRACE.seize}, traced, None, None)
print("ready", flush=True)
while True: signal.pause()`;

/** Programs that make processes, and programs that end or stop those they live by. */
export const processes: Family = {
  family: 'processes',
  guests: [
    {
      name: 'a detached tree',
      language: 'javascript',
      code: child('trap "" TERM; (sleep $MARK & sleep $MARK & wait) & echo up; wait'),
      ...FORCED,
    },
    {
      name: 'a detached tree whose root ends: nobody is above it any more',
      language: 'javascript',
      code: child('setsid sh -c "echo up; sleep $MARK & wait" & exit 0'),
      ...FORCED,
      leaves: 'a JavaScript cell is no subreaper, and knows only its direct children',
    },
    {
      name: 'a child whose first thread has ended, in a process group of its own',
      language: 'javascript',
      code: child(`exec python3 -c '${WITHOUT_FIRST_THREAD}'`, '{}'),
      ...FORCED,
    },
    {
      name: 'a child that outlives the program and has its output',
      language: 'javascript',
      code: `${SPAWN}
        const child = spawn('sh', ['-c', 'trap "" TERM HUP; sleep $MARK & wait'], { stdio: 'inherit' });
        child.unref();
        child.once('spawn', () => console.log('ready'));`,
      ...BY_ITSELF,
    },
    {
      name: 'children one after another, each waited for',
      language: 'javascript',
      // The first says that it is ready: by then the thread waits for it.
      code: `${SPAWN} process.on('SIGTERM', () => {});
        for (;;) try { execSync('echo ready; sleep $MARK; true', { stdio: 'inherit' }); } catch {}`,
      ...FORCED,
    },
    {
      name: 'a hundred children',
      language: 'javascript',
      code: stubborn(
        'setInterval(() => {}, 1000);',
        `${SPAWN} for (let at = 0; at < 100; at += 1) spawn('sleep', [MARK], { stdio: 'ignore', detached: at % 2 === 0 });`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'children without end, each as soon as one has ended',
      language: 'javascript',
      code: stubborn(
        'for (let at = 0; at < 4; at += 1) again();',
        `${SPAWN} const again = () => spawn('true', [], { stdio: 'ignore' }).once('exit', again);`,
      ),
      ...FORCED,
      alone: true,
    },
    {
      name: 'a child that has stopped itself',
      language: 'javascript',
      code: child('echo up; kill -STOP $$; sleep $MARK'),
      ...FORCED,
    },
    {
      name: 'a forked program that loops',
      language: 'javascript',
      code: `${SPAWN}
        process.on('SIGTERM', () => {});
        require('node:fs').writeFileSync('child.js', 'process.send(1); process.on("SIGTERM", () => {}); for (;;);');
        fork('./child.js').once('message', () => console.log('ready'));`,
      ...FORCED,
    },
    {
      name: 'a child that kills its process group, which is the cell’s',
      language: 'javascript',
      code: `console.log('ready'); ${SPAWN} spawn('sh', ['-c', 'kill -KILL 0']); setInterval(() => {}, 1000);`,
      ...BY_ITSELF,
      reasons: ['cell_lost'],
      neighbours: 'may be cell_lost',
      inProcess: { name: 'a child that kills its process group, in a process', reasons: ['signaled'] },
    },
    {
      name: 'its cell killed by a process of its own',
      language: 'javascript',
      isolation: 'process',
      code: stubborn("process.kill(process.ppid, 'SIGKILL'); for (;;);"),
      ...BY_ITSELF,
      reasons: ['cell_lost'],
      neighbours: 'may be cell_lost',
    },
    {
      name: 'its cell stopped by a process of its own',
      language: 'javascript',
      isolation: 'process',
      // Not at once, as above.
      code: stubborn("setTimeout(() => { process.kill(process.ppid, 'SIGSTOP'); for (;;); }, 200);"),
      ...PERHAPS_WITH_ITS_CELL,
      stop: { by: 'cancel', graceMs: 600 },
    },
    {
      name: 'a child that stops its process group, which is the cell’s',
      language: 'javascript',
      // Not at once: a cell that is stopped before it has told of a start is given the time of one.
      code: stubborn("setTimeout(() => { execSync('kill -STOP 0'); for (;;); }, 200);", SPAWN),
      ...PERHAPS_WITH_ITS_CELL,
      stop: { by: 'cancel', graceMs: 600 },
    },
    {
      name: 'itself traced by its child',
      language: 'javascript',
      isolation: 'process',
      code: `process.on('SIGTERM', () => {}); ${SPAWN}
        const tracer = ${JSON.stringify(tracer(PTRACE.seize, 'os.getppid()'))};
        spawn('python3', ['-c', tracer], { detached: true, stdio: 'inherit' });
        setInterval(() => {}, 1000);`,
      ...FORCED,
    },
    {
      name: 'a tree of forks',
      language: 'python',
      code: deaf(
        'while True: signal.pause()',
        'first = os.getpid()\nfor _ in range(4): os.fork()\nif os.getpid() != first: signal.pause()',
      ),
      ...FORCED,
    },
    {
      name: 'a fork bomb of 200',
      language: 'python',
      // Each fork takes a byte: there are never more, whatever happens to those that took one.
      code: deaf(
        'while os.read(bombs, 1): os.fork()\nwhile True: signal.pause()',
        'bombs, fill = os.pipe()\nos.write(fill, bytes(200))\nos.close(fill)',
      ),
      ...FORCED,
    },
    {
      name: 'a process that runs away from whoever looks for it',
      language: 'python',
      code: deaf(
        `
if os.fork() == 0:
    while os.read(hops, 1):
        if os.fork(): os._exit(0)
        os.setsid()
    os.execvp("sleep", ["sleep", os.environ["MARK"]])
while True: signal.pause()`,
        'hops, fill = os.pipe()\nos.write(fill, bytes(300))\nos.close(fill)',
      ),
      ...FORCED,
    },
    {
      name: 'a runaway that is left behind',
      language: 'python',
      code: `import os\n${RUNAWAY}\nprint("ready", flush=True)`,
      ...BY_ITSELF,
    },
    {
      name: 'a child that keeps its output open when it has ended',
      language: 'python',
      code: `
import os, signal
pid = os.fork()
if pid == 0:
    for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
    signal.pause()
print("ready", flush=True)`,
      ...BY_ITSELF,
    },
    {
      name: 'an end that waits for children which look as if they kept its shared memory',
      language: 'python',
      code: deaf(
        `
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        while os.fork(): signal.pause()
        signal.pause()
os._exit(0)`,
        'signal.signal(signal.SIGINT, signal.SIG_IGN)',
      ),
      ...FORCED,
      // The stop may come when the wait is over.
      reasons: ['cancelled', 'completed'],
      rungs: ['forced', undefined],
    },
    {
      name: 'a tree of subprocesses in sessions of their own',
      language: 'python',
      code: deaf(
        'while True: signal.pause()',
        `
import subprocess
script = 'trap "" TERM HUP; sleep $MARK & setsid sleep $MARK & echo up; wait'
for _ in range(3): subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE).stdout.readline()`,
      ),
      ...FORCED,
    },
    {
      name: 'a parent that its child holds in vfork',
      language: 'python',
      code: deaf('if ctypes.PyDLL(None).vfork() == 0:\n    while True: signal.pause()', 'import ctypes'),
      ...FORCED,
    },
    {
      name: 'itself stopped',
      language: 'python',
      code: deaf('while True: os.kill(os.getpid(), signal.SIGSTOP)'),
      ...FORCED,
    },
    {
      name: 'itself traced by its child',
      language: 'python',
      code: tracedByChild(PTRACE.seize),
      ...FORCED,
    },
    {
      name: 'itself traced, and so stopped, by its child',
      language: 'python',
      code: tracedByChild(PTRACE.attach),
      ...FORCED,
    },
    {
      name: 'a child traced by its child',
      language: 'python',
      code: `import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile os.fork(): os.wait()\n${tracedByChild(PTRACE.seize)}`,
      ...FORCED,
    },
    {
      name: 'a chain of 20, all traced by the last',
      language: 'python',
      code: chainTracedByLast(20),
      ...FORCED,
    },
    {
      name: 'its shepherd killed by a child that traces it',
      language: 'python',
      code: tracedByChild(PTRACE.seize, 'os.kill(shepherd, signal.SIGKILL)'),
      ...BY_ITSELF,
      reasons: ['signaled'],
      exitCode: 137,
    },
    {
      name: 'its own group killed',
      language: 'python',
      code: `import os, signal\n${RUNAWAY}\nprint("ready", flush=True)\nos.killpg(0, signal.SIGKILL)`,
      ...BY_ITSELF,
      reasons: ['signaled'],
      exitCode: 137,
    },
    {
      name: 'its shepherd killed',
      language: 'python',
      code: deaf(`${RUNAWAY}\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass`),
      ...BY_ITSELF,
      reasons: ['signaled'],
      exitCode: 137,
    },
    {
      name: 'its shepherd stopped',
      language: 'python',
      code: deaf('os.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass'),
      ...FORCED,
    },
    {
      name: 'its shepherd stopped, and an end that nobody sees',
      language: 'python',
      code: deaf('os.kill(os.getppid(), signal.SIGSTOP)'),
      ...FORCED,
    },
    {
      name: 'its zygote killed',
      language: 'python',
      code: deaf('os.kill(zygote, signal.SIGKILL)', ABOVE),
      ...BY_ITSELF,
      alone: true,
    },
    {
      name: 'its zygote stopped',
      language: 'python',
      code: deaf('os.kill(zygote, signal.SIGSTOP)', ABOVE),
      ...BY_ITSELF,
      alone: true,
    },
    {
      name: 'its zygote stopped, its shepherd killed',
      language: 'python',
      code: deaf(`${RUNAWAY}\nos.kill(zygote, signal.SIGSTOP)\nos.kill(shepherd, signal.SIGKILL)`, ABOVE),
      ...BY_ITSELF,
      reasons: ['signaled'],
      alone: true,
      leaves: 'a stopped zygote sweeps up behind nobody',
    },
    {
      name: 'its zygote and its shepherd killed, with a runaway',
      language: 'python',
      code: deaf(`${RUNAWAY}\nos.kill(zygote, signal.SIGKILL)\nos.kill(shepherd, signal.SIGKILL)`, ABOVE),
      ...BY_ITSELF,
      reasons: ['signaled'],
      alone: true,
      leaves: 'with both gone no subreaper is left below the cell',
    },
    {
      name: 'its cell killed',
      language: 'python',
      code: deaf(`${RUNAWAY}\nos.kill(cell, signal.SIGKILL)\nwhile True: pass`, ABOVE),
      ...BY_ITSELF,
      reasons: ['cell_lost'],
      neighbours: 'may be cell_lost',
      // What a pipe held is gone with the cell that was to read it.
      stdout: () => true,
    },
    {
      name: 'its cell stopped',
      language: 'python',
      // Not at once, as above.
      code: deaf(
        `${RUNAWAY}\ntime.sleep(0.2)\nos.kill(cell, signal.SIGSTOP)\nwhile True: pass`,
        `${ABOVE}\nimport time`,
      ),
      ...PERHAPS_WITH_ITS_CELL,
      stop: { by: 'cancel', graceMs: 600 },
    },
  ],
};
