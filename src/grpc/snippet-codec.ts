import { BinaryReader } from '@bufbuild/protobuf/wire';
import { ExecuteSnippetRequest } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { checkEntries } from '../supervisor/argument-types.ts';

const ENV_FIELD = 5;
const ARGS_FIELD = 6;

/** Decodes a request to execute, once it is sure to have no more entries than are allowed: to decode them would take long. */
export function decodeSnippet(input: BinaryReader | Uint8Array): ExecuteSnippetRequest {
  const reader = input instanceof BinaryReader ? input : new BinaryReader(input);
  const begin = reader.pos;
  const found = { args: 0, env: 0 };
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === ARGS_FIELD) checkEntries(++found.args, 'args');
    if (field === ENV_FIELD) checkEntries(++found.env, 'env');
    reader.skip(type, field);
  }
  reader.pos = begin;
  return ExecuteSnippetRequest.decode(reader);
}
