import { Server, ServerCredentials } from '@grpc/grpc-js';
import { HealthService } from '../src/gen/grpc/health/v1/health.ts';

/** A process with nothing but a unary call that answers at once: `bare-server SOCKET`. */
const server = new Server();
server.addService(HealthService, {
  check: (_: unknown, answer: (error: null, reply: { status: number }) => void) => answer(null, { status: 1 }),
  watch: () => {},
});
server.bindAsync(`unix:${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  process.stdout.write('ready\n');
});
