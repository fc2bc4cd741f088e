import { setTimeout as sleep } from 'node:timers/promises';
import type { DaemonConfig } from '../../src/config.ts';
import { ENGINES, languageOf } from '../support/engines.ts';
import { GUESTS } from './guests.ts';
import { wrongInOutput } from './model.ts';
import { FaultNode } from './node.ts';
import type { PlannedFault } from './plan.ts';
import { descriptorsOf, Round } from './round.ts';
import type { Step } from './steps.ts';

const SESSION = 'neighbour';
const IS_ROOT = process.getuid?.() === 0;
/** Enough for what is retained, and little to fill; and for what every so many more times takes as large bursts. */
const DISK_MB = 96;
const BURSTS_MB = 24;
/** As many as a round may have. */
const RETAINED = 400;

/** The largest takes a minute: after this long something waits for what never comes. */
const ROUND_LIMIT_MS = 600_000;

/** What one daemon is asked to hold while everything around it fails. */
const CONFIG: DaemonConfig = {
  durability: 'full',
  onStop: 'detach',
  graceMs: 1_000,
  cellIdleMs: 2_000,
  restartIntensity: 1_000,
};

/** What rounds found. */
export interface Found {
  executions: number;
  violations: string[];
}

/**
 * A node with neighbours: guests in a session of their own, to which nothing may happen (I4), whatever is done to the
 * sessions of the rounds.
 */
export class Scenario implements AsyncDisposable {
  readonly node: FaultNode;
  readonly #config: DaemonConfig;
  #losesOutput = false;
  #descriptors: number | undefined;

  private constructor(node: FaultNode, config: DaemonConfig) {
    this.node = node;
    this.#config = config;
  }

  /** `bursts`: how many times as large as usual they are. */
  static async start(config: DaemonConfig = {}, bursts = 1): Promise<Scenario> {
    const whole = { ...CONFIG, retainedExecutions: RETAINED * bursts, ...config };
    const diskMb = IS_ROOT ? DISK_MB + BURSTS_MB * (bursts - 1) : undefined;
    const scenario = new Scenario(await FaultNode.start(whole, { diskMb }), whole);
    const { client } = scenario.node;
    await client.createSession(SESSION, { contextPoolSize: 1 });
    for (const engine of ENGINES) {
      const { code, snippet } = GUESTS.ticks;
      const asked = languageOf(engine);
      const neighbour = { sessionId: SESSION, executionId: engine, ...asked, code: code[asked.language], ...snippet };
      await client.executeSnippet(neighbour);
      for await (const { state } of client.watchExecution(SESSION, engine)) if (state === 'running') break;
    }
    return scenario;
  }

  /** One round of steps with faults between them. Rejects when it does not come to its end. */
  async round(name: string, steps: readonly Step[], faults: readonly PlannedFault[]): Promise<Found> {
    this.#descriptors ??= descriptorsOf(this.node.pid).length;
    const round = new Round(this.node, name, this.#descriptors);
    this.#losesOutput ||= faults.some(({ name: fault }) => fault === 'disk full');
    const over = new AbortController();
    const late = sleep(ROUND_LIMIT_MS, 'late', { signal: over.signal }).catch(() => '');
    const first = await Promise.race([round.run(steps, faults), late]).finally(() => over.abort());
    if (first === 'late') throw new Error(`not over within ${ROUND_LIMIT_MS} ms`);
    return { executions: round.executions, violations: round.violations };
  }

  /** I4: the neighbours are as if nothing had been. I5: the last daemon leaves nothing. To be called once, last. */
  async end(): Promise<Found> {
    const violations: string[] = [];
    const { node } = this;
    const round = new Round(node, SESSION);
    for (const engine of ENGINES) {
      try {
        violations.push(...(await this.#endOf(round, engine)));
      } catch (error) {
        violations.push(`I4 ${engine}: ${(error as Error).message}`);
      }
    }
    await round.persistently((client) => client.deleteSession(SESSION));
    await node.restart({ ...this.#config, onStop: 'stop' });
    const { daemonPids } = node;
    await node.end('SIGTERM');
    const groups = node.controlGroups();
    if (groups.length > 0) violations.push(`I5 control groups of ${daemonPids.length} daemons are left: ${groups}`);
    return { executions: ENGINES.length, violations };
  }

  async #endOf(round: Round, language: string): Promise<string[]> {
    const violations: string[] = [];
    // A guest that writes sees that the disk is full, and may end by it.
    if (this.#losesOutput) return violations;
    await round.persistently((client) => client.writeInput(SESSION, language, Buffer.from('end\n')));
    const { result } = await round.persistently((client) => client.wait(SESSION, language, { timeoutMs: 60_000 }));
    if (result?.reason !== 'failed' || result.exitCode !== 7) {
      violations.push(`I4 neighbour ${language} ended ${JSON.stringify(result)}`);
    }
    const states = await round.persistently((client) => Array.fromAsync(client.watchExecution(SESSION, language)));
    const steps = states.map(({ state }) => state).join(' ');
    if (steps !== 'pending running exited') violations.push(`I4 neighbour ${language} was ${steps}`);
    const text = await round.persistently((client) => stdoutOf(client.streamOutput(SESSION, language)));
    for (const wrong of wrongInOutput('ticks', text, true)) violations.push(`I4 neighbour ${language}: ${wrong}`);
    return violations;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node[Symbol.asyncDispose]();
  }
}

async function stdoutOf(output: AsyncIterable<{ stream: string; data: Buffer }>): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const { stream, data } of output) if (stream === 'stdout') chunks.push(data);
  return Buffer.concat(chunks).toString();
}
