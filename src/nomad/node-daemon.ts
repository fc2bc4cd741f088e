import { hostname } from 'node:os';
import { DaemonClient, DaemonSpawner, executeCut, MetricsFeed, presence, UnreachableError } from '../client/index.ts';
import { NotFoundError } from '../errors.ts';
import type { ClientTopology } from '../gen/nomad/base.ts';
import { type FingerprintResponse, FingerprintResponse_HealthState as Health } from '../gen/nomad/driver.ts';
import { attributesOf } from '../plugin/attributes.ts';
import { coreSpeedMhz } from '../plugin/base-plugin.ts';
import { addressOf, contradictionIn, sessionOf } from '../plugin/daemon-settings.ts';
import { type Fingerprint, fingerprints } from '../plugin/fingerprint.ts';
import { log } from '../plugin/log.ts';
import type { Snippet } from '../supervisor/requests.ts';
import type { PluginConfig } from './configuration.ts';

/** How long the daemon may take for each answer when it is looked at. */
const HEALTH_LIMIT = { deadlineMs: 5_000 };

/** What a look at the daemon finds; `present`: the session, when there is one. */
type Found = Fingerprint & { present: string | undefined };

/** The daemon of this node, and the driver's one session there. */
export class NodeDaemon {
  config: PluginConfig = {} as PluginConfig;
  /** Why nothing new is taken: that is configured, or the configuration is wrong. */
  closed: string | undefined;
  coreSpeedMhz = 0;
  #client: DaemonClient | undefined;
  readonly metrics = new MetricsFeed(() => this.client);
  readonly #spawner = new DaemonSpawner();
  /** Only the instance that is to stay is told of its node; the others start nothing. */
  #stays = false;
  /** The session is not as configured: tasks ran in it when that was to be. */
  #isOutdated = false;

  configure(config: PluginConfig, wrong: string | undefined, topology: ClientTopology | undefined): void {
    this.config = config;
    this.closed = config.enabled === false ? 'disabled' : (wrong ?? contradictionIn(config));
    this.coreSpeedMhz = coreSpeedMhz(topology);
    this.#stays ||= topology !== undefined;
    // Not closed: tasks go on being followed by it. Half an hour after them it has no connection.
    this.#client = undefined;
  }

  get address() {
    return addressOf(this.config);
  }

  get client(): DaemonClient {
    this.#client ??= new DaemonClient(this.address);
    return this.#client;
  }

  get sessionId(): string {
    return this.config.session_id || `nomad-${hostname() || 'unknown'}`;
  }

  /** Hands in a snippet, in a session that may have to be made for it; as `executeCut` does. */
  async execute(snippet: Snippet, signal: AbortSignal): Promise<Snippet> {
    if (this.#isOutdated) await this.#openSession();
    const execute = () => executeCut(this.client, snippet, signal);
    return execute().catch((error) => {
      if (!(error instanceof NotFoundError)) throw error;
      return this.#openSession().then(execute);
    });
  }

  /** How it stands with the driver, at once and with every change. */
  fingerprint(signal: AbortSignal): AsyncGenerator<FingerprintResponse> {
    const client = () => this.client;
    const look = () => this.#look();
    return fingerprints('elide', presence(client, look, signal));
  }

  async #look(): Promise<Found> {
    const absent = (health: Health, healthDescription: string) => ({ present: undefined, health, healthDescription });
    if (this.config.enabled === false) return absent(Health.UNDETECTED, 'disabled');
    if (this.closed !== undefined) return absent(Health.UNHEALTHY, this.closed);
    try {
      const daemon = await this.client.health(HEALTH_LIMIT);
      if (!daemon.healthy) return absent(Health.UNHEALTHY, 'the daemon is stopping');
      await this.#openSession(HEALTH_LIMIT);
      const attributes = await attributesOf(this.client, this.sessionId, daemon, HEALTH_LIMIT);
      return { present: this.sessionId, health: Health.HEALTHY, healthDescription: 'Healthy', attributes };
    } catch (error) {
      const { message } = error as Error;
      if (!(error instanceof UnreachableError)) return absent(Health.UNHEALTHY, message);
      return absent(Health.UNDETECTED, this.#spawn() ?? message);
    }
  }

  async #openSession(limit?: typeof HEALTH_LIMIT): Promise<void> {
    const wasOutdated = this.#isOutdated;
    this.#isOutdated = !(await this.client.openSession(this.sessionId, sessionOf(this.config.session_config), limit));
    if (!this.#isOutdated || wasOutdated) return;
    log('warn', `session "${this.sessionId}" keeps its configuration while tasks run in it`);
  }

  /** Starts a daemon where that is configured; answers with what to say of it. */
  #spawn(): string | undefined {
    const { address, config } = this;
    const { daemon, daemon_path: path, daemon_args: args = [] } = config;
    if (daemon !== 'spawn' || !path || 'tcp' in address || !this.#stays) return undefined;
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(PLUGIN|NOMAD)_/.test(name)));
    return this.#spawner.spawn(path, ['--socket', address.socket, ...args], env);
  }
}
