import { chmodSync, chownSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import {
  type HealthCheckResponse,
  HealthCheckResponse_ServingStatus,
  type HealthServer,
  HealthService,
} from '../gen/grpc/health/v1/health.ts';
import {
  type GRPCBrokerServer,
  GRPCBrokerService,
  type GRPCControllerServer,
  GRPCControllerService,
  type GRPCStdioServer,
  GRPCStdioService,
} from '../gen/nomad/go_plugin.ts';
import { beginsOnlyOpenCalls } from '../wire/calls.ts';
import { log } from './log.ts';

/** How long a host may take to end its calls before the process ends with them. It waits 2 s for that. */
const SHUTDOWN_LIMIT_MS = 250;

/**
 * How often a plugin looks for its host, in ms. One that has none two times in a row ends: the next host would have found
 * it by now, and starts another.
 */
const ORPHAN_LOOK_MS = 10_000;

/** Which hosts a plugin is for. */
export interface Handshake {
  /** The environment variable by which a host shows that it is one, and its value. */
  cookie: { name: string; value: string };
  /** The protocol of the host's application, not go-plugin's own. */
  protocolVersion: number;
  /** What to tell somebody who starts the plugin by hand. */
  hint: string;
}

/**
 * Serves a plugin to the host that started this process, by go-plugin's handshake: one line on standard output that
 * names a socket. Ends the process when the host says so, or when there is no host.
 */
export function servePlugin(handshake: Handshake, addServices: (server: Server) => void): void {
  const { name, value } = handshake.cookie;
  const { PLUGIN_PROTOCOL_VERSIONS = '', PLUGIN_UNIX_SOCKET_DIR, PLUGIN_UNIX_SOCKET_GROUP } = process.env;
  if (process.env[name] !== value) refuse(handshake.hint);
  if (!PLUGIN_PROTOCOL_VERSIONS.split(',').includes(String(handshake.protocolVersion))) {
    refuse(`the host speaks the protocols "${PLUGIN_PROTOCOL_VERSIONS}", this plugin ${handshake.protocolVersion}`);
  }
  // The host's terminal reaches its plugins too; and a host that is gone reads no log.
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => process.exit(0));
  // Node would open a debugger to whoever is on this machine.
  process.on('SIGUSR1', () => {});
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  process.on('unhandledRejection', (error) => log('error', 'unhandled rejection', { error: String(error) }));

  const socket = join(ownDirectory(PLUGIN_UNIX_SOCKET_DIR), 'socket');
  process.on('exit', () => rmSync(dirname(socket), { recursive: true, force: true }));
  // Nobody asks a plugin what it has sent on which channel.
  const server = new Server({
    'grpc.max_receive_message_length': -1,
    'grpc.enable_channelz': 0,
    interceptors: [beginsOnlyOpenCalls],
  });
  addServices(server);
  addOwnServices(server);
  server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => {
    if (error !== null) refuse(`${socket} cannot be listened on: ${error.message}`);
    if (PLUGIN_UNIX_SOCKET_GROUP) giveToGroup(socket, PLUGIN_UNIX_SOCKET_GROUP);
    process.stdout.write(`1|${handshake.protocolVersion}|unix|${socket}|grpc\n`);
  });
}

/** A new directory of its own, in the one that the host names, or among temporary files. */
function ownDirectory(named: string | undefined): string {
  try {
    return mkdtempSync(join(named || tmpdir(), 'plugin-'));
  } catch (error) {
    const [name, place] = named ? ['PLUGIN_UNIX_SOCKET_DIR', named] : ['TMPDIR', tmpdir()];
    refuse(`${name} ${place} cannot be used: ${(error as Error).message}`);
  }
}

function refuse(why: string): never {
  process.stderr.write(`${why}\n`);
  process.exit(1);
}

function addOwnServices(server: Server): void {
  const serving: HealthCheckResponse = { status: HealthCheckResponse_ServingStatus.SERVING };
  const health: HealthServer = {
    check: (_call, callback) => callback(null, serving),
    watch: (call) => void call.write(serving),
  };
  const controller: GRPCControllerServer = {
    shutdown: (_call, callback) => {
      callback(null, {});
      server.tryShutdown(() => process.exit(0));
      setTimeout(() => process.exit(0), SHUTDOWN_LIMIT_MS);
    },
  };
  // Both stay open and silent: as long as there is a host.
  const parent = process.ppid;
  let hosts = 0;
  let wasOrphan = false;
  setInterval(() => {
    const isOrphan = hosts === 0 && process.ppid !== parent;
    if (isOrphan && wasOrphan) process.exit(0);
    wasOrphan = isOrphan;
  }, ORPHAN_LOOK_MS);
  const stdio: GRPCStdioServer = {
    streamStdio: (call) => {
      hosts += 1;
      call.on('cancelled', () => {
        hosts -= 1;
      });
    },
  };
  const broker: GRPCBrokerServer = { startStream: (call) => void call.resume().on('end', () => call.end()) };
  server.addService(HealthService, health);
  server.addService(GRPCControllerService, controller);
  server.addService(GRPCStdioService, stdio);
  server.addService(GRPCBrokerService, broker);
}

/** By name or number: its members may speak to the plugin as well. */
function giveToGroup(socket: string, group: string): void {
  const line = new RegExp(`^${RegExp.escape(group)}:[^:]*:(\\d+):`, 'm').exec(readFileSync('/etc/group', 'utf8'));
  for (const path of [dirname(socket), socket]) {
    chownSync(path, -1, Number(line?.[1] ?? group));
    chmodSync(path, path === socket ? 0o660 : 0o710);
  }
}
