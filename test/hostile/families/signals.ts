import { BY_ITSELF, deaf, type Family, FORCED, GRACEFUL, stubborn } from '../guest.ts';

/** Programs that do with signals what they are not for. */
export const signals: Family = {
  family: 'signals',
  guests: [
    {
      name: 'a handler that loops',
      language: 'javascript',
      code: "process.on('SIGTERM', () => { for (;;); }); setInterval(() => {}, 1000); console.log('ready');",
      ...FORCED,
    },
    {
      name: 'a handler that throws',
      language: 'javascript',
      code: "process.on('SIGTERM', () => { throw new Error('no'); }); setInterval(() => {}, 1000); console.log('ready');",
      ...GRACEFUL,
      exitCode: 1,
    },
    {
      name: 'a handler that throws where everything is caught',
      language: 'javascript',
      code: `
        process.on('uncaughtException', () => {});
        process.on('SIGTERM', () => { throw new Error('no'); });
        setInterval(() => {}, 1000);
        console.log('ready');`,
      ...FORCED,
    },
    {
      name: 'an exit listener that never ends',
      language: 'javascript',
      code: `
        process.on('exit', () => { for (;;); });
        process.on('SIGTERM', () => process.exit(0));
        setInterval(() => {}, 1000);
        console.log('ready');`,
      ...FORCED,
    },
    {
      name: 'a beforeExit listener that always finds more to do',
      language: 'javascript',
      code: stubborn("process.on('beforeExit', () => setImmediate(() => {}));"),
      ...FORCED,
    },
    {
      name: 'listeners for every signal there is',
      language: 'javascript',
      code: `
        for (const name of Object.keys(require('node:os').constants.signals)) {
          try { process.on(name, () => {}); } catch {}
        }
        setInterval(() => {}, 1000);
        console.log('ready');`,
      ...FORCED,
    },
    {
      name: 'a storm of signals to itself',
      language: 'javascript',
      code: stubborn(
        'setInterval(() => {}, 1000); again();',
        "const again = () => process.kill(process.pid, 'SIGUSR2'); process.on('SIGUSR2', again);",
      ),
      ...FORCED,
    },
    {
      name: 'a handler that stops itself again',
      language: 'javascript',
      code: stubborn(
        "process.kill(process.pid, 'SIGTERM'); setInterval(() => {}, 1000);",
        "process.on('SIGTERM', () => process.kill(process.pid, 'SIGTERM'));",
      ),
      ...FORCED,
    },
    {
      name: 'an abort by native code, in a thread of its own',
      language: 'javascript',
      code: `
        console.log('ready');
        const abort = \`
          const { functions } = require('node:ffi').dlopen(null, { abort: { parameters: [], result: 'void' } });
          functions.abort();\`;
        new (require('node:worker_threads').Worker)(abort, { eval: true, execArgv: ['--experimental-ffi'] });`,
      ...BY_ITSELF,
      reasons: ['failed'],
      exitCode: 1,
    },
    {
      name: 'every signal blocked',
      language: 'python',
      code: `
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
print("ready", flush=True)
while True: signal.pause()`,
      ...FORCED,
    },
    {
      name: 'every signal ignored',
      language: 'python',
      code: `
import signal
for number in range(1, signal.NSIG):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("ready", flush=True)
while True: signal.pause()`,
      ...FORCED,
    },
    {
      name: 'a handler that loops',
      language: 'python',
      code: `
import signal
def stay(*_):
    while True: pass
signal.signal(signal.SIGTERM, stay)
print("ready", flush=True)
while True: signal.pause()`,
      ...FORCED,
    },
    {
      name: 'a handler that raises',
      language: 'python',
      code: `
import signal
def refuse(*_): raise RuntimeError("no")
signal.signal(signal.SIGTERM, refuse)
print("ready", flush=True)
while True: signal.pause()`,
      ...GRACEFUL,
      exitCode: 1,
    },
    {
      name: 'an exit function that never ends',
      language: 'python',
      code: `
import atexit, signal, sys, time
atexit.register(time.sleep, 600)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True: signal.pause()`,
      ...FORCED,
    },
    {
      name: 'a handler that sends itself the signal again',
      language: 'python',
      code: `
import os, signal
def again(*_):
    # One within the other, until there is no more room for another.
    try: os.kill(os.getpid(), signal.SIGTERM)
    except RecursionError: pass
signal.signal(signal.SIGTERM, again)
print("ready", flush=True)
while True: signal.pause()`,
      ...FORCED,
    },
    {
      name: 'a timer that interrupts it all the time',
      language: 'python',
      code: deaf(
        'while True: sum(range(10))',
        'signal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)',
      ),
      ...FORCED,
    },
    {
      name: 'a signal of the kernel that it makes for itself',
      language: 'python',
      code: 'import ctypes\nprint("ready", flush=True)\nctypes.string_at(0)',
      ...BY_ITSELF,
      reasons: ['signaled'],
      exitCode: 139,
    },
  ],
};
