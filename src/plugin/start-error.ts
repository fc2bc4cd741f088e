import { Metadata, status } from '@grpc/grpc-js';
import { RpcStatus } from '../gen/nomad/errors.ts';
import { statusText } from '../wire/status-text.ts';
import type { RpcError } from './rpc.ts';

const DETAIL = 'type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError';

/** Why a task did not start; `recoverable`: the restart policy is to try again. */
export class StartError extends Error implements RpcError {
  readonly recoverable: boolean;

  constructor(error: unknown, recoverable: boolean) {
    super(statusText((error as Error).message), { cause: error });
    this.recoverable = recoverable;
  }

  rpcStatus() {
    const { message } = this;
    const code = this.recoverable ? status.FAILED_PRECONDITION : status.UNKNOWN;
    const metadata = new Metadata();
    const details = [{ typeUrl: DETAIL, value: { recoverable: this.recoverable } }];
    metadata.set('grpc-status-details-bin', Buffer.from(RpcStatus.encode({ code, message, details }).finish()));
    return { code, details: message, metadata };
  }
}
