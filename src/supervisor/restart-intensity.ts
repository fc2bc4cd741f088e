/**
 * How often a child may crash before its supervisor stops starting it again: more than `intensity` crashes within
 * `periodMs` is too often (OTP supervisor:add_restart/1). Times are monotonic ms.
 */
export class RestartIntensity {
  readonly #intensity: number;
  readonly #periodMs: number;
  #crashes: number[] = [];

  constructor(options: { intensity: number; periodMs: number }) {
    this.#intensity = options.intensity;
    this.#periodMs = options.periodMs;
  }

  /** Notes a crash. */
  add(nowMs: number): void {
    this.#crashes = [...this.#within(nowMs), nowMs];
  }

  /** How long to wait until another start is within the intensity, in ms; 0 when it is now. */
  waitMs(nowMs: number): number {
    const within = this.#within(nowMs);
    if (within.length <= this.#intensity) return 0;
    const oldest = within[within.length - 1 - this.#intensity] as number;
    return oldest + this.#periodMs - nowMs;
  }

  #within(nowMs: number): number[] {
    return this.#crashes.filter((atMs) => nowMs - atMs < this.#periodMs).slice(-this.#intensity - 1);
  }
}
