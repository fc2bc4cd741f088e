import { existsSync, readFileSync, rmSync } from 'node:fs';
import { constants } from 'node:os';

/** Loaded into a daemon before its own code: faults of its surroundings that nobody could cause from outside it alone. */
export interface DaemonFaults {
  /** The wall clock is so many ms off from now on, for the daemon only. */
  clockMs?: number | undefined;
  /** Every `fsync` and `fdatasync` of the process fails with EIO, for as long as it lives. */
  fsync?: boolean | undefined;
  /** Its file systems have no locks, for as long as it lives: each `fcntl` that asks for one fails with this. */
  locks?: 'ENOLCK' | 'ENOSYS' | undefined;
}

const file = process.env.ELIDE_TEST_FAULTS;
/** How often a file that cannot be opened is tried again, in ms: the daemon may have another fault, and no descriptor left. */
const AGAIN_MS = 5;
let clockMs = 0;
const { now } = Date;
Date.now = () => now() + clockMs;

/** Takes what the file says, and removes it. */
async function suffer(): Promise<void> {
  if (file === undefined || !existsSync(file)) return;
  let faults: DaemonFaults;
  try {
    faults = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EMFILE') throw error;
    setTimeout(() => void suffer(), AGAIN_MS);
    return;
  }
  clockMs = faults.clockMs ?? clockMs;
  if (faults.fsync) await filter(failingSyncs(constants.errno.EIO));
  if (faults.locks) await filter(failingLocks(constants.errno[faults.locks]));
  rmSync(file);
}

process.on('SIGUSR2', () => void suffer());

// A write beyond RLIMIT_FSIZE fails, as on a disk that is broken; without this the signal would end the daemon.
process.on('SIGXFSZ', () => {});

/** `linux/seccomp.h`, `linux/filter.h`, and the system calls' numbers. */
const ALLOW = 0x7fff0000;
/** With an errno. */
const FAIL = 0x00050000;
const [LOAD, JUMP_IF_EQUAL, RETURN] = [0x20, 0x15, 0x06];
/** Where a filter finds the number of the call, and the lower half of its second argument. */
const [NUMBER, SECOND_ARGUMENT] = [0, 24];
/** `fcntl.h`: a lock, or none. */
const F_SETLK = 6;
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_SET_MODE_FILTER = 1;
const SECCOMP_FILTER_FLAG_TSYNC = 1;
const CALLS = {
  x64: { seccomp: 317, fsync: 74, fdatasync: 75, fcntl: 72 },
  arm64: { seccomp: 277, fsync: 82, fdatasync: 83, fcntl: 25 },
}[process.arch as 'x64' | 'arm64'];

/** Each as `linux/filter.h` has it: what to do, how many to skip if so and if not, and with which value. */
type Instruction = readonly [code: number, ifTrue: number, ifFalse: number, value: number];

const failingSyncs = (errno: number): Instruction[] => [
  [LOAD, 0, 0, NUMBER],
  [JUMP_IF_EQUAL, 2, 0, CALLS.fsync],
  [JUMP_IF_EQUAL, 1, 0, CALLS.fdatasync],
  [RETURN, 0, 0, ALLOW],
  [RETURN, 0, 0, FAIL | errno],
];

const failingLocks = (errno: number): Instruction[] => [
  [LOAD, 0, 0, NUMBER],
  [JUMP_IF_EQUAL, 0, 2, CALLS.fcntl],
  [LOAD, 0, 0, SECOND_ARGUMENT],
  [JUMP_IF_EQUAL, 1, 0, F_SETLK],
  [RETURN, 0, 0, ALLOW],
  [RETURN, 0, 0, FAIL | errno],
];

/** A seccomp filter for every thread there is. It cannot be taken away again. */
async function filter(instructions: Instruction[]): Promise<void> {
  // Loaded only where it is asked for: it is experimental.
  const { dlopen, getRawPointer } = await import('node:ffi');
  const { functions } = dlopen(null, {
    prctl: { arguments: ['i32', 'u64', 'u64', 'u64', 'u64'], return: 'i32' },
    syscall: { arguments: ['i64', 'i64', 'i64', 'pointer'], return: 'i64' },
  });
  const code = Buffer.alloc(8 * instructions.length);
  for (const [index, [what, ifTrue, ifFalse, value]] of instructions.entries()) {
    code.writeUInt16LE(what, 8 * index);
    code.writeUInt8(ifTrue, 8 * index + 2);
    code.writeUInt8(ifFalse, 8 * index + 3);
    code.writeUInt32LE(value, 8 * index + 4);
  }
  const program = Buffer.alloc(16);
  program.writeUInt16LE(instructions.length);
  program.writeBigUInt64LE(getRawPointer(code), 8);
  functions.prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n);
  const failed = functions.syscall(
    BigInt(CALLS.seccomp),
    BigInt(SECCOMP_SET_MODE_FILTER),
    BigInt(SECCOMP_FILTER_FLAG_TSYNC),
    getRawPointer(program),
  );
  if (failed !== 0n) throw new Error(`no seccomp filter: ${failed}`);
}

// From its first moment on, where a test says so before it starts.
await suffer();
