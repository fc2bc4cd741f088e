import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { ExecuteSnippetRequest, ExecuteSnippetRequest_EnvEntry } from '../gen/elide/daemon/v1alpha1/execution_api.ts';
import { checkEntries, checkVariable } from '../supervisor/argument-types.ts';

const ENV_FIELD = 5;
const ARGS_FIELD = 6;

/**
 * Decodes a request to execute, once it was looked at for what is not to be decoded: more entries than are allowed, which
 * would take long, and a variable that the generated code would drop.
 */
export function decodeSnippet(input: BinaryReader | Uint8Array): ExecuteSnippetRequest {
  const reader = input instanceof BinaryReader ? input : new BinaryReader(input);
  const begin = reader.pos;
  const found = { args: 0, env: 0 };
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === ARGS_FIELD) checkEntries(++found.args, 'args');
    if (field === ENV_FIELD) checkEntries(++found.env, 'env');
    if (field === ENV_FIELD && type === WireType.LengthDelimited) {
      checkVariable(ExecuteSnippetRequest_EnvEntry.decode(reader, reader.uint32()).key);
    } else reader.skip(type, field);
  }
  reader.pos = begin;
  return ExecuteSnippetRequest.decode(reader);
}
