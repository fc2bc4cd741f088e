/** Writes one line of the host's log, through stderr; `fields` become its key-value pairs. */
export function log(level: 'debug' | 'info' | 'warn' | 'error', message: string, fields: Record<string, unknown> = {}) {
  // Exactly six digits, or the host takes the line for raw text.
  const timestamp = new Date().toISOString().replace('Z', '000Z');
  process.stderr.write(
    `${JSON.stringify({ ...fields, '@level': level, '@message': message, '@timestamp': timestamp })}\n`,
  );
}
