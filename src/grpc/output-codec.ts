import { StreamExecutionOutputResponse } from '../gen/elide/daemon/v1alpha1/execution_api.ts';

/** Field 2, `data`, length-delimited. */
const DATA_TAG = 0x12;
/** A varint of 32 bits has at most this many bytes. */
const LONGEST_VARINT = 5;

/**
 * Serializes a chunk of output with one copy of its bytes; the generated code makes three, which is most of what a
 * stream of output costs. The fields of a message may come in any order, so `data` goes last.
 */
export function serializeOutput(response: StreamExecutionOutputResponse): Buffer {
  const { data, ...rest } = response;
  const head = StreamExecutionOutputResponse.encode({ ...rest, data: EMPTY }).finish();
  const message = Buffer.allocUnsafe(head.byteLength + 1 + LONGEST_VARINT + data.byteLength);
  message.set(head);
  let at = head.byteLength;
  message[at++] = DATA_TAG;
  let length = data.byteLength;
  for (; length > 0x7f; length >>>= 7) message[at++] = (length & 0x7f) | 0x80;
  message[at++] = length;
  message.set(data, at);
  return message.subarray(0, at + data.byteLength);
}

const EMPTY = Buffer.alloc(0);
