/**
 * Text of bytes up to the end of a stream: those at the beginning that belong to a character before them are left off
 * (`skipped` says how many), what is no UTF-8 becomes U+FFFD.
 */
export function textOf(bytes: Buffer, options: { cutBefore: boolean }): { text: string; skipped: number } {
  let skipped = 0;
  // A UTF-8 character has at most three continuation bytes.
  while (options.cutBefore && skipped < Math.min(3, bytes.byteLength) && ((bytes[skipped] as number) & 0xc0) === 0x80) {
    skipped += 1;
  }
  return { text: bytes.toString('utf8', skipped), skipped };
}
