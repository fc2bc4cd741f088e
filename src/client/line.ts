import { connectivityState, type Metadata } from '@grpc/grpc-js';
import { UnauthenticatedError } from '../errors.ts';
import { ExecutionApiClient } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { type Connection, connectionOf, type DaemonAddress } from './connection.ts';

/** How often a connection is tried at least, in ms. */
export const RECONNECT_MS = 500;
const WINDOW_BYTES = 8 * 1024 * 1024;

/** A gRPC client, and what each of its calls carries; whoever makes a call holds it until the call has ended. */
export class Line {
  readonly api: ExecutionApiClient;
  readonly metadata: Metadata;
  #calls = 0;
  #retired: (() => void) | undefined;
  #isClosed = false;
  #giveUp: NodeJS.Timeout | undefined;

  /** Reads the files of credentials, unless that was done; throws an `UnauthenticatedError` when they cannot be used. */
  constructor(address: DaemonAddress, connection: Connection = usable(() => connectionOf(address))) {
    const { target, credentials, options, metadata, limitMs } = connection;
    this.metadata = metadata;
    this.api = new ExecutionApiClient(target, credentials, {
      ...options,
      // Between a daemon and its clients there is no proxy, whatever the environment says.
      'grpc.enable_http_proxy': 0,
      // A page of executions with long names is more than the default of 4 MiB.
      'grpc.max_receive_message_length': -1,
      // A daemon that comes back is found at once, however long it was away.
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': RECONNECT_MS,
      // Connections of its own: another client of this process may have just failed to find a daemon.
      'grpc.use_local_subchannel_pool': 1,
      // How much output may be on its way: with HTTP/2's own 64 KiB, each read of the daemon's would wait for an answer.
      'grpc-node.flow_control_window': WINDOW_BYTES,
    });
    if (limitMs) this.#watch(limitMs);
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Somebody is there. */
  get isConnected(): boolean {
    return !this.#isClosed && this.api.getChannel().getConnectivityState(false) === connectivityState.READY;
  }

  hold(): void {
    this.#calls += 1;
  }

  release(): void {
    this.#calls -= 1;
    this.#closeUnused();
  }

  /** Closes it once nobody holds it, and says so: calls that are open would be told that their channel is closed. */
  retire(onClosed: () => void): void {
    this.#retired = onClosed;
    this.#closeUnused();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#giveUp);
    this.#retired?.();
    this.#retired = undefined;
    this.api.close();
  }

  #closeUnused(): void {
    if (this.#retired !== undefined && this.#calls === 0) this.close();
  }

  /** Closes it where it leads nowhere for so long: for whoever takes a connection and says nothing gRPC waits without end. */
  #watch(limitMs: number): void {
    if (this.#isClosed) return;
    const channel = this.api.getChannel();
    const state = channel.getConnectivityState(false);
    if (state === connectivityState.IDLE || state === connectivityState.READY) {
      clearTimeout(this.#giveUp);
      this.#giveUp = undefined;
    } else {
      this.#giveUp ??= setTimeout(() => this.close(), limitMs).unref();
    }
    channel.watchConnectivityState(state, Number.POSITIVE_INFINITY, () => this.#watch(limitMs));
  }
}

/** What is wrong with a file is wrong with the credentials, until the file is another. */
function usable<T>(make: () => T): T {
  try {
    return make();
  } catch (error) {
    throw new UnauthenticatedError((error as Error).message, { cause: error });
  }
}
