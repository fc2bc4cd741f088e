import { once } from 'node:events';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { credentials, Server, ServerCredentials } from '@grpc/grpc-js';
import { expect, onTestFinished, test, vi } from 'vitest';
import {
  type HealthCheckRequest,
  type HealthCheckResponse,
  HealthCheckResponse_ServingStatus,
  HealthClient,
} from '../../src/gen/grpc/health/v1/health.ts';
import {
  ServerReflectionClient,
  ServerReflectionRequest,
  type ServerReflectionResponse,
  ServerReflectionService,
} from '../../src/gen/grpc/reflection/v1/reflection.ts';
import { Health } from '../../src/grpc/health.ts';
import { addReflection } from '../../src/grpc/reflection.ts';
import { PROTO_IMAGE } from '../../src/package-root.ts';
import { all } from '../support/client.ts';
import { temporaryDirectory } from '../support/daemon.ts';

const SERVICE = 'grpc.health.v1.Health';
const REQUESTS = 1_000;
/** So that they are more than HTTP/2 lets through unread. */
const HOST_LENGTH = 2_000;

/** A server of health and reflection, and clients of it on connections of their own. */
async function served(imagePath: string) {
  const server = new Server();
  new Health([]).addTo(server);
  addReflection(server, imagePath, [SERVICE]);
  const port = await promisify(server.bindAsync.bind(server))('127.0.0.1:0', ServerCredentials.createInsecure());
  const options = { 'grpc.use_local_subchannel_pool': 1 };
  const reflection = new ServerReflectionClient(`127.0.0.1:${port}`, credentials.createInsecure(), options);
  const health = new HealthClient(`127.0.0.1:${port}`, credentials.createInsecure(), options);
  onTestFinished(() => {
    reflection.close();
    health.close();
    server.forceShutdown();
  });
  const check = promisify<HealthCheckRequest, HealthCheckResponse>(health.check.bind(health));
  return { reflection, check };
}

function asked(symbol: string, host = ''): ServerReflectionRequest {
  return ServerReflectionRequest.fromPartial({
    host,
    messageRequest: { $case: 'fileContainingSymbol', value: symbol },
  });
}

test('reflection that cannot read its descriptors says so, harms no other call, and can read them later', async () => {
  const imagePath = join(temporaryDirectory(), 'image.binpb');
  const { reflection, check } = await served(imagePath);
  const describe = async () => {
    const call = reflection.serverReflectionInfo();
    call.end(asked(SERVICE));
    return (await all<ServerReflectionResponse>(call)).map(({ messageResponse }) => messageResponse);
  };

  const missing = await describe();
  const { status } = await check({ service: '' });
  copyFileSync(PROTO_IMAGE, imagePath);
  const found = await describe();

  expect(missing).toMatchObject([
    { $case: 'errorResponse', value: { errorMessage: expect.stringContaining('ENOENT') } },
  ]);
  expect(status).toBe(HealthCheckResponse_ServingStatus.SERVING);
  expect(found).toMatchObject([{ $case: 'fileDescriptorResponse' }]);
});

test('of a reflection stream no more is taken in than its reader leaves room for, and all of it once it is read', async () => {
  const taken = vi.spyOn(ServerReflectionService.serverReflectionInfo, 'requestDeserialize');
  const { reflection, check } = await served(PROTO_IMAGE);
  vi.restoreAllMocks();
  const hosts = Array.from({ length: REQUESTS }, (_, index) => String(index).padEnd(HOST_LENGTH));

  const call = reflection.serverReflectionInfo().pause();
  for (const host of hosts) call.write(asked(SERVICE, host));
  call.end();
  await once(call, 'readable');
  // Until no more are taken in while another connection is served.
  let unread = 0;
  for (let checks = 0; checks < 20; checks += 1) {
    await check({ service: '' });
    if (taken.mock.calls.length > unread) checks = 0;
    unread = taken.mock.calls.length;
  }
  const answers = await all<ServerReflectionResponse>(call);

  expect(unread).toBeLessThan(REQUESTS / 4);
  expect(answers.map(({ validHost }) => validHost)).toEqual(hosts);
  for (const { messageResponse } of answers) expect(messageResponse).toEqual(answers[0]?.messageResponse);
  expect(answers[0]?.messageResponse?.$case).toBe('fileDescriptorResponse');
});
