import { Server, ServerCredentials } from '@grpc/grpc-js';
import { HealthService } from '../src/gen/grpc/health/v1/health.ts';
import { BareThread } from './bare-thread.ts';

type Check = { request: { service: string } };
type Answer = (error: null, reply: { status: number }) => void;

let thread: BareThread | undefined;

/**
 * A process with nothing but a unary call: `bare-server SOCKET`. It sends SIGTERM to the process that is named, has a
 * `thread` ready, or lets that `leave` and waits until it has; with no name it answers at once.
 */
const server = new Server();
server.addService(HealthService, {
  check: async ({ request: { service } }: Check, answer: Answer) => {
    if (service === 'thread') {
      thread = await BareThread.start();
    } else if (service === 'leave') {
      await thread?.leave();
    } else if (service !== '') {
      process.kill(Number(service), 'SIGTERM');
    }
    answer(null, { status: 1 });
  },
  watch: () => {},
});
server.bindAsync(`unix:${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  process.stdout.write('ready\n');
});
