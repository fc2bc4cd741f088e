import { constants } from 'node:os';
import { readKernelFile } from '../proc-file.ts';
import { sendSignal } from '../processes.ts';

/** How often a tree that is to stop is looked at until all of it has, in ms, and for how long: some may be in a wait. */
const STOP_LOOK_MS = 1;
const STOP_LIMIT_MS = 5_000;
/** Looks in a row that find nothing running. One may miss a child while others come and go. */
const QUIET_LOOKS = 10;
/** Signals that are to end a program: one that is stopped has to go on for that (as systemd.kill(5)). */
const ENDING_SIGNALS = new Set<NodeJS.Signals>(['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT']);

/** Delivers signals to a guest that is a process. */
export class GuestSignals {
  readonly #members: (pid: number, tree: boolean) => Set<number>;
  #stopTimer: NodeJS.Timeout | undefined;

  /** `members`: the guest's process, with `tree` all below it too. */
  constructor(members: (pid: number, tree: boolean) => Set<number>) {
    this.#members = members;
  }

  deliver(pid: number, name: NodeJS.Signals, tree: boolean): void {
    const ends = ENDING_SIGNALS.has(name);
    if (ends || name === 'SIGCONT') clearTimeout(this.#stopTimer);
    if (name === 'SIGSTOP' && tree) {
      this.#stopTree(pid, performance.now() + STOP_LIMIT_MS);
      return;
    }
    for (const member of this.#members(pid, tree)) {
      sendSignal(member, name);
      // Only one that is stopped needs it to hear: a program may listen for it.
      if (ends && statusOf(member, 'State') === 'T') sendSignal(member, 'SIGCONT');
    }
  }

  /** To be called when the guest is gone: its process id may be another's. */
  end(): void {
    clearTimeout(this.#stopTimer);
  }

  /** One that is about to fork when it is told to stop, forks first: its child is found later. */
  #stopTree(pid: number, endMs: number, quietLooks = 0): void {
    if (performance.now() > endMs) return;
    const running = [...this.#members(pid, true)].filter(isRunning);
    for (const member of running) sendSignal(member, 'SIGSTOP');
    const quiet = running.length === 0 ? quietLooks + 1 : 0;
    if (quiet === QUIET_LOOKS) return;
    clearTimeout(this.#stopTimer);
    this.#stopTimer = setTimeout(() => this.#stopTree(pid, endMs, quiet), STOP_LOOK_MS);
  }
}

/** Whether a process has a handler for a signal. */
export function catches(pid: number, name: NodeJS.Signals): boolean {
  const caught = BigInt(`0x${statusOf(pid, 'SigCgt') ?? '0'}`);
  return ((caught >> BigInt(constants.signals[name] - 1)) & 1n) === 1n;
}

/** False for one that is stopped, or has ended. */
function isRunning(pid: number): boolean {
  return !/^[TtZX]/.test(statusOf(pid, 'State') ?? 'X');
}

/** One figure of proc_pid_status(5); undefined for a process that is gone. */
function statusOf(pid: number, figure: string): string | undefined {
  const status = readKernelFile(`/proc/${pid}/status`) ?? '';
  return new RegExp(`^${figure}:\\s*(\\S+)`, 'm').exec(status)?.[1];
}
