import { RETURN_HEAPS } from '../cell-flags.ts';
import { anonymousBytesOf, PAGE_BYTES, ProcFile } from '../proc-file.ts';

/** What one more thread adds to the process when it boots: less than its heap, more so where others have left theirs. */
const THREAD_BYTES = process.execArgv.includes(RETURN_HEAPS) ? 5_000_000 : 3_000_000;

/** The heap and the buffers of a thread that has just booted. */
const BOOTED_BYTES = 8_500_000;

/** For so long less memory than threads were found to hold is taken for a moment's picture: threads boot, collect and end. */
const DIP_MS = 1_000;

/** For so long memory that was freed may stay with V8 and the allocator before it goes back, or is used again. */
const LEAVING_MS = 10_000;

/** What is known of one thread at one moment. */
export interface ThreadMemory {
  /** Pages it has touched first, since its start: minor faults. */
  faults: number;
  /** Its whole heap, with what is free in it. */
  heapBytes: number;
  /** Its buffers. */
  externalBytes: number;
}

/** What is known of the process at the same moment. */
export interface ProcessMemory {
  /** Resident and of no file, see {@link anonymousBytes}. */
  anonymousBytes: number;
  /** Minor faults of all its threads. */
  faults: number;
  /** The heap and the buffers of the main thread. */
  mainBytes: number;
  /** Threads that have booted, those that are not measured included. */
  threads: number;
  nowMs: number;
}

interface Account extends ThreadMemory {
  /** Of its buffers, what was touched: only that is resident. */
  residentExternalBytes: number;
  unseenBytes: number;
  isSampled: boolean;
}

/**
 * Memory of threads that neither their heap nor their buffers show: WebAssembly memory, also inside a module that
 * exports none, SharedArrayBuffers, heaps of threads they started. V8 has no figure for it, the process has: what is
 * resident and of no known owner. When that grows, the threads that touched new pages since the last sample (and more
 * than their heap and buffers grew by) own the growth, in proportion, none more than it touched; the rest is nobody's.
 * When it shrinks and stays so, all give back in proportion. Right to a few MB for one thread that grows at a time; a
 * guess, whose sum is right, for several between two samples.
 */
export class UnseenMemory<Thread> {
  readonly #accounts = new Map<Thread, Account>();
  /** What the process holds without its threads, beside the heap of the main thread. */
  #baseBytes: number;
  #last: ProcessMemory;
  /** Unseen, and of no thread. */
  #unownedBytes = 0;
  /** Freed by threads, or held by some that have ended, and not given back yet. */
  #leavingBytes = 0;
  #leftMs = 0;
  /** While less is there than threads own: since when, and the largest share of it that was. */
  #dip: { sinceMs: number; share: number } | undefined;
  #share = 1;
  /** While less is there than threads show to hold: since when, and the least that was missing since. */
  #lack: { sinceMs: number; bytes: number } | undefined;

  /** `start`: the process before any thread. */
  constructor(start: ProcessMemory) {
    this.#baseBytes = start.anonymousBytes - start.mainBytes;
    this.#last = start;
  }

  /** Bytes of this thread that nothing else shows. */
  of(thread: Thread): number {
    return Math.round((this.#accounts.get(thread)?.unseenBytes ?? 0) * this.#share);
  }

  /** A thread's program begins; when the thread had booted it was so. */
  add(thread: Thread, { faults, heapBytes, externalBytes }: ThreadMemory, process: ProcessMemory): void {
    const unknown = { residentExternalBytes: externalBytes, unseenBytes: 0, isSampled: false };
    this.#accounts.set(thread, { faults, heapBytes, externalBytes, ...unknown });
    this.#recede(process);
  }

  /** A thread is gone. Of one that was never sampled nothing is known, and the process not looked at. */
  remove(thread: Thread, look: () => ProcessMemory): void {
    const account = this.#accounts.get(thread);
    this.#accounts.delete(thread);
    if (account === undefined || !account.isSampled) return;
    const process = look();
    this.#leave(account.unseenBytes + grownBytes(account), process.nowMs);
    this.#recede(process);
  }

  /** What has gone back until now is not to be mistaken for room that others left free. */
  #recede(process: ProcessMemory): void {
    const unseen = this.#lookAtFreed(process);
    this.#unownedBytes = Math.max(0, Math.min(this.#unownedBytes, this.#unownedBytes + unseen - this.#ownedBytes()));
  }

  /** Returns what is unseen and not freed. */
  #lookAtFreed(process: ProcessMemory): number {
    const ended = this.#last.threads - process.threads;
    if (ended > 0) this.#leave(ended * THREAD_BYTES, process.nowMs);
    this.#last = { ...this.#last, threads: process.threads };
    const unseen = this.#unseenBytes(process);
    if (process.nowMs - this.#leftMs > LEAVING_MS) {
      this.#unownedBytes += this.#leavingBytes;
      this.#leavingBytes = 0;
    }
    this.#leavingBytes = Math.max(0, Math.min(this.#leavingBytes, unseen - this.#ownedBytes()));
    return unseen - this.#leavingBytes;
  }

  /** Takes in what the threads that were added and the process hold now. */
  sample(process: ProcessMemory, threads: Map<Thread, ThreadMemory>): void {
    const bytesPerFault = this.#bytesPerFault(process);
    const excess = new Map<Account, number>();
    for (const [thread, now] of threads) {
      const account = this.#accounts.get(thread);
      if (account === undefined) continue;
      const before = grownBytes(account);
      excess.set(account, update(account, now, bytesPerFault));
      this.#leave(Math.max(0, before - grownBytes(account)), process.nowMs);
    }
    for (const account of excess.keys()) this.#reuse(account);
    const unseen = this.#lookAtFreed(process);
    this.#last = process;
    this.#settle(unseen, excess, process.nowMs);
  }

  /** A fault may bring in a huge page, or several. */
  #bytesPerFault({ anonymousBytes, faults }: ProcessMemory): number {
    const grown = anonymousBytes - this.#last.anonymousBytes;
    return Math.max(PAGE_BYTES, grown / Math.max(1, faults - this.#last.faults));
  }

  #unseenBytes({ anonymousBytes, mainBytes, threads, nowMs }: ProcessMemory): number {
    let unseen = anonymousBytes - mainBytes - this.#baseBytes - threads * THREAD_BYTES;
    for (const account of this.#accounts.values()) unseen -= grownBytes(account);
    this.#lower(Math.max(0, -unseen), nowMs);
    return Math.max(0, unseen);
  }

  /** Some thread holds less than was thought, and will not give it back; unless one is just being torn down. */
  #lower(bytes: number, nowMs: number): void {
    this.#lack =
      bytes === 0 ? undefined : { sinceMs: nowMs, ...this.#lack, bytes: Math.min(bytes, this.#lack?.bytes ?? bytes) };
    if (this.#lack === undefined || nowMs - this.#lack.sinceMs < DIP_MS) return;
    this.#baseBytes -= this.#lack.bytes;
    this.#lack = undefined;
  }

  #ownedBytes(): number {
    let owned = this.#unownedBytes;
    for (const { unseenBytes } of this.#accounts.values()) owned += unseenBytes;
    return owned;
  }

  #settle(unseen: number, excess: Map<Account, number>, nowMs: number): void {
    const owned = this.#ownedBytes();
    if (unseen >= owned) {
      this.#dip = undefined;
      this.#share = 1;
      this.#distribute(unseen - owned, excess);
      return;
    }
    this.#share = owned === 0 ? 1 : unseen / owned;
    this.#dip = { sinceMs: this.#dip?.sinceMs ?? nowMs, share: Math.max(this.#dip?.share ?? 0, this.#share) };
    if (nowMs - this.#dip.sinceMs < DIP_MS) return;
    for (const account of this.#accounts.values()) account.unseenBytes *= this.#dip.share;
    this.#unownedBytes *= this.#dip.share;
    this.#share /= this.#dip.share;
    this.#dip = undefined;
  }

  #distribute(grown: number, excess: Map<Account, number>): void {
    let touched = 0;
    for (const bytes of excess.values()) touched += bytes;
    let left = grown;
    for (const [account, bytes] of excess) {
      const part = touched === 0 ? 0 : Math.min(bytes, (grown * bytes) / touched);
      account.unseenBytes += part;
      left -= part;
    }
    this.#unownedBytes += left;
  }

  #leave(bytes: number, nowMs: number): void {
    if (bytes === 0) return;
    this.#leavingBytes += bytes;
    this.#leftMs = nowMs;
  }

  /** A buffer in memory that was freed before is resident without being touched first. */
  #reuse(account: Account): void {
    const bytes = Math.min(this.#leavingBytes, account.externalBytes - account.residentExternalBytes);
    account.residentExternalBytes += bytes;
    this.#leavingBytes -= bytes;
  }
}

/** What a thread shows to hold beyond what each holds when it has booted. */
function grownBytes({ heapBytes, residentExternalBytes }: Account): number {
  return Math.max(0, heapBytes + residentExternalBytes - BOOTED_BYTES);
}

/** Brings an account up to date; the bytes the thread touched that neither its heap nor its buffers explain. */
function update(account: Account, now: ThreadMemory, bytesPerFault: number): number {
  const touched = (now.faults - account.faults) * bytesPerFault;
  const heapGrowth = Math.max(0, now.heapBytes - account.heapBytes);
  const beyondHeap = Math.max(0, touched - heapGrowth);
  // A heap grows by pages V8 may hold already, but a buffer is resident only once it was touched.
  const kept = Math.min(now.externalBytes, account.residentExternalBytes);
  const filled = Math.min(now.externalBytes - kept, beyondHeap);
  Object.assign(account, now, { residentExternalBytes: kept + filled, isSampled: true });
  recognize(account, Math.max(0, heapGrowth - touched));
  return beyondHeap - filled;
}

/** A thread that was busy tells late of what it touched long ago, and that was taken for unseen: now it is seen. */
function recognize(account: Account, heapBytes: number): void {
  const externalBytes = Math.min(account.unseenBytes, account.externalBytes - account.residentExternalBytes);
  account.residentExternalBytes += externalBytes;
  account.unseenBytes = Math.max(0, account.unseenBytes - externalBytes - heapBytes);
}

const statm = new ProcFile('/proc/self/statm');

/** Memory of this process that is resident and belongs to no file. */
export function anonymousBytes(): number {
  return anonymousBytesOf(statm.read());
}
