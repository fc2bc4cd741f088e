/** One row of the live table. */
export interface Row {
  name: string;
  language: string;
  /** The states it has passed, in order. */
  states: string[];
  beganMs: number;
  endedMs: number | undefined;
}

const FOLLOWED_LINES = 4;
const REDRAW_MS = 100;
const HIDE_CURSOR = '\x1b[?25l';
const SHOW_CURSOR = '\x1b[?25h';

/** Shows executions as they change: a table that is drawn anew in its place on a terminal, plain lines elsewhere. */
export class Screen {
  readonly #rows = new Map<string, Row>();
  readonly #followed: string[] = [];
  readonly #beganMs = performance.now();
  readonly #live: boolean;
  #timer: NodeJS.Timeout | undefined;
  #drawnLines = 0;

  constructor(rows: { name: string; language: string }[]) {
    const beganMs = this.#beganMs;
    for (const { name, language } of rows) {
      this.#rows.set(name, { name, language, states: [], beganMs, endedMs: undefined });
    }
    const { isTTY, rows: height = 0 } = process.stdout;
    this.#live = isTTY === true && height > rows.length + FOLLOWED_LINES + 2;
    if (!this.#live) return;
    process.stdout.write(HIDE_CURSOR);
    this.#timer = setInterval(() => this.#draw(), REDRAW_MS);
  }

  /** An execution is in another state, or on another rung of a stop. */
  state(name: string, state: string, rung: string | undefined): void {
    const row = this.#rows.get(name);
    if (row === undefined) return;
    row.states.push(state === 'signaled' && rung ? rung : state);
    if (state === 'exited') row.endedMs = performance.now();
    if (this.#live) this.#draw();
    else this.#print(`${name.padEnd(12)} ${row.language.padEnd(11)} ${state}${rung ? ` (${rung})` : ''}`);
  }

  /** The execution that is followed wrote a line. */
  line(name: string, text: string): void {
    this.#followed.push(`${name} | ${text}`);
    if (this.#live) this.#draw();
    else this.#print(`${name.padEnd(12)} | ${text}`);
  }

  /** Leaves what is drawn as it is, and the terminal as it was. */
  close(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#draw();
    process.stdout.write(SHOW_CURSOR);
  }

  #print(text: string): void {
    const seconds = (performance.now() - this.#beganMs) / 1000;
    process.stdout.write(`${seconds.toFixed(3).padStart(7)}s  ${text}\n`);
  }

  #draw(): void {
    const width = process.stdout.columns || 80;
    const lines = [
      ...[...this.#rows.values()].map(({ name, language, states, beganMs, endedMs }) => {
        const seconds = ((endedMs ?? performance.now()) - beganMs) / 1000;
        return `${name.padEnd(12)} ${language.padEnd(11)} ${seconds.toFixed(1).padStart(5)}s  ${states.join(' > ')}`;
      }),
      '',
      ...Array.from({ length: FOLLOWED_LINES }, (_, at) => this.#followed.slice(-FOLLOWED_LINES)[at] ?? ''),
    ];
    const up = this.#drawnLines === 0 ? '' : `\x1b[${this.#drawnLines}A`;
    process.stdout.write(`${up}${lines.map((line) => `\x1b[2K${line.slice(0, width - 1)}\n`).join('')}`);
    this.#drawnLines = lines.length;
  }
}
