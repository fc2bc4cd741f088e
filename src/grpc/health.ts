import { EventEmitter } from 'node:events';
import { type Server, status } from '@grpc/grpc-js';
import {
  type HealthCheckRequest,
  type HealthServer,
  HealthService,
  HealthCheckResponse_ServingStatus as ServingStatus,
} from '../gen/grpc/health/v1/health.ts';
import { statusText } from '../wire/status-text.ts';
import { type Implementation, tolerant } from './handlers.ts';

/** `grpc.health.v1`: serving until the daemon begins to stop. */
export class Health {
  readonly #services: ReadonlySet<string>;
  readonly #changes = new EventEmitter<{ change: [] }>().setMaxListeners(0);
  #serving = true;

  /** `services` are full names; the empty name, the server as a whole, is always known. */
  constructor(services: string[]) {
    this.#services = new Set(['', ...services]);
  }

  addTo(server: Server): void {
    const implementation: HealthServer = {
      check: ({ request: { service } }, callback) => {
        if (this.#services.has(service)) callback(null, { status: this.#status(service) });
        else callback({ code: status.NOT_FOUND, details: statusText(`unknown service "${service}"`) });
      },
      watch: (call) => {
        const { service } = call.request as HealthCheckRequest;
        const tell = () => call.write({ status: this.#status(service) });
        this.#changes.on('change', tell);
        call.on('cancelled', () => this.#changes.off('change', tell));
        tell();
      },
    };
    server.addService(tolerant(HealthService), implementation as unknown as Implementation);
  }

  /** From now on nothing is serving. */
  stopServing(): void {
    if (!this.#serving) return;
    this.#serving = false;
    this.#changes.emit('change');
  }

  #status(service: string): ServingStatus {
    if (!this.#services.has(service)) return ServingStatus.SERVICE_UNKNOWN;
    return this.#serving ? ServingStatus.SERVING : ServingStatus.NOT_SERVING;
  }
}
