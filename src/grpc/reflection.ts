import { readFileSync } from 'node:fs';
import type { Server } from '@grpc/grpc-js';
import { loadFileDescriptorSetFromBuffer } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';

const PUBLIC_SERVICES = ['elide.daemon.v1alpha1.ExecutionApi'];

/** Serves gRPC reflection, so that a client without our proto files can list and call the API. */
export function addReflection(server: Server, imagePath: string): void {
  const definitions = loadFileDescriptorSetFromBuffer(readFileSync(imagePath));
  new ReflectionService(definitions, { services: PUBLIC_SERVICES }).addToServer(server);
}
