import { chmod, lstat, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import type { CheckedConfig } from '../config.ts';
import type { BoundServer, Daemon } from '../daemon.ts';
import { StartupError } from '../errors.ts';
import { ExecutionApiService } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { PROTO_IMAGE } from '../package-root.ts';
import { checkSocketPath } from '../state-directory.ts';
import { beginsOnlyOpenCalls } from '../wire/calls.ts';
import { tendStreams } from './call-streams.ts';
import { executionService } from './execution-service.ts';
import { Handlers, type Implementation, tolerant } from './handlers.ts';
import { Health } from './health.ts';
import { serializeOutput } from './output-codec.ts';
import { addReflection } from './reflection.ts';
import { decodeSnippet } from './snippet-codec.ts';
import { tcpCredentials } from './tcp-credentials.ts';

/** What a request needs beside its code. */
const ENVELOPE_BYTES = 16 * 1024 * 1024;
/** How many calls of one connection may be open at a time: a Nomad driver has a few for each of its tasks. */
const MOST_OPEN_CALLS = 10_000;
/** How long open calls may take to end when the server closes, in ms. */
const CLOSE_LIMIT_MS = 1_000;
/** How often the socket's file is looked for, in ms. */
const LOOK_MS = 1_000;
const SERVICE_NAME = 'elide.daemon.v1alpha1.ExecutionApi';
const REFLECTED = [SERVICE_NAME, 'grpc.health.v1.Health', 'grpc.reflection.v1.ServerReflection'];

/** Serves the daemon's API, health and reflection on the configured socket and address. */
export async function serve(daemon: Daemon, config: CheckedConfig, log: Logger): Promise<BoundServer> {
  const server = new Server({
    'grpc.max_receive_message_length': config.maxCodeBytes + ENVELOPE_BYTES,
    'grpc.max_concurrent_streams': MOST_OPEN_CALLS,
    'grpc.keepalive_time_ms': config.keepaliveMs,
    'grpc.keepalive_timeout_ms': config.keepaliveMs,
    interceptors: [beginsOnlyOpenCalls],
  });
  const implementation = executionService(daemon, new Handlers(log));
  const service = {
    ...ExecutionApiService,
    executeSnippet: { ...ExecutionApiService.executeSnippet, requestDeserialize: decodeSnippet },
    streamExecutionOutput: { ...ExecutionApiService.streamExecutionOutput, responseSerialize: serializeOutput },
  };
  server.addService(tolerant(service), implementation as unknown as Implementation);
  const health = new Health([SERVICE_NAME]);
  health.addTo(server);
  addReflection(server, PROTO_IMAGE, REFLECTED);
  try {
    const credentials = tcpCredentials(config, log);
    const socket = config.socket === false ? undefined : await listenUnix(server, config.socket);
    const tcp = config.tcp === undefined ? undefined : await listenTcp(server, config.tcp, credentials);
    const watched = socket === undefined ? undefined : keepUnix(server, socket, log);
    const end = () => {
      clearInterval(watched);
      return close(server, socket);
    };
    return { endpoints: { socket, tcp }, stopServing: () => health.stopServing(), close: end };
  } catch (error) {
    server.forceShutdown();
    throw error;
  }
}

async function listenUnix(server: Server, path: string): Promise<string> {
  checkSocketPath(path);
  await removeStale(path);
  await bind(server, `unix:${path}`, `socket ${path}`, ServerCredentials.createInsecure());
  await chmod(path, 0o600);
  return path;
}

/** Listens again when the socket's file was removed, as whoever tidies up `/tmp` does: nobody could connect any more. */
function keepUnix(server: Server, path: string, log: Logger): NodeJS.Timeout {
  let listens = true;
  const look = async () => {
    if (!listens || (await lstat(path).catch(() => undefined)) !== undefined) return;
    listens = false;
    server.unbind(`unix:${path}`);
    await listenUnix(server, path).then(
      () => log.warn(`socket ${path} was removed; it is there again`),
      (error: Error) => log.error(error.message),
    );
    listens = true;
  };
  return setInterval(look, LOOK_MS).unref();
}

async function listenTcp(server: Server, address: string, credentials: ServerCredentials): Promise<string> {
  const port = await bind(server, address, `address ${address}`, credentials);
  return address.replace(/:\d+$/, `:${port}`);
}

async function bind(server: Server, target: string, name: string, credentials: ServerCredentials): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  server.bindAsync(target, credentials, (error, port) => {
    if (error === null) {
      tendStreams(server);
      resolve(port);
    } else reject(new StartupError(`${name} cannot be listened on: ${error.message}`, { cause: error }));
  });
  return promise;
}

/** Removes a socket that nobody answers on. One that answers, and what is no socket, is never replaced. */
async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined) return;
  if (!found.isSocket()) throw new StartupError(`${path} is there and is no socket; it is not replaced`);
  if (await answers(path)) throw new StartupError(`another daemon answers on ${path}`);
  await rm(path, { force: true });
}

function answers(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect(path);
  socket.once('connect', () => resolve(true));
  socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
  return promise.finally(() => socket.destroy());
}

async function close(server: Server, socket: string | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(() => {
    server.forceShutdown();
    resolve();
  }, CLOSE_LIMIT_MS);
  server.tryShutdown(() => resolve());
  await promise;
  clearTimeout(timer);
  if (socket !== undefined) await rm(socket, { force: true });
}
