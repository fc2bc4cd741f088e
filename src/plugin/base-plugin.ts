import { type BasePluginServer, BasePluginService, type ClientTopology, PluginType } from '../gen/nomad/base.ts';
import { CapabilitiesResponse, DriverCapabilities_MountConfigs as Mounts } from '../gen/nomad/driver.ts';
import type { Configuration } from './hclspec.ts';
import { unary } from './rpc.ts';
import type { Handshake } from './serve.ts';

/** By which a Nomad agent and its drivers know each other. */
export const NOMAD: Omit<Handshake, 'hint'> = {
  cookie: {
    name: 'NOMAD_PLUGIN_MAGIC_COOKIE',
    value: 'e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255',
  },
  protocolVersion: 2,
};

/** What every Nomad driver says of itself. */
export interface DriverInfo<T> {
  name: string;
  version: string;
  configuration: Configuration<T>;
  /**
   * The last call wins. Without a topology the agent only checks a configuration: nothing is to be started. `wrong` says
   * which fields are left out as wrong: an error would keep the whole agent from starting, and let its tasks down.
   */
  configure(config: T, wrong: string | undefined, topology: ClientTopology | undefined): void;
}

/** Who a driver is and how it is configured. */
export function basePlugin<T>(driver: DriverInfo<T>): { service: typeof BasePluginService; server: BasePluginServer } {
  const { name, version: pluginVersion, configuration } = driver;
  const info = { type: PluginType.DRIVER, pluginApiVersions: ['v0.1.0'], pluginVersion, name };
  const server: BasePluginServer = {
    pluginInfo: unary(async () => info),
    configSchema: unary(async () => ({ spec: configuration.spec })),
    setConfig: unary(async ({ msgpackConfig, nomadConfig }) => {
      const { config, wrong } = configuration.decodeRest(msgpackConfig);
      driver.configure(config, wrong, nomadConfig?.driver?.topology);
      return {};
    }),
  };
  return { service: BasePluginService, server };
}

/** Of a driver that signals tasks and runs commands beside them, on the host's network; `collectsLogs`: the agent is to. */
export function capabilitiesOf({ collectsLogs }: { collectsLogs: boolean }): CapabilitiesResponse {
  const offered = {
    sendSignals: true,
    exec: true,
    networkIsolationModes: [0 as const],
    mountConfigs: Mounts.NO_MOUNTS,
  };
  return CapabilitiesResponse.fromPartial({ capabilities: { ...offered, disableLogCollection: !collectsLogs } });
}

/** Of all cores together by their number, in MHz; 0 where the agent does not know. */
export function coreSpeedMhz(topology: ClientTopology | undefined): number {
  const cores = topology?.cores ?? [];
  const speeds = cores.map(({ baseSpeed, maxSpeed, guessSpeed }) => Number(baseSpeed || maxSpeed || guessSpeed));
  const total = Number(topology?.overrideTotalCompute) || speeds.reduce((sum, speed) => sum + speed, 0);
  return total / Math.max(1, cores.length);
}
