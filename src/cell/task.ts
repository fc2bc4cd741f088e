import { ProcFile, statFields } from '../proc-file.ts';

const SECOND_NS = 1e9;
/** A clock tick of /proc/PID/stat: a hundred a second on every architecture of Linux that Node runs on. */
const TICK_NS = 10_000_000;

/** CPU time. */
export interface Cpu {
  userSeconds: number;
  systemSeconds: number;
}

/** A thread of this process, as the kernel knows it: read again and again, and little of it while it sleeps. */
export class Task {
  readonly #stat: ProcFile;
  readonly #schedstat: ProcFile;
  #ran = '';
  /** Since its start; as it was seen last, once it is gone. */
  cpu: Cpu = { userSeconds: 0, systemSeconds: 0 };
  /** Pages it has touched first: minor faults. */
  faults = 0;

  /** `id` is the kernel's. */
  constructor(id: number) {
    this.#stat = new ProcFile(`/proc/self/task/${id}/stat`);
    this.#schedstat = new ProcFile(`/proc/self/task/${id}/schedstat`);
  }

  /** Brings its figures up to date; false when it is gone. */
  look(): boolean {
    // The time on a CPU in ns, the time it waited for one, and how often it ran. A kernel may be built without.
    const ran = this.#schedstat.read();
    if (ran !== undefined && ran === this.#ran) return true;
    const stat = this.#stat.read();
    if (stat === undefined) return false;
    this.#ran = ran ?? '';
    // proc_pid_stat(5): minflt at 7, utime and stime at 11 and 12.
    const fields = statFields(stat).map(Number);
    const [user, system] = [(fields[11] as number) * TICK_NS, (fields[12] as number) * TICK_NS];
    const total = ran === undefined ? user + system : Number(ran.split(' ', 1)[0]);
    // Ticks are coarse: they only tell in which proportion the whole divides.
    const userPart = user + system === 0 ? 1 : user / (user + system);
    this.cpu = {
      userSeconds: (total * userPart) / SECOND_NS,
      systemSeconds: (total * (1 - userPart)) / SECOND_NS,
    };
    this.faults = fields[7] as number;
    return true;
  }

  close(): void {
    this.#stat.close();
    this.#schedstat.close();
  }
}
