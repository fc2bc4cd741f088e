// What a terminal in its usual, "cooked" mode makes of bytes, for a program that has none. termios(3): ICRNL, ISIG, VEOF, ONLCR.

const INTERRUPT = '\x03';
const END = '\x04';

/** What is typed, as a program reads it: up to Ctrl-D, which `ends` its input. `interrupts`: how often Ctrl-C is in it. */
export function typed(data: Uint8Array): { input: Buffer; ends: boolean; interrupts: number } {
  const keys = Buffer.from(data).toString('latin1');
  const interrupts = keys.split(INTERRUPT).length - 1;
  const [line = '', ...rest] = keys.replaceAll(INTERRUPT, '').replaceAll('\r', '\n').split(END);
  return { input: Buffer.from(line, 'latin1'), ends: rest.length > 0, interrupts };
}

/** What a program writes, as a terminal whose caller has it in raw mode is to show it. */
export function shown(data: Uint8Array): Buffer {
  return Buffer.from(Buffer.from(data).toString('latin1').replaceAll('\n', '\r\n'), 'latin1');
}
