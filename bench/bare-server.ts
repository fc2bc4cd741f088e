import { Server, ServerCredentials } from '@grpc/grpc-js';
import { HealthService } from '../src/gen/grpc/health/v1/health.ts';

type Check = { request: { service: string } };
type Answer = (error: null, reply: { status: number }) => void;

/** A process with nothing but a unary call that answers at once, and sends SIGTERM to the process it names: `bare-server SOCKET`. */
const server = new Server();
server.addService(HealthService, {
  check: ({ request: { service } }: Check, answer: Answer) => {
    if (service !== '') process.kill(Number(service), 'SIGTERM');
    answer(null, { status: 1 });
  },
  watch: () => {},
});
server.bindAsync(`unix:${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  process.stdout.write('ready\n');
});
