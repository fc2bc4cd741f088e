import { readFile } from 'node:fs/promises';
import { type Server, status } from '@grpc/grpc-js';
import {
  type ServerReflectionRequest,
  type ServerReflectionResponse,
  type ServerReflectionServer,
  ServerReflectionService,
} from '../gen/grpc/reflection/v1/reflection.ts';
import { leavingOf, pump } from '../wire/calls.ts';
import type { Implementation } from './handlers.ts';

type Answer = NonNullable<ServerReflectionResponse['messageResponse']>;

/** Answers reflection requests from the descriptors that buf built of our own proto files. */
interface Descriptors {
  answer(request: ServerReflectionRequest['messageRequest']): Answer;
}

/**
 * Serves gRPC reflection, so that a client without our proto files can list and call the API. The descriptors are read
 * when the first client asks: most daemons are never asked. While they cannot be read, each request is answered with that.
 */
export function addReflection(server: Server, imagePath: string, services: string[]): void {
  let loading: Promise<Descriptors> | undefined;
  const answer = async ({ messageRequest }: ServerReflectionRequest): Promise<Answer> => {
    try {
      loading ??= load(imagePath, services);
      return (await loading).answer(messageRequest);
    } catch (error) {
      // What this request did not find, the next one may.
      loading = undefined;
      return failure(status.UNAVAILABLE, (error as Error).message);
    }
  };
  const implementation: ServerReflectionServer = {
    serverReflectionInfo: (call) => {
      const answers = async function* (): AsyncGenerator<ServerReflectionResponse> {
        for await (const originalRequest of call.iterator({ destroyOnReturn: false })) {
          const messageResponse = await answer(originalRequest);
          yield { validHost: originalRequest.host, originalRequest, messageResponse };
        }
      };
      pump(call, answers(), leavingOf(call)).then(
        () => call.end(),
        // The call has broken.
        () => {},
      );
    },
  };
  // Tools of some age ask for the same messages by the older name of the service.
  for (const path of [undefined, '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo']) {
    const { serverReflectionInfo } = ServerReflectionService;
    const definition = { serverReflectionInfo: { ...serverReflectionInfo, path: path ?? serverReflectionInfo.path } };
    server.addService(definition, implementation as unknown as Implementation);
  }
}

async function load(imagePath: string, services: string[]): Promise<Descriptors> {
  const { createFileRegistry, fromBinary, toBinary } = await import('@bufbuild/protobuf');
  const { FileDescriptorProtoSchema, FileDescriptorSetSchema } = await import('@bufbuild/protobuf/wkt');
  const image = fromBinary(FileDescriptorSetSchema, await readFile(imagePath));
  const registry = createFileRegistry(image);
  const encoded = new Map(
    image.file.map((file) => [file.name, Buffer.from(toBinary(FileDescriptorProtoSchema, file))]),
  );

  /** A file and everything it imports, each once. */
  const withImports = (name: string, seen = new Map<string, Buffer>()): Map<string, Buffer> => {
    const bytes = encoded.get(name);
    if (bytes === undefined || seen.has(name)) return seen;
    seen.set(name, bytes);
    for (const dependency of registry.getFile(name)?.dependencies ?? []) withImports(dependency.proto.name, seen);
    return seen;
  };
  const files = (name: string | undefined, asked: string): Answer => {
    const found = name === undefined ? [] : [...withImports(name).values()];
    if (found.length === 0) return failure(status.NOT_FOUND, `nothing is called "${asked}" here`);
    return { $case: 'fileDescriptorResponse', value: { fileDescriptorProto: found } };
  };
  return {
    answer: (request) => {
      switch (request?.$case) {
        case 'listServices':
          return { $case: 'listServicesResponse', value: { service: services.map((name) => ({ name })) } };
        case 'fileByFilename':
          return files(request.value, request.value);
        case 'fileContainingSymbol': {
          // A method is asked for as SERVICE.METHOD, a field as MESSAGE.FIELD.
          const symbol = registry.get(request.value) ?? registry.get(request.value.replace(/\.[^.]*$/, ''));
          return files(symbol?.file.proto.name, request.value);
        }
        default:
          return failure(status.UNIMPLEMENTED, 'there are no extensions here');
      }
    },
  };
}

function failure(errorCode: status, errorMessage: string): Answer {
  return { $case: 'errorResponse', value: { errorCode, errorMessage } };
}
