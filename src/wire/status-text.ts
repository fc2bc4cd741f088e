/** In characters. Encoded for a header each may be nine bytes, and a plugin's text goes there twice. */
const MOST = 3_000;

/**
 * What a gRPC status says: its text is a header, and one of 64 KiB ends the whole connection with all its calls. Of a longer
 * one the beginning is kept.
 */
export function statusText(message: string): string {
  if (message.length <= MOST) return message;
  const length = `... (of ${message.length} characters)`;
  return message.slice(0, MOST - length.length).toWellFormed() + length;
}
