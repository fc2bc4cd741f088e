import type { ExitReason } from '../../machines/execution.ts';
import type { Snippet } from '../../src/supervisor/requests.ts';

/** What a guest is expected to do when nobody interferes, and what it is run with. */
interface GuestKind {
  code: Record<'javascript' | 'python', string>;
  /** How it ends by itself; undefined for one that never does. */
  end: { reason: ExitReason; exitCode: number } | undefined;
  /** All it prints by then; undefined for one whose output depends on time. */
  output?: string;
  snippet?: Partial<Snippet>;
}

const lines = (count: number) => Array.from({ length: count }, (_, index) => `${index}\n`).join('');
const FLOOD_LINE = `${'x'.repeat(1_023)}\n`;

/** Counts from 0, a line each 20 ms, until its input says `end`; then exits with 7. */
const TICKS = {
  javascript: `
    let count = 0;
    process.stdin.on('data', (data) => { if (String(data).includes('end')) process.exit(7); });
    setInterval(() => console.log(count++), 20);`,
  python: `
import os, select, sys
count = 0
while True:
    if select.select([0], [], [], 0.02)[0] and 'end' in os.read(0, 100).decode():
        sys.exit(7)
    print(count, flush=True)
    count += 1`,
};

/** The guests of the generator. Each that prints numbers prints 0, 1, 2 and so on, one a line. */
export const GUESTS = {
  hello: {
    code: {
      javascript: 'for (let count = 0; count < 20; count++) console.log(count)',
      python: 'for count in range(20): print(count)',
    },
    end: { reason: 'completed', exitCode: 0 },
    output: lines(20),
  },
  fails: {
    code: { javascript: 'console.log(0); process.exit(3)', python: 'import sys\nprint(0)\nsys.exit(3)' },
    end: { reason: 'failed', exitCode: 3 },
    output: lines(1),
  },
  slow: {
    code: {
      javascript: 'console.log(0); setTimeout(() => console.log(1), 400)',
      python: 'import time\nprint(0, flush=True)\ntime.sleep(0.4)\nprint(1)',
    },
    end: { reason: 'completed', exitCode: 0 },
    output: lines(2),
  },
  floods: {
    code: {
      javascript: `for (let count = 0; count < 2048; count++) process.stdout.write(${JSON.stringify(FLOOD_LINE)})`,
      python: `import sys\nfor count in range(2048): sys.stdout.write(${JSON.stringify(FLOOD_LINE)})`,
    },
    end: { reason: 'completed', exitCode: 0 },
    output: FLOOD_LINE.repeat(2_048),
  },
  ticks: { code: TICKS, end: undefined, snippet: { stdin: true } },
  /** Hears no SIGTERM. */
  stubborn: {
    code: {
      javascript: "process.on('SIGTERM', () => {}); let count = 0; setInterval(() => console.log(count++), 20)",
      python: `
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
count = 0
while True:
    print(count, flush=True)
    count += 1
    time.sleep(0.02)`,
    },
    end: undefined,
  },
  busy: {
    code: { javascript: 'for (;;);', python: 'while True: pass' },
    end: { reason: 'timed_out', exitCode: -1 },
    output: '',
    snippet: { timeoutMs: 300, graceMs: 100 },
  },
  /** Waits for a process of its own; `process.argv[2]` and `sys.argv[1]` say which. */
  child: {
    code: {
      javascript: "require('child_process').spawn('sleep', [process.argv[2]], { stdio: 'ignore' }); console.log(0)",
      python: `
import subprocess, sys
process = subprocess.Popen(['sleep', sys.argv[1]])
print(0, flush=True)
process.wait()`,
    },
    end: undefined,
  },
} satisfies Record<string, GuestKind>;

export type GuestName = keyof typeof GUESTS;
export const GUEST_NAMES = Object.keys(GUESTS) as GuestName[];
