import { fileURLToPath } from 'node:url';

/** Stack frames of the files that run beside a guest: not the guest's business. All of ours are built into one directory. */
export const OWN_FRAME = new RegExp(
  `^ +at .*(?:${quote(fileURLToPath(new URL('.', import.meta.url)))}|/piscina/dist/).*\n?`,
  'gm',
);

function quote(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}
