/**
 * Text of bytes that may be cut out of the middle of a stream: bytes at either end that belong to a character outside
 * are left off, what is no UTF-8 becomes U+FFFD. `skipped` says how many bytes were left off at the beginning.
 */
export function textOf(bytes: Buffer, options: { cutBefore: boolean }): { text: string; skipped: number } {
  let skipped = 0;
  // A UTF-8 character has at most three continuation bytes.
  while (options.cutBefore && skipped < Math.min(3, bytes.byteLength) && ((bytes[skipped] as number) & 0xc0) === 0x80) {
    skipped += 1;
  }
  return { text: bytes.toString('utf8', skipped), skipped };
}
