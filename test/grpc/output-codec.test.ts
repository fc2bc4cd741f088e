import { expect, test } from 'vitest';
import { StreamExecutionOutputResponse } from '../../src/gen/elide/daemon/v1alpha1/execution_api.ts';
import { serializeOutput } from '../../src/grpc/output-codec.ts';

/** Around each length at which the length itself takes another byte. */
const LENGTHS = [0, 1, 127, 128, 129, 255, 256, 16_383, 16_384, 2_097_151, 2_097_152];

test.each(LENGTHS)('a chunk of %i bytes arrives as it was', (length) => {
  const data = Buffer.from(Uint8Array.from({ length }, (_, index) => (index * 31) % 251));
  const chunk = { stream: 'stderr', data, timestamp: 1_700_000_000_000n, position: 9_007_199_254_740_991n };

  const decoded = StreamExecutionOutputResponse.decode(serializeOutput(chunk));

  expect(decoded.data.equals(data)).toBe(true);
  expect({ ...decoded, data: '' }).toEqual({ ...chunk, data: '' });
});
