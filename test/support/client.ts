import { promisify } from 'node:util';
import { type ChannelOptions, type ClientReadableStream, credentials, type ServiceError, status } from '@grpc/grpc-js';
import {
  type ExecuteSnippetRequest,
  ExecutionApiClient,
  ExecutionConfiguration,
  type GetExecutionStatusResponse,
  SessionConfiguration,
} from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';

type Unary<Req, Res> = (request: Req, callback: (error: ServiceError | null, response: Res) => void) => unknown;

/** The calls that an error of a call names by code. */
export interface CallError {
  code: keyof typeof status;
  details: string;
}

/** A request to execute: JavaScript without arguments and environment unless it says. */
export type SnippetRequest = Pick<ExecuteSnippetRequest, 'sessionId' | 'executionId' | 'code'> &
  Partial<Omit<ExecuteSnippetRequest, 'config'>> & { config?: Partial<ExecutionConfiguration> };

/** A gRPC client of its own connection, with promises and plain defaults. */
export class TestClient implements AsyncDisposable {
  readonly api: ExecutionApiClient;

  constructor(target: string, options: ChannelOptions = {}) {
    this.api = new ExecutionApiClient(target, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.max_send_message_length': -1,
      ...options,
    });
  }

  /** Calls a unary method by its name; rejects with a {@link CallError}. */
  async call<Req, Res>(method: { [K in keyof ExecutionApiClient]: K }[keyof ExecutionApiClient], request: Req) {
    const unary = (this.api[method] as unknown as Unary<Req, Res>).bind(this.api);
    try {
      return await promisify(unary)(request);
    } catch (error) {
      const { code, details } = error as ServiceError;
      throw Object.assign(new Error(`${status[code]}: ${details}`), { code: status[code], details });
    }
  }

  async createSession(sessionId: string, config?: Partial<SessionConfiguration>) {
    return this.call('createSession', {
      sessionId,
      config: config && SessionConfiguration.fromPartial(config),
    });
  }

  async execute(request: SnippetRequest) {
    const config = request.config && ExecutionConfiguration.fromPartial(request.config);
    return this.call('executeSnippet', { language: 'javascript', env: {}, args: [], ...request, config });
  }

  async status(sessionId: string, executionId: string): Promise<GetExecutionStatusResponse> {
    return (await this.call('getExecutionStatus', { sessionId, executionId })) as GetExecutionStatusResponse;
  }

  /** Waits for the end, then asks for the status. */
  async ended(sessionId: string, executionId: string): Promise<GetExecutionStatusResponse> {
    await this.call('waitExecution', { sessionId, executionId });
    return this.status(sessionId, executionId);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.api.close();
  }
}

/** Everything a stream yields. */
export async function all<T>(stream: ClientReadableStream<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const message of stream) found.push(message as T);
  return found;
}
