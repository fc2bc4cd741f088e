import { readFileSync, rmSync } from 'node:fs';

/** Loaded into a daemon before its own code: faults of its surroundings that nobody could cause from outside it alone. */
export interface DaemonFaults {
  /** The wall clock is so many ms off from now on, for the daemon only. */
  clockMs?: number | undefined;
  /** Every `fsync` and `fdatasync` of the process fails with EIO, for as long as it lives. */
  fsync?: boolean | undefined;
}

const file = process.env.ELIDE_TEST_FAULTS;
let clockMs = 0;
const { now } = Date;
Date.now = () => now() + clockMs;

process.on('SIGUSR2', () => {
  if (file === undefined) return;
  const faults = JSON.parse(readFileSync(file, 'utf8')) as DaemonFaults;
  clockMs = faults.clockMs ?? clockMs;
  const failed = faults.fsync ? failSyncs() : Promise.resolve();
  failed.then(() => rmSync(file));
});

// A write beyond RLIMIT_FSIZE fails, as on a disk that is broken; without this the signal would end the daemon.
process.on('SIGXFSZ', () => {});

/** `linux/seccomp.h`, `linux/filter.h`, and the system calls' numbers. */
const ALLOW = 0x7fff0000;
const FAIL_WITH_EIO = 0x00050000 | 5;
const [LOAD_NUMBER, JUMP_IF_EQUAL, RETURN] = [0x20, 0x15, 0x06];
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_SET_MODE_FILTER = 1;
const SECCOMP_FILTER_FLAG_TSYNC = 1;
const CALLS = {
  x64: { seccomp: 317, fsync: 74, fdatasync: 75 },
  arm64: { seccomp: 277, fsync: 82, fdatasync: 83 },
}[process.arch as 'x64' | 'arm64'];

/** A seccomp filter for every thread there is. It cannot be taken away again. */
async function failSyncs(): Promise<void> {
  // Loaded only where it is asked for: it is experimental.
  const { dlopen, getRawPointer } = await import('node:ffi');
  const { functions } = dlopen(null, {
    prctl: { arguments: ['i32', 'u64', 'u64', 'u64', 'u64'], return: 'i32' },
    syscall: { arguments: ['i64', 'i64', 'i64', 'pointer'], return: 'i64' },
  });
  const instructions = [
    [LOAD_NUMBER, 0, 0, 0],
    [JUMP_IF_EQUAL, 2, 0, CALLS.fsync],
    [JUMP_IF_EQUAL, 1, 0, CALLS.fdatasync],
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, FAIL_WITH_EIO],
  ] as const;
  const filter = Buffer.alloc(8 * instructions.length);
  for (const [index, [code, ifTrue, ifFalse, value]] of instructions.entries()) {
    filter.writeUInt16LE(code, 8 * index);
    filter.writeUInt8(ifTrue, 8 * index + 2);
    filter.writeUInt8(ifFalse, 8 * index + 3);
    filter.writeUInt32LE(value, 8 * index + 4);
  }
  const program = Buffer.alloc(16);
  program.writeUInt16LE(instructions.length);
  program.writeBigUInt64LE(getRawPointer(filter), 8);
  functions.prctl(PR_SET_NO_NEW_PRIVS, 1n, 0n, 0n, 0n);
  const failed = functions.syscall(
    BigInt(CALLS.seccomp),
    BigInt(SECCOMP_SET_MODE_FILTER),
    BigInt(SECCOMP_FILTER_FLAG_TSYNC),
    getRawPointer(program),
  );
  if (failed !== 0n) throw new Error(`no seccomp filter: ${failed}`);
}
