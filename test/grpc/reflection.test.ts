import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { credentials, Server, ServerCredentials } from '@grpc/grpc-js';
import { expect, test } from 'vitest';
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
} from '../../src/gen/grpc/reflection/v1/reflection.ts';
import { Health } from '../../src/grpc/health.ts';
import { addReflection } from '../../src/grpc/reflection.ts';
import { PROTO_IMAGE } from '../../src/package-root.ts';
import { all } from '../support/client.ts';
import { temporaryDirectory } from '../support/daemon.ts';

const SERVICE = 'grpc.health.v1.Health';

test('reflection that cannot read its descriptors says so, harms no other call, and can read them later', async () => {
  const imagePath = join(temporaryDirectory(), 'image.binpb');
  const server = new Server();
  new Health([]).addTo(server);
  addReflection(server, imagePath, [SERVICE]);
  const port = await promisify(server.bindAsync.bind(server))('127.0.0.1:0', ServerCredentials.createInsecure());
  const reflection = new ServerReflectionClient(`127.0.0.1:${port}`, credentials.createInsecure());
  const health = new HealthClient(`127.0.0.1:${port}`, credentials.createInsecure());
  const check = promisify<HealthCheckRequest, HealthCheckResponse>(health.check.bind(health));
  const describe = async () => {
    const call = reflection.serverReflectionInfo();
    call.write(
      ServerReflectionRequest.fromPartial({ messageRequest: { $case: 'fileContainingSymbol', value: SERVICE } }),
    );
    call.end();
    return (await all<ServerReflectionResponse>(call)).map(({ messageResponse }) => messageResponse);
  };

  const missing = await describe();
  const { status } = await check({ service: '' });
  copyFileSync(PROTO_IMAGE, imagePath);
  const found = await describe();
  reflection.close();
  health.close();
  server.forceShutdown();

  expect(missing).toMatchObject([
    { $case: 'errorResponse', value: { errorMessage: expect.stringContaining('ENOENT') } },
  ]);
  expect(status).toBe(HealthCheckResponse_ServingStatus.SERVING);
  expect(found).toMatchObject([{ $case: 'fileDescriptorResponse' }]);
});
